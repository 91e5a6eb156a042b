"""Loads models and tokenizers from a folder with transformers, for evaluation."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from solar_plugins.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Hardware(NamedTuple):
    """The device and dtype that models are evaluated with."""

    device: str
    dtype: str


def hardware() -> Hardware:
    """The GPU with bfloat16 if it supports it natively, else float32, also on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return Hardware("cpu", "float32")
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return Hardware(f"cuda ({torch.cuda.get_device_name()})", "bfloat16" if native else "float32")


def load_tokenizer(
    directory: Path | str, *, trust_remote_code: bool = False, local_files_only: bool = True
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, or of a hub id; ``trust_remote_code`` runs code that comes with it.

    Raises:
        CheckpointError: It is missing or cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=local_files_only, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{directory}: the tokenizer cannot be read ({' '.join(str(error).split())[:200]}); "
            "download its files again, or copy them from the model that it is based on"
        ) from None
    return tokenizer


def load_model(directory: Path, *, trust_remote_code: bool = False, dtype: str | None = None) -> PreTrainedModel:
    """The model of a checkpoint, in eval mode on this machine's `hardware`.

    ``trust_remote_code`` runs code that comes with the checkpoint; ``dtype`` overrides that of the hardware.

    Raises:
        CheckpointError: Its files are damaged, or lack a tensor, which would be initialized randomly.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, GenerationConfig

    gc.collect()  # The previous model may be in a reference cycle, and two may not fit.
    device, best = hardware()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, dtype or best),
            device_map=None if device == "cpu" else "auto",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # Rejected below, by name.
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{directory}: the model cannot be loaded ({' '.join(str(error).split())[:200]}); expected config.json and "
            "complete model*.safetensors. Write the checkpoint again"
        ) from None
    model, info = loaded
    wrong = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if wrong:
        raise CheckpointError(
            f"{directory}: {len(wrong)} tensors are missing or have the wrong shape, such as {wrong[0]}; the weights "
            "do not match config.json. Write the checkpoint again"
        )
    # The checkpoint's own may ask for sampling or penalties; all models must be treated the same.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # not typed in transformers
    ready: PreTrainedModel = model.eval()
    return ready
