"""The tensors of the deeper model: the base tensor that each is created from, and the files that they are stored in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from solar_plugins.errors import CheckpointError
from solar_plugins.storage.safetensors import FLOATS, PlannedTensor, Shard, StoredTensor, plan_shards
from solar_plugins.storage.shared_layout import share_shards
from solar_plugins.upscaling.base_model import BaseCheckpoint
from solar_plugins.upscaling.decoder import PREDICTION_LAYER_KEYS, Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.quantization import refuse_undeclared_quantization
from solar_plugins.upscaling.tensor_names import layer_prefix_of, layer_prefixes

if TYPE_CHECKING:
    from solar_plugins.upscaling.initializers.base import Start

MAX_SHARD_BYTES = 5_000_000_000


class TensorCopy(NamedTuple):
    """A tensor of the deeper model and the base tensor it is created from."""

    name: str
    source: str
    start: Start | None = None
    """None: a copy of the source. Otherwise zero or computed, with the source's dtype and shape."""
    position: int | None = None
    """The position of its layer in the deeper model; None outside the plan's layers."""
    model: int = 0
    """The model that ``source`` is in, as `PlannedLayer.model`."""


class LayerNames(NamedTuple):
    """The tensor names of a base, by layer."""

    prefix: str
    """The prefix in this checkpoint, with a trailing dot."""
    layers: list[list[str]]
    """The names in each decoder layer, in stored order."""
    after: dict[int, list[str]]
    """The names in multi-token-prediction layers, which are stored after the last decoder layer, by number."""


class Stack(NamedTuple):
    """The layers of a model, from headers and config."""

    names: LayerNames
    decoder: Decoder
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    """The shapes of floating-point tensors, for computed tensors."""


def layer_names(names: Iterable[str], decoder: Decoder) -> LayerNames:
    """The tensor names of each base layer.

    Raises:
        CheckpointError: A layer has no tensors, or other tensors than another layer of its kind; or there are tensors
            for layers after the last one that the config does not declare.
    """
    architecture, num_layers, declared = decoder.architecture, decoder.num_layers, decoder.num_prediction_layers
    by_prefix = _numbered(names, decoder)
    if len(by_prefix) != 1:
        if decoder.has_own_code and not by_prefix:
            raise CheckpointError(
                f"no tensor is called {' or '.join(architecture.prefixes)}<number>....: a model with custom code "
                f"(model_type {decoder.model_type!r}) can be upscaled only if its layers have this name. If "
                "transformers supports the same model under another model_type, use that checkpoint"
            )
        spelled = ", ".join(sorted(by_prefix)) or "none"
        raise CheckpointError(
            f"the tensors of the decoder layers: expected names like {' or '.join(architecture.prefixes)}<number>...., "
            f"for model_type {decoder.model_type!r}, found: {spelled}. The checkpoint is incomplete, or its config "
            "belongs to another model: download it again"
        )
    [(prefix, numbered)] = by_prefix.items()
    extra = sorted(index for index in numbered if index >= num_layers)
    if extra and extra != list(range(num_layers, num_layers + declared)):
        raise CheckpointError(
            f"tensor {numbered[extra[0]][0]!r:.200} belongs to layer {extra[0]}, but config.json has "
            f"{architecture.depth_key}: {num_layers}, followed by {declared} prediction layers "
            f"({' or '.join(PREDICTION_LAYER_KEYS)}); the config belongs to another model: download it again"
        )
    layers = [numbered.get(index, []) for index in range(num_layers)]
    refuse_undeclared_quantization((name for layer in layers for name in layer), decoder)
    # Which modules are quantized may differ by layer, and so may the tensors that are stored for a module.
    part = str if decoder.quantization is None else _module
    _check_same_parts(prefix, layers, decoder.layer_kinds, part)
    _check_stored_with(prefix, layers, decoder)
    return LayerNames(prefix, layers, {index: numbered[index] for index in extra})


def layer_tensors(names: Iterable[str], decoder: Decoder) -> dict[int, list[str]]:
    """The tensor names of each numbered layer, regardless of the config's depth; empty if there are none."""
    return next(iter(_numbered(names, decoder).values()), {})


def _numbered(names: Iterable[str], decoder: Decoder) -> dict[str, dict[int, list[str]]]:
    """Tensor names by prefix and by layer."""
    known = layer_prefixes(decoder)
    found: dict[str, dict[int, list[str]]] = {}
    for name in names:
        match = layer_prefix_of(name, decoder)
        if match and (match[1] in known or (decoder.has_own_code and match[1].endswith(known))):
            found.setdefault(match[1], {}).setdefault(int(match[2]), []).append(name)
    return found


def _module(name: str) -> str:
    """``mlp.up_proj`` of ``mlp.up_proj.weight``, ``mlp.up_proj.weight.absmax`` and ``mlp.up_proj.qzeros``."""
    head, weight, _ = name.partition(".weight")
    return head if weight else name.rpartition(".")[0]


def _check_same_parts(
    prefix: str, layers: list[list[str]], kinds: Sequence[tuple[str, ...]], part: Callable[[str], str]
) -> None:
    firsts: dict[tuple[str, ...], tuple[int, set[str]]] = {}
    for index, (layer, kind) in enumerate(zip(layers, kinds, strict=True)):
        parts = {part(name.removeprefix(f"{prefix}{index}.")) for name in layer}
        first, expected = firsts.setdefault(kind, (index, parts))
        if not parts or parts != expected:
            odd = ", ".join(sorted(parts ^ expected)[:3])
            raise CheckpointError(
                f"layer {index} does not have the same tensors as layer {first}: "
                f"{f'they differ in {odd}' if parts else 'it has none'}; the checkpoint is incomplete, or its config "
                "belongs to another model: download it again"
            )


def _check_stored_with(prefix: str, layers: list[list[str]], decoder: Decoder) -> None:
    for index, layer in enumerate(layers):
        for first, second in decoder.architecture.stored_with.items():
            if f"{prefix}{index}.{first}" in layer and f"{prefix}{index}.{second}" not in layer:
                raise CheckpointError(
                    f"tensor {prefix}{index}.{second} is not stored, so the model would derive it from the layer's new "
                    "position. Load the base with transformers and save it again, which stores the tensor"
                )


def tensor_copies(
    names: Iterable[str],
    decoder: Decoder,
    plan: LayerPlan,
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    donors: Sequence[Stack] = (),
) -> list[TensorCopy]:
    """The tensors of the deeper model: first those outside the layers, then the layers in the plan's order.

    Prediction layers after the last layer stay there, renumbered to follow the new last layer.

    Args:
        names: The base's tensor names in stored order, which is kept inside each layer.
        decoder: The base's decoder.
        plan: The plan.
        shapes: The shapes of floating-point tensors, for computed tensors.
        donors: The stacks of the plan's donors.

    Raises:
        CheckpointError: The names do not match the config, or a layer cannot be initialized as planned.
        PluginError: An initializer is not registered, or is broken.

    Example:
        >>> names = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
        >>> decoder = Decoder.of({"model_type": "llama", "num_hidden_layers": 2})
        >>> [copy.source for copy in tensor_copies(names, decoder, LayerPlan.from_sources(2, [0, 1, 1]))][2:]
        ['model.layers.1.mlp.up_proj.weight', 'model.layers.1.mlp.up_proj.weight']
    """
    names = list(names)
    found = layer_names(names, decoder)
    in_layers = {name for group in (*found.layers, *found.after.values()) for name in group}
    copies = [TensorCopy(name, name) for name in names if name not in in_layers]
    stacks = (Stack(found, decoder, shapes), *donors)
    for position, layer in enumerate(plan.layers):
        stack = stacks[layer.model]
        prefix = f"{stack.names.prefix}{layer.source}."
        rests = [name.removeprefix(prefix) for name in stack.names.layers[layer.source]]
        start = _starts(layer, prefix, rests, stack)
        copies += [
            TensorCopy(f"{found.prefix}{position}.{rest}", prefix + rest, start.get(rest), position, layer.model)
            for rest in rests
        ]
    for index, group in found.after.items():
        new = f"{found.prefix}{index - plan.base_layers + len(plan)}."
        copies += [TensorCopy(new + name.removeprefix(f"{found.prefix}{index}."), name) for name in group]
    return copies


def _starts(layer: PlannedLayer, prefix: str, rests: Sequence[str], stack: Stack) -> Mapping[str, Start]:
    if layer.initialization == "copy":
        return {}
    from solar_plugins.upscaling.initializers import starts  # Imported late: plans of copies need none.
    from solar_plugins.upscaling.initializers.base import BaseLayer

    shapes = {rest: stack.shapes[prefix + rest] for rest in rests if prefix + rest in stack.shapes}
    return starts(layer, BaseLayer(layer.source, stack.decoder, tuple(rests), shapes))


def float_shapes(stored: Mapping[str, StoredTensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of the floating-point tensors, which are those that can be computed."""
    return {name: tensor.shape for name, tensor in stored.items() if tensor.dtype in FLOATS}


def planned_shards(base: BaseCheckpoint, plan: LayerPlan, block: int = 0) -> list[Shard]:
    """The shards of the upscaled checkpoint.

    Args:
        base: The base.
        plan: The plan.
        block: Size in bytes of the blocks to share with the base's files; 0: none.

    Raises:
        CheckpointError: The base's tensors cannot be read, or do not match its config.
        PluginError: An initializer is not registered, or is broken.
    """
    stored = [model.tensors for model in base.models]
    shapes = [{} if plan.only_copies else float_shapes(tensors) for tensors in stored]
    donors = [
        Stack(layer_names(tensors, model.decoder), model.decoder, shape)
        for model, tensors, shape in list(zip(base.models, stored, shapes, strict=True))[1:]
    ]
    copies = tensor_copies(stored[0], base.decoder, plan, shapes[0], donors)
    computed = _computed(base, plan, copies)
    tensors = [
        PlannedTensor(copy.name, stored[copy.model][copy.source], copy.start == "zero", computed.get(copy.name))
        for copy in copies
    ]
    return share_shards(tensors, block, MAX_SHARD_BYTES) if block else plan_shards(tensors, MAX_SHARD_BYTES)


def _computed(
    base: BaseCheckpoint, plan: LayerPlan, copies: Sequence[TensorCopy]
) -> dict[str, Callable[[], memoryview]]:
    """The functions that return the bytes of each computed tensor, by name."""
    if all(copy.start != "computed" for copy in copies):
        return {}
    from solar_plugins.upscaling.initializers.computed import base_tensors, computed_bytes

    tensors = [base_tensors(model) for model in base.models]
    return {
        copy.name: partial(
            computed_bytes,
            tensors[copy.model],
            plan.layers[copy.position],
            copy.position,
            copy.name.removeprefix(f"{tensors[0].prefix}{copy.position}."),
        )
        for copy in copies
        if copy.start == "computed" and copy.position is not None
    }


def require_what_computes(shards: Iterable[Shard]) -> None:
    """Check, before anything is written or compared, that torch is installed if tensors have to be computed.

    Raises:
        SolarError: It is not.
    """
    if any(tensor.compute for shard in shards for tensor in shard.tensors):
        from solar_plugins.extras import require  # Imported late: plans of copies need none.

        require("a layer with computed weights")
