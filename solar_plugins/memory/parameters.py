"""Which tensors a training run holds, how wide each is stored, and which of them are trained. Pure."""

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
"""Of an element in 4 bits: a block of 64 has a scale in 8 bits, 256 scales have one in fp32 (arXiv:2305.14314)."""


@dataclass(frozen=True)
class Model:
    """The model that is trained.

    Args:
        shapes: Its parameters by name.
        widths: Of its decoder.
        num_layers: Its depth.
        model_type: As its config says.
    """

    shapes: Mapping[str, Shape]
    widths: DecoderWidths
    num_layers: int
    model_type: str

    @property
    def parameters(self) -> int:
        """How many."""
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


LAYER = re.compile(r"(?:.*?\.)?\w+\.(\d+)\.")
"""A name that belongs to a numbered layer, and the number. The first: an expert's comes after it."""


class HeldTensor(NamedTuple):
    """A tensor of the model in training."""

    elements: int
    weight_bytes: float
    """Of an element."""
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
    """Bytes of an adapter's element.

    PEFT makes adapters in fp32; DeepSpeed turns the whole model into bf16, and so does TRL's preference trainer with
    adapters over a quantised model.
    """
    quantised_pairs = setup.adapter is not None and setup.adapter.bits < 16 and setup.sequences == 2
    return 2 if setup.half and (setup.deepspeed or quantised_pairs) else 4


def adapted_maps_of_a_layer(model: Model, adapter: Adapter) -> list[Shape]:
    """The linear maps of a decoder layer that get an adapter: their shapes (outputs, inputs)."""
    maps = {name: shape for name, shape in model.shapes.items() if _is_adapted(name, shape, adapter)}
    numbers = {name: match[1] for name in maps if (match := LAYER.match(name))}
    return [shape for name, shape in maps.items() if numbers[name] == next(iter(numbers.values()))]


def is_layer_map(name: str, shape: Shape) -> bool:
    """Whether a tensor is a linear map inside a decoder layer."""
    return len(shape) == 2 and LAYER.match(name) is not None


def _is_adapted(name: str, shape: Shape, adapter: Adapter) -> bool:
    if LAYER.match(name) is None or (adapter.layers is not None and _number(name, adapter) not in adapter.layers):
        return False
    return len(shape) == 2 and (adapter.targets is None or _module(name) in adapter.targets)


def _number(name: str, adapter: Adapter) -> int | None:
    """The number of a layer, as PEFT reads it in a name (``check_target_module_exists`` in peft/tuners)."""
    stacks = (re.match(rf"(?:^|.*?\.){stack}\.(\d+)\.", name) for stack in adapter.stacks or (r"\w+",))
    return next((int(match[1]) for match in stacks if match), None)


def _module(name: str) -> str:
    """The last part of a module's name, such as ``q_proj``."""
    return name.removesuffix(".weight").rpartition(".")[2]


def _adapter_tensors(model: Model, adapter: Adapter, element_bytes: int) -> Iterator[HeldTensor]:
    for name, shape in model.shapes.items():
        if _is_adapted(name, shape, adapter):
            yield HeldTensor(adapter.rank * sum(shape), element_bytes, trained=True)
        elif _module(name) in adapter.copied:
            yield HeldTensor(prod(shape), element_bytes, trained=True)


def _weight_bytes(name: str, shape: Shape, setup: TrainingSetup) -> float:
    if setup.adapter and is_layer_map(name, shape):
        return {4: NF4_BYTES, 8: 1.0}.get(setup.adapter.bits, setup.element_bytes)
    wide = setup.wide_ends and (not LAYER.match(name) or "norm" in name)
    return 4 if wide else setup.element_bytes


def unfrozen_pattern(text: str) -> re.Pattern[str]:
    """Axolotl's reading of a line of ``unfrozen_parameters``: a dot is a dot, a range of rows at the end is cut off.

    Rows outside of the range are frozen by a hook on the gradient, so that memory is that of the whole tensor
    (axolotl/utils/freeze.py).
    """
    name = re.sub(r"\[\d*(:\d*)?\]$", "", text)
    return re.compile(re.sub(r"\.(?!\+)", r"\\.", name))
