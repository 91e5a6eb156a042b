"""Models on a CPU: kernels that need a GPU are disabled."""

import sys

import pytest


@pytest.fixture(scope="session", autouse=True)
def no_gpu_kernels():
    """flash-linear-attention comes with Axolotl; transformers would call its Triton kernels, which no CPU runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fla", None)
        yield
