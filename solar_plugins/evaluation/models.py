"""Models and tokenizers as transformers loads them from a folder, ready to be measured."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from solar_plugins.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Hardware(NamedTuple):
    """Where and in which number format models are measured."""

    device: str
    dtype: str


def hardware() -> Hardware:
    """The GPU in bfloat16 where there is one, else float32: on a CPU, and on GPUs that only emulate bfloat16."""
    import torch

    if not torch.cuda.is_available():
        return Hardware("cpu", "float32")
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return Hardware(f"cuda ({torch.cuda.get_device_name()})", "bfloat16" if native else "float32")


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; ``trust_remote_code`` runs code that comes with it.

    Raises:
        CheckpointError: It has none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{directory}: the tokenizer cannot be read ({' '.join(str(error).split())[:200]}); "
            "download its files again, or copy those of the model that it was made from"
        ) from None
    return tokenizer


def load_model(directory: Path, *, trust_remote_code: bool = False, dtype: str | None = None) -> PreTrainedModel:
    """The model of a checkpoint, ready to be measured on this machine's `hardware`.

    ``trust_remote_code`` runs code that comes with the checkpoint; ``dtype`` takes the place of the hardware's own.

    Raises:
        CheckpointError: Its files are damaged, or a tensor of the model is not in them; it would be random.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, GenerationConfig

    gc.collect()  # The model before may hang in a reference cycle, and two may not fit.
    device, best = hardware()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, dtype or best),
            device_map=None if device == "cpu" else "auto",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # They are refused below, by name.
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{directory}: the model cannot be loaded ({' '.join(str(error).split())[:200]}); expected config.json and "
            "whole model*.safetensors. Write the checkpoint again"
        ) from None
    model, info = loaded
    wrong = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if wrong:
        raise CheckpointError(
            f"{directory}: {len(wrong)} tensors of the model are missing or of another shape, such as {wrong[0]}; "
            "the weights do not fit the config.json. Write the checkpoint again"
        )
    # Its own may ask for sampling or penalties; all models are to be treated alike.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # transformers leaves it bare
    ready: PreTrainedModel = model.eval()
    return ready
