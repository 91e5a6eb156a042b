"""The layer plan: which base layer each layer of the deeper model comes from, and how it is initialized. Pure.

Layer indices are 0-based, ranges are half-open ``[start, end)``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from solar_plugins.errors import PlanError
from solar_plugins.text import span

Arguments = tuple[tuple[str, Any], ...]
"""The arguments of an initializer: ``(("factor", 0.5),)``. Numbers, strings, booleans, or tuples of these."""


MAX_LAYERS = 10_000
"""Far more than any model has. A file with more is damaged, and its plan would exhaust the memory."""


class Donor(NamedTuple):
    """A model other than the base that a plan takes layers from."""

    name: str
    """A directory or a hub id, as the user wrote it; once the donor is found, its public name."""
    revision: str | None = None
    """The revision of a hub id, as the user wrote it; once the donor is found, its commit."""
    num_layers: int | None = None
    """Its depth; None until the donor is found."""


class PlannedLayer(NamedTuple):
    """One layer of the deeper model."""

    source: int
    initialization: str = "copy"
    """The name of a registered initializer. ``copy`` keeps the layer's weights; ``identity`` also zeroes the
    projections that write to the residual stream, so that the layer outputs its input (LLaMA Pro, arXiv:2401.02415
    sec. 3.2)."""
    arguments: Arguments = ()
    """The initializer's arguments. Omitted ones have their defaults."""
    passes_through: bool = False
    """Whether another initializer than ``identity`` also creates an identity layer; set by `plan_of`."""
    model: int = 0
    """The model that ``source`` is a layer of: 0 for the base, 1 for the plan's first donor."""

    @property
    def acts(self) -> bool:
        """Whether the untrained layer changes its input."""
        return self.initialization != "identity" and not self.passes_through


class LayerRange(NamedTuple):
    """Consecutive layers ``[start, end)`` of a model at consecutive positions, with the same initializer."""

    start: int
    end: int
    initialization: str = "copy"
    arguments: Arguments = ()
    passes_through: bool = False
    model: int = 0


def start_words(part: PlannedLayer | LayerRange) -> str:
    """How a layer is initialized, for messages.

    Example:
        >>> start_words(PlannedLayer(3)), start_words(PlannedLayer(3, "scaled", (("factor", 0.5),)))
        ('copy', 'scaled (factor 0.5)')
    """
    arguments = ", ".join(f"{name} {json.dumps(value)}" for name, value in part.arguments)
    return f"{part.initialization} ({arguments})" if arguments else part.initialization


class Seam(NamedTuple):
    """A place where layer ``below`` feeds layer ``above``, although they were not adjacent in one model."""

    position: int
    """Index, in the deeper model, of the layer above the seam."""
    below: int
    above: int
    below_model: int = 0
    """As `PlannedLayer.model`."""
    above_model: int = 0

    @property
    def distance(self) -> int | None:
        """SOLAR's layer distance over the seam, ``|above - below|`` (arXiv:2312.15166 sec. 2); None between models."""
        return abs(self.above - self.below) if self.below_model == self.above_model else None


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """An immutable map from the layers of the deeper model to the layers of its base.

    Args:
        base_layers: Depth of the base.
        layers: One entry for each layer of the deeper model, bottom first.
        donors: The other models that layers come from.

    Raises:
        PlanError: The plan is empty, or has a layer that its model does not have.

    Example:
        >>> plan = LayerPlan.from_sources(32, [*range(24), *range(8, 32)])
        >>> len(plan), plan.sources[23:26], plan.seams()
        (48, (23, 8, 9), (Seam(position=24, below=23, above=8, below_model=0, above_model=0),))
    """

    base_layers: int
    layers: tuple[PlannedLayer, ...]
    donors: tuple[Donor, ...] = ()

    def __post_init__(self) -> None:
        if self.base_layers < 1:
            raise PlanError(f"base_layers: {self.base_layers}; expected at least 1, the number of decoder layers")
        if not self.layers:
            raise PlanError("the plan is empty; expected at least 1 decoder layer")
        depths = [self.base_layers, *(donor.num_layers or MAX_LAYERS for donor in self.donors)]
        for position, layer in enumerate(self.layers):
            if not 0 <= layer.source < depths[layer.model]:
                name = f"donor {self.model_words(layer.model)}" if layer.model else "base"
                raise PlanError(
                    f"new layer {position}: layer {layer.source} of the {name} does not exist; it has layers 0 to "
                    f"{depths[layer.model] - 1}" + (", so give layers: in this range" if layer.model else "")
                )

    @classmethod
    def from_sources(cls, base_layers: int, sources: Iterable[int]) -> LayerPlan:
        """The plan that stacks plain copies of the base layers ``sources``, bottom first."""
        return cls(base_layers, tuple(PlannedLayer(source) for source in sources))

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def sources(self) -> tuple[int, ...]:
        """The source layer of each new layer, bottom first."""
        return tuple(layer.source for layer in self.layers)

    @property
    def only_copies(self) -> bool:
        """Whether all layers are plain copies."""
        return all(layer.initialization == "copy" for layer in self.layers)

    def ranges(self) -> tuple[LayerRange, ...]:
        """The smallest number of ranges that, stacked, give this plan."""
        starts = [0, *(i + 1 for i, (low, high) in enumerate(pairwise(self.layers)) if not _continues(low, high))]
        ends = [*starts[1:], len(self)]
        return tuple(
            LayerRange(self.layers[start].source, self.layers[end - 1].source + 1, *self.layers[start][1:])
            for start, end in zip(starts, ends, strict=True)
        )

    def duplicates(self) -> tuple[int, ...]:
        """The positions of the second and later copies of each layer of each model."""
        origins = [(layer.model, layer.source) for layer in self.layers]
        firsts = {origin: position for position, origin in reversed([*enumerate(origins)])}
        return tuple(position for position, origin in enumerate(origins) if position != firsts[origin])

    def seams(self) -> tuple[Seam, ...]:
        """Where adjacent layers were not adjacent in one model. Identity layers do not count."""
        acting = [(position, layer) for position, layer in enumerate(self.layers) if layer.acts]
        return tuple(
            Seam(position, below.source, above.source, below.model, above.model)
            for (_, below), (position, above) in pairwise(acting)
            if (above.model, above.source) != (below.model, below.source + 1)
        )

    def model_words(self, model: int) -> str:
        """The name of a model in messages, by its index in `PlannedLayer.model`.

        Example:
            >>> LayerPlan(1, (PlannedLayer(0),), (Donor("org/b", "main"),)).model_words(1)
            'org/b@main'
        """
        if model == 0:
            return "base"
        name, revision, _ = self.donors[model - 1]
        return f"{name}@{revision[:12]}" if revision else name

    def seam_words(self, seam: Seam, *, short: bool = False) -> str:
        """The description of a seam.

        Example:
            >>> plan = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])
            >>> plan.seam_words(*plan.seams())
            'layer 2 feeds layer 1, distance 1'
            >>> plan = LayerPlan.from_sources(2, [0, 0, 1])
            >>> plan.seam_words(*plan.seams())
            'layer 0 feeds its copy'
        """
        below, above = (
            f"{source} of {self.model_words(model)}" if self.donors else str(source)
            for source, model in ((seam.below, seam.below_model), (seam.above, seam.above_model))
        )
        if seam.distance == 0:
            return f"layer {below} feeds its copy"
        distance = "another model" if seam.distance is None else f"distance {seam.distance}"
        return f"layer {below} feeds {'' if short else 'layer '}{above}, {distance}"

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready values; `from_dict` gives the plan back."""
        plan = {"base_layers": self.base_layers, "ranges": [as_dict(part) for part in self.ranges()]}
        return plan | ({"donors": [donor._asdict() for donor in self.donors]} if self.donors else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerPlan:
        """The plan from the values of `to_dict`.

        Raises:
            PlanError: The data is malformed.
        """
        try:
            base_layers, ranges = int(data["base_layers"]), [_read_range(part) for part in data["ranges"]]
            donors = tuple(_read_donor(donor) for donor in data.get("donors", ()))
            # Checked before it is expanded: marker files are not trusted, and [0, 10**12] would exhaust the memory.
            if not all(type(part.start) is type(part.end) is type(part.model) is int for part in ranges):
                raise TypeError("a range is not made of integers")
            depths = [base_layers, *(donor.num_layers or 0 for donor in donors)]
            if max(depths) > MAX_LAYERS or not all(0 <= part.start < part.end <= depths[part.model] for part in ranges):
                raise ValueError("a range exceeds its model")
            if any(part.model < 0 for part in ranges):
                raise ValueError("a range has no model")
            if sum(part.end - part.start for part in ranges) > MAX_LAYERS:
                raise ValueError("too many layers")
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise PlanError(
                f"{json.dumps(data, default=str)[:200]} is not a layer plan; expected "
                '{"base_layers": 32, "ranges": [{"start": 0, "end": 24, "initialization": "copy"}, ..]}'
            ) from error
        layers = (PlannedLayer(source, *part[2:]) for part in ranges for source in range(part.start, part.end))
        return cls(base_layers, tuple(layers), donors)

    def __str__(self) -> str:
        parts = [
            (f"{self.model_words(p.model)} " if p.model else "")
            + f"[{span(p.start, p.end)}]"
            + ("" if p.initialization == "copy" else f" as {start_words(p)}")
            for p in self.ranges()
        ]
        return f"{self.base_layers} -> {len(self)} layers: {' + '.join(parts)}"


def seam_as_dict(seam: Seam) -> dict[str, Any]:
    """A seam as JSON-ready values; the models are omitted if both are the base."""
    models = {"below_model": seam.below_model, "above_model": seam.above_model}
    return {"position": seam.position, "below": seam.below, "above": seam.above} | (
        {"distance": seam.distance} | (models if any(models.values()) else {})
    )


def as_dict(part: PlannedLayer | LayerRange) -> dict[str, Any]:
    """A layer or a range as JSON-ready values, without optional keys that have their defaults."""
    data = part._asdict() | {"arguments": dict(part.arguments)}
    return {key: value for key, value in data.items() if value or key not in ("arguments", "passes_through", "model")}


def _read_range(data: Mapping[str, Any]) -> LayerRange:
    """The range from the values of `as_dict`.

    Raises:
        KeyError, TypeError, ValueError: The data is malformed.
    """
    part = LayerRange(**{**data, "arguments": frozen_arguments(dict(data.get("arguments", {})))})
    if not isinstance(part.initialization, str) or not part.initialization.isprintable():
        raise TypeError("initialization is not a name")
    if not isinstance(part.passes_through, bool):
        raise TypeError("passes_through is not a boolean")
    return part


def _read_donor(data: Mapping[str, Any]) -> Donor:
    """A donor from a plan's JSON.

    Raises:
        KeyError, TypeError, ValueError: The data is malformed.
    """
    donor = Donor(**data)
    if not isinstance(donor.name, str) or not donor.name.isprintable() or not isinstance(donor.revision, str | None):
        raise TypeError("the name or revision of a donor is not a string")
    if type(donor.num_layers) is not int:
        raise TypeError("the depth of a donor is not an integer")
    return donor


def frozen_arguments(arguments: Mapping[str, Any]) -> Arguments:
    """Arguments in the form that a plan stores.

    Raises:
        TypeError: A value is not a number, a string, a boolean, or a list of these.
    """
    return tuple((name, _frozen(value)) for name, value in sorted(arguments.items()))


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r:.80} is not a number, a string, a boolean, or a list of these")


def _continues(low: PlannedLayer, high: PlannedLayer) -> bool:
    return high.source == low.source + 1 and high[1:] == low[1:]
