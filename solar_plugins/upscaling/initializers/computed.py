"""Compute tensors with an initializer: read base tensors, call its function, validate and encode the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from solar_plugins.errors import CheckpointError, PluginError, SolarError
from solar_plugins.storage.safetensors import FLOATS, StoredTensor
from solar_plugins.upscaling.base_model import BaseCheckpoint
from solar_plugins.upscaling.initializers import arguments_of, layer_initializer
from solar_plugins.upscaling.initializers.base import NewTensor
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.upscaled_tensors import float_shapes, layer_names, tensor_copies

if TYPE_CHECKING:
    from torch import Tensor

_FAULT = "this is a bug in the package that registered it"


@dataclass(frozen=True, slots=True)
class BaseTensors:
    """The tensors of the base's layers.

    Args:
        stored: All tensors of the base, by name.
        prefix: The prefix before a layer's number in a name, with a trailing dot.
        num_layers: Depth of the base.
    """

    stored: Mapping[str, StoredTensor]
    prefix: str
    num_layers: int

    def find(self, name: str, layer: int) -> StoredTensor:
        """The location of a tensor, by its name inside a layer.

        Raises:
            CheckpointError: It does not exist.
        """
        stored = self.stored.get(f"{self.prefix}{layer}.{name}")
        if stored is None or not 0 <= layer < self.num_layers:
            raise CheckpointError(
                f"base layer {layer} has no tensor {name!r:.200}, which the initializer reads; use another initializer"
            )
        return stored

    def read(self, name: str, layer: int) -> Tensor:
        """The tensor itself; see `find`."""
        return read_tensor(self.find(name, layer))


def compute(base: BaseTensors, layer: PlannedLayer, position: int, name: str) -> Tensor:
    """Compute a tensor of the deeper model.

    Args:
        base: The base.
        layer: The new layer in the plan.
        position: The position of the new layer.
        name: The tensor's name inside the layer.

    Raises:
        CheckpointError: A tensor of the base cannot be read.
        PluginError: The initializer is not registered, fails, or returns something else than such a tensor.
    """
    initializer = layer_initializer(layer.initialization)
    where = f"initializer {initializer.name!r}, tensor {name} of new layer {position}"
    if initializer.compute is None:
        raise PluginError(f"{where}: the initializer has no compute function; {_FAULT}")
    args = arguments_of(initializer, dict(layer.arguments), f"the plan's {initializer.name}.")
    try:
        made = initializer.compute(NewTensor(name, layer.source, position, base.num_layers, base.read), args)
    except SolarError:
        raise
    except Exception as error:
        raise PluginError(f"{where}: failed with {type(error).__name__}: {error}; {_FAULT}") from error
    if problem := _problem(made, base.find(name, layer.source)):
        raise PluginError(f"{where}: {problem}")
    return made


def base_tensors(base: BaseCheckpoint) -> BaseTensors:
    """The tensors of a base's layers.

    Raises:
        CheckpointError: They cannot be read, or do not match its config.
    """
    return BaseTensors(base.tensors, layer_names(base.tensors, base.decoder).prefix, base.num_layers)


def new_tensors(base: BaseCheckpoint, layer: PlannedLayer, position: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a new layer that are not copies, with their names inside the layer.

    Args:
        base: The base.
        layer: The new layer in the plan.
        position: The position of the new layer.

    Raises:
        SolarError: As `compute`, or the initializer does not support the base.
    """
    files = base_tensors(base)
    alone = LayerPlan(base.num_layers, (layer,))
    for copy in tensor_copies(base.tensors, base.decoder, alone, float_shapes(base.tensors)):
        name = copy.name.removeprefix(f"{files.prefix}0.")
        if copy.start == "computed":
            yield name, compute(files, layer, position, name)
        elif copy.start == "zero":
            yield name, read_tensor(base.tensors[copy.source]).zero_()


def computed_bytes(base: BaseTensors, layer: PlannedLayer, position: int, name: str) -> memoryview:
    """As `compute`, encoded as in a safetensors file."""
    import torch

    made = compute(base, layer, position, name)
    return memoryview(made.detach().contiguous().view(-1).view(torch.uint8).numpy())


def _problem(made: object, source: StoredTensor) -> str | None:
    """What is wrong with the value that an initializer returned; None if it is valid."""
    import torch

    if not isinstance(made, torch.Tensor):
        return f"returned a {type(made).__name__}, expected a tensor; {_FAULT}"
    dtype = getattr(torch, FLOATS[source.dtype])
    if (made.dtype, tuple(made.shape)) != (dtype, source.shape):
        return (
            f"returned {made.dtype} of shape {list(made.shape)}, expected {dtype} of shape {list(source.shape)}; "
            f"{_FAULT}"
        )
    if not made.isfinite().all():
        return "returned values that are not finite; if the base's values are finite, try other arguments"
    return None


def read_tensor(stored: StoredTensor) -> Tensor:
    """Read a floating-point tensor from its file.

    Raises:
        CheckpointError: It has another dtype, or the file was truncated.
        OSError: From the file system.
    """
    import torch

    if stored.dtype not in FLOATS:
        raise CheckpointError(
            f"{stored.file}: cannot compute with a tensor of dtype {stored.dtype}; expected one of "
            f"{', '.join(FLOATS)}. Use the unquantized base, or a plan of copies"
        )
    data = bytearray(stored.num_bytes)
    with stored.file.open("rb") as file:
        file.seek(stored.start)
        if file.readinto(data) < len(data):
            raise CheckpointError(
                f"{stored.file}: truncated while it was read; do not write to the base, and run again"
            )
    return torch.frombuffer(data, dtype=getattr(torch, FLOATS[stored.dtype])).view(stored.shape)
