"""Initializers: how to initialize the layers of the deeper model that are not plain copies.

Only `computed.py` uses torch. Everything that a plan of copies does not need is imported late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from solar_plugins.errors import ArgsError, CheckpointError, PluginError, SolarError
from solar_plugins.plugins.manager import known, registered
from solar_plugins.plugins.markers import hookimpl
from solar_plugins.solar_block import invalid
from solar_plugins.storage.untrusted import parse_yaml
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer, frozen_arguments, start_words

if TYPE_CHECKING:
    from solar_plugins.upscaling.decoder import Decoder
    from solar_plugins.upscaling.initializers.base import BaseLayer, LayerInitializer, Start
    from solar_plugins.upscaling.strategies.base import StrategyArgs


@hookimpl
def register_layer_initializers() -> list[LayerInitializer[Any]]:
    """The built-in initializers."""
    from solar_plugins.upscaling.initializers.built_in import BUILT_IN

    return BUILT_IN


def layer_initializers() -> dict[str, LayerInitializer[Any]]:
    """All registered initializers by name."""
    from solar_plugins.upscaling.initializers.base import LayerInitializer

    return registered("register_layer_initializers", LayerInitializer)


def layer_initializer(name: str) -> LayerInitializer[Any]:
    """The initializer called ``name``.

    Raises:
        PluginError: It is not registered. The message lists the known names, and the skipped plugins with the reason.
    """
    return known(layer_initializers(), name, "initializer")


def initialized(plan: LayerPlan, duplicates: Any, where: str) -> LayerPlan:
    """Validate the initializers in a strategy's plan, complete their arguments, and apply ``duplicates``.

    Args:
        plan: The strategy's plan.
        duplicates: ``solar.init.duplicates``, for the second and later copies of a base layer; or None.
        where: Prefix of keys in error messages.

    Raises:
        ArgsError: An argument is unknown or invalid, or the strategy itself initializes a duplicate.
        PluginError: An initializer is not registered.
    """
    layers = [
        layer
        if layer == PlannedLayer(layer.source, model=layer.model)
        else _complete(
            layer, dict(layer.arguments), f"{where}strategy: layer with initializer {layer.initialization!r:.80}"
        )
        for layer in plan.layers
    ]
    if duplicates is not None:
        start = _duplicates_start(duplicates, where)
        for position in plan.duplicates():
            if layers[position].initialization != "copy":
                raise ArgsError(
                    f"{where}duplicates: {duplicates!r:.200} also applies to layer {position}, but the strategy itself "
                    f"initializes it as {start_words(layers[position])}; remove duplicates"
                )
            layers[position] = start._replace(source=layers[position].source, model=layers[position].model)
    return LayerPlan(plan.base_layers, tuple(layers), plan.donors)


def _duplicates_start(said: Any, where: str) -> PlannedLayer:
    """The initializer of duplicates, as a layer without a particular source."""
    if isinstance(said, str) and said.startswith("{"):  # From a command line.
        said = parse_yaml(said, f"{where}duplicates: {said!r:.200}")
    arguments = dict(said) if isinstance(said, Mapping) else {"initializer": said}
    name = arguments.pop("initializer", None)
    if not isinstance(name, str):
        raise ArgsError(
            f"{where}duplicates: {said!r:.200} is not allowed; expected the name of an initializer, such as identity, "
            "or a map such as {initializer: scaled, factor: 0.5}"
        )
    return _complete(PlannedLayer(0, name), arguments, f"{where}duplicates")


def _complete(layer: PlannedLayer, arguments: Mapping[str, Any], where: str) -> PlannedLayer:
    try:
        initializer = layer_initializer(layer.initialization)
    except PluginError as error:
        raise PluginError(f"{where}: {error}") from None
    args = arguments_of(initializer, arguments, f"{where}.")
    try:
        complete = frozen_arguments(args.model_dump(mode="json"))
    except TypeError as error:
        raise PluginError(
            f"{where}: {initializer.name!r} has an argument that a plan cannot store: {error}; this is a bug in the "
            "package that registered it"
        ) from None
    return layer._replace(arguments=complete, passes_through=_recorded_pass(initializer))


def _recorded_pass(initializer: LayerInitializer[Any]) -> bool:
    """Whether a plan has to record ``passes_through``; for ``identity`` it is implied."""
    return initializer.passes_through and initializer.name != "identity"


def arguments_of(initializer: LayerInitializer[Any], arguments: Mapping[str, Any], where: str) -> StrategyArgs:
    """Validate an initializer's arguments with its ``args`` model.

    Raises:
        ArgsError: One is unknown or invalid.
    """
    try:
        args: StrategyArgs = initializer.args.model_validate(arguments)
    except ValidationError as error:
        raise ArgsError(invalid(error, where, initializer.args.model_fields)) from None
    return args


def starts(layer: PlannedLayer, base: BaseLayer) -> Mapping[str, Start]:
    """How to initialize the tensors of a new layer that are not copies, by name.

    Args:
        layer: The new layer.
        base: Its source.

    Raises:
        CheckpointError: The initializer does not support the base.
        PluginError: The initializer is not registered, or is broken.
    """
    initializer = layer_initializer(layer.initialization)
    args = arguments_of(initializer, dict(layer.arguments), f"the plan's {initializer.name}.")
    try:
        found = initializer.starts(base, args)
    except SolarError:
        raise
    except Exception as error:
        raise _fault(initializer, f"failed on base layer {base.index} with {type(error).__name__}: {error}") from error
    if not isinstance(found, Mapping) or not set(found.values()) <= {"zero", "computed"}:
        raise _fault(initializer, f"returned {found!r:.200}, expected a map from tensor names to 'zero' or 'computed'")
    unfit = [name for name, start in found.items() if name not in (base.names if start == "zero" else base.shapes)]
    if unfit and base.names:
        raise _fault(
            initializer,
            f"returned {unfit[0]!r:.200}, which is not a (floating-point) tensor of base layer {base.index}",
        )
    if layer.passes_through != _recorded_pass(initializer):
        raise CheckpointError(
            f"the plan's {initializer.name} has another passes_through than the installed initializer; upscale again, "
            "or install the version of its package that created the plan"
        )
    if not layer.acts and any(found.get(name) != "zero" for name in base.residual_writers):
        raise _fault(initializer, "has passes_through=True, but does not zero all residual_writers")
    return found


def _fault(initializer: LayerInitializer[Any], what: str) -> PluginError:
    return PluginError(f"initializer {initializer.name!r} {what}; this is a bug in the package that registered it")


def refuse_by_config(decoders: Sequence[Decoder], plan: LayerPlan) -> None:
    """Refuse initializers that do not support the models, judged by their configs.

    Args:
        decoders: The decoders of the base and of the plan's donors.
        plan: The plan.

    Raises:
        CheckpointError: As `starts`.
        PluginError: As `starts`.
    """
    from solar_plugins.upscaling.initializers.base import BaseLayer

    for layer in dict.fromkeys(plan.layers):
        if layer.initialization != "copy":
            starts(layer, BaseLayer(layer.source, decoders[layer.model]))
