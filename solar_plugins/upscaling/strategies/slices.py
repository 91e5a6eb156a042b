"""``slices``: ranges of layers, of one or several models, stacked as mergekit stacks them. Pure."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from solar_plugins.errors import PlanError
from solar_plugins.storage.untrusted import parse_yaml
from solar_plugins.upscaling.layer_plan import MAX_LAYERS, Donor, LayerPlan, PlannedLayer
from solar_plugins.upscaling.strategies.base import LayerPair, StrategyArgs, parse_ranges, require_ranges


class Slice(StrategyArgs):
    """A half-open range of layers of a model."""

    layers: LayerPair = Field(description="[start, end)")
    model: str | None = Field(None, min_length=1, description="a directory or a hub id; default: the base")
    revision: str | None = Field(None, description="revision of a hub id")


def _as_slice(value: object) -> object:
    """Convert ``[0, 24]`` to a map. Other values are unchanged."""
    if not isinstance(value, list):
        return value
    if len(value) != 2:
        raise ValueError("expected a half-open range such as [0, 24], or {model: B, layers: [0, 24]}")
    return {"layers": value}


def _parse_slices(value: object) -> object:
    """Convert ``0:24,8:32`` or YAML, as on the command line, to a list. Other values are unchanged."""
    if isinstance(value, str) and value.startswith("["):
        return parse_yaml(value, "the option")
    return parse_ranges(value)


class SlicesArgs(StrategyArgs):
    """Arguments of ``slices``."""

    slices: Annotated[list[Annotated[Slice, BeforeValidator(_as_slice)]], BeforeValidator(_parse_slices)] = Field(
        description="half-open ranges of base layers, bottom first: [[0, 24], [8, 32]]; on the command line 0:24,8:32. "
        "From another model: {model: DIRECTORY-OR-HUB-ID, layers: [8, 32]}, optionally with revision"
    )


def plan_slices(num_layers: int, args: SlicesArgs) -> LayerPlan:
    """The given half-open ranges of layers, stacked (mergekit's ``layer_range``, docs of its passthrough method).

    Ranges of another model are checked against its depth when the model is found.

    Raises:
        PlanError: No range is given, or a range is empty, reversed or outside the base.

    Example:
        >>> str(plan_slices(32, SlicesArgs(slices=[[0, 24], [8, 32]])))
        '32 -> 48 layers: [0..23] + [8..31]'
        >>> str(plan_slices(32, SlicesArgs(slices=[[0, 24], {"model": "org/b", "layers": [8, 32]}])))
        '32 -> 48 layers: [0..23] + org/b [8..31]'
    """
    if not args.slices:
        raise PlanError("slices: empty; expected ranges such as [[0, 24], [8, 32]]")
    donors = list(dict.fromkeys(Donor(part.model, part.revision) for part in args.slices if part.model))
    layers: list[PlannedLayer] = []
    for part in args.slices:
        if part.revision and not part.model:
            raise PlanError(f"slices: revision: {part.revision!r:.80} without a model; add the model")
        require_ranges("slices", [part.layers], MAX_LAYERS if part.model else num_layers)
        model = 1 + donors.index(Donor(part.model, part.revision)) if part.model else 0
        layers += [PlannedLayer(source, model=model) for source in range(*part.layers)]
    return LayerPlan(num_layers, tuple(layers), tuple(donors))
