"""Models whose memory is known, and a count of the bytes that torch really holds."""

import json
import weakref
from contextlib import nullcontext

import pytest
from known_models import MISTRAL, SMALL, model_from


@pytest.fixture(scope="session")
def solar_model():
    """SOLAR 10.7B."""
    return model_from(MISTRAL, 48)


@pytest.fixture(scope="session")
def small_model():
    """7.6 million parameters in four layers."""
    return model_from(SMALL, 4)


@pytest.fixture
def mistral_config(tmp_path):
    """A folder with Mistral 7B's config.json."""
    (tmp_path / "mistral").mkdir()
    (tmp_path / "mistral" / "config.json").write_text(json.dumps(MISTRAL))
    return tmp_path / "mistral"


@pytest.fixture(scope="session")
def live_peak():
    """The peak of the bytes that a call allocates, as torch's dispatcher sees them."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.weak import WeakIdKeyDictionary

    class LiveBytes(TorchDispatchMode):
        def __init__(self, known):
            super().__init__()
            self.known, self.seen = {id(storage) for storage in known}, WeakIdKeyDictionary()
            self.now = self.peak = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    self.count(tensor.untyped_storage())
            self.peak = max(self.peak, self.now)
            return out

        def count(self, storage):
            if id(storage) not in self.known and storage not in self.seen:
                self.seen[storage] = True
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage.nbytes())

        def free(self, num_bytes):
            self.now -= num_bytes

    def measure(call, known):
        storages = [tensor.untyped_storage() for tensor in known]
        with LiveBytes(storages) as live:
            call()
        return live.peak

    return measure


@pytest.fixture(scope="session")
def training_peak(live_peak):
    """Peak bytes of a forward and backward pass of transformers' model, without weights and gradients."""

    def measure(config, num_layers, batch, tokens, *, dtype, checkpointing=True, fake=False, wrap=None):
        import torch
        from torch._subclasses.fake_tensor import FakeTensorMode
        from transformers import AutoConfig, AutoModelForCausalLM

        kind = {key: value for key, value in config.items() if key not in ("model_type", "torch_dtype")}
        kind |= {"num_hidden_layers": num_layers, "attn_implementation": "sdpa"}
        with FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext():
            torch.manual_seed(0)
            made = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **kind), dtype=dtype)
            model = (wrap or (lambda model: model))(made.train())
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            ids = torch.randint(0, config["vocab_size"], (batch, tokens))

            def step():
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()

            step()  # so that gradients exist, as during gradient accumulation
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            return live_peak(step, [*model.parameters(), *model.buffers(), *(weight.grad for weight in trained)])

    return measure
