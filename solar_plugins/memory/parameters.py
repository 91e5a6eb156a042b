"""Which tensors a training run holds, the width of each, and which of them are trained. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from solar_plugins.memory.training_setup import Adapter, TrainingSetup
from solar_plugins.upscaling.decoder import DecoderWidths
from solar_plugins.upscaling.estimates import Shape

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Per element in 4 bits: each block of 64 has an 8-bit scale, each 256 scales have one in fp32 (arXiv:2305.14314)."""

LAYER = re.compile(r"(?:.*?\.)?\w+\.(\d+)\.")
"""Matches a name that belongs to a numbered layer. The group is the first number: that of an expert comes later."""


@dataclass(frozen=True)
class Model:
    """The model that is trained.

    Args:
        shapes: Parameter shapes by name.
        widths: Of its decoder.
        num_layers: Its depth.
        model_type: From its config.
    """

    shapes: Mapping[str, Shape]
    widths: DecoderWidths
    num_layers: int
    model_type: str

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(map(prod, self.shapes.values()))

    @property
    def layer_parameters(self) -> int:
        """Of the largest decoder layer."""
        layers: dict[str, int] = {}
        for name, shape in self.shapes.items():
            layer = LAYER.match(name)
            if layer:
                layers[layer[0]] = layers.get(layer[0], 0) + prod(shape)
        return max(layers.values(), default=0)

    @property
    def outer_parameters(self) -> int:
        """Outside of the decoder layers: embeddings, last norm, head."""
        return sum(prod(shape) for name, shape in self.shapes.items() if not LAYER.match(name))


class HeldTensor(NamedTuple):
    """A tensor of the model in training."""

    elements: int
    weight_bytes: float
    """Per element."""
    trained: bool


def held_tensors(model: Model, setup: TrainingSetup) -> list[HeldTensor]:
    """Every tensor of the model and of its adapters, before sharding."""
    patterns = [unfrozen_pattern(text) for text in setup.unfrozen]
    held = [
        HeldTensor(
            prod(shape),
            _weight_bytes(name, shape, setup),
            not setup.adapter and (not patterns or any(pattern.match(name) for pattern in patterns)),
        )
        for name, shape in model.shapes.items()
    ]
    if setup.adapter:
        held += _adapter_tensors(model, setup.adapter, adapter_bytes(setup))
    return held


def adapter_bytes(setup: TrainingSetup) -> int:
    """Bytes per element of an adapter.

    PEFT creates adapters in fp32. DeepSpeed casts the entire model to bf16, and so does TRL's preference trainer for
    adapters on a quantized model.
    """
    quantized_pairs = setup.adapter is not None and setup.adapter.bits < 16 and setup.sequences == 2
    return 2 if setup.compute_bits == 16 and (setup.deepspeed or quantized_pairs) else 4


def adapted_maps_of_a_layer(model: Model, adapter: Adapter) -> list[Shape]:
    """The shapes (outputs, inputs) of the linear layers with an adapter in one decoder layer."""
    maps = {name: shape for name, shape in model.shapes.items() if _is_adapted(name, shape, adapter)}
    numbers = {name: match[1] for name in maps if (match := LAYER.match(name))}
    return [shape for name, shape in maps.items() if numbers[name] == next(iter(numbers.values()))]


def is_layer_map(name: str, shape: Shape) -> bool:
    """Whether a tensor is a linear map inside a decoder layer."""
    return len(shape) == 2 and LAYER.match(name) is not None


def _is_adapted(name: str, shape: Shape, adapter: Adapter) -> bool:
    if not is_layer_map(name, shape):
        return False
    if adapter.layers is not None and _layer_number(name, adapter) not in adapter.layers:
        return False
    return adapter.targets is None or _module(name) in adapter.targets


def _layer_number(name: str, adapter: Adapter) -> int | None:
    """The layer index that PEFT reads from a name (``check_target_module_exists`` in peft/tuners)."""
    matches = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name) for pattern in adapter.layers_pattern or (r"\w+",))
    return next((int(match[1]) for match in matches if match), None)


def _module(name: str) -> str:
    """The last part of a module's name, such as ``q_proj``."""
    return name.removesuffix(".weight").rpartition(".")[2]


def _adapter_tensors(model: Model, adapter: Adapter, element_bytes: int) -> Iterator[HeldTensor]:
    for name, shape in model.shapes.items():
        if _is_adapted(name, shape, adapter):
            yield HeldTensor(adapter.rank * sum(shape), element_bytes, trained=True)
        elif _module(name) in adapter.modules_to_save:
            yield HeldTensor(prod(shape), element_bytes, trained=True)


def _weight_bytes(name: str, shape: Shape, setup: TrainingSetup) -> float:
    if setup.adapter and setup.adapter.bits == 4 and is_layer_map(name, shape):
        return NF4_BYTES
    in_fp32 = setup.fp32_embeddings_and_norms and (not LAYER.match(name) or "norm" in name)
    return 4 if in_fp32 else setup.element_bytes


def unfrozen_pattern(text: str) -> re.Pattern[str]:
    """A line of ``unfrozen_parameters`` as Axolotl reads it: a dot is literal, a range of rows at the end is cut off.

    Rows outside of the range are frozen by a hook on the gradient, so the memory is that of the full tensor
    (axolotl/utils/freeze.py).
    """
    name = re.sub(r"\[\d*(:\d*)?\]$", "", text)
    return re.compile(re.sub(r"\.(?!\+)", r"\\.", name))
