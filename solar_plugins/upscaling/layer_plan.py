"""The layer plan: which base layer each layer of the deeper model comes from, and how that copy is initialised.

Layer indices are 0-based, ranges are half-open ``[start, end)``. Everything here is pure: no files, no tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from solar_plugins.errors import PlanError

Arguments = tuple[tuple[str, Any], ...]
"""Of an initializer, by name: ``(("factor", 0.5),)``. Numbers, texts, truth values, or tuples of these."""


MAX_LAYERS = 10_000
"""Far above any model; a file that says more is damaged, and a plan for it would fill the memory."""


class PlannedLayer(NamedTuple):
    """One layer of the deeper model."""

    source: int
    initialization: str = "copy"
    """How it starts: the name of a registered initializer. ``copy`` keeps the layer's weights; ``identity`` also zeroes
    the projections that write to the residual stream, so that the layer passes its input through unchanged (LLaMA Pro,
    arXiv:2401.02415 sec. 3.2)."""
    arguments: Arguments = ()
    """Of the initializer; what is left out has its default."""
    passes_through: bool = False
    """Whether that initializer, too, makes a layer that passes its input through; `plan_of` knows."""

    @property
    def acts(self) -> bool:
        """Whether the untrained layer changes what it is given."""
        return self.initialization != "identity" and not self.passes_through


class LayerRange(NamedTuple):
    """Consecutive base layers ``[start, end)`` that land on consecutive new positions, all initialised alike."""

    start: int
    end: int
    initialization: str = "copy"
    arguments: Arguments = ()
    passes_through: bool = False


def start_words(part: PlannedLayer | LayerRange) -> str:
    """How a layer starts, in words.

    Example:
        >>> start_words(PlannedLayer(3)), start_words(PlannedLayer(3, "scaled", (("factor", 0.5),)))
        ('copy', 'scaled (factor 0.5)')
    """
    arguments = ", ".join(f"{name} {json.dumps(value)}" for name, value in part.arguments)
    return f"{part.initialization} ({arguments})" if arguments else part.initialization


class Seam(NamedTuple):
    """The place where base layer ``below`` feeds base layer ``above`` although they were not neighbours in the base."""

    position: int
    """Index, in the deeper model, of the layer above the seam."""
    below: int
    above: int

    @property
    def distance(self) -> int:
        """SOLAR's layer distance over the seam, ``|above - below|`` (arXiv:2312.15166 sec. 2)."""
        return abs(self.above - self.below)


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """An immutable map from the layers of the deeper model to the layers of its base.

    Args:
        base_layers: Depth of the base.
        layers: One entry for each layer of the deeper model, bottom first.

    Raises:
        PlanError: The plan is empty, or names a layer that the base does not have.

    Example:
        >>> plan = LayerPlan.from_sources(32, [*range(24), *range(8, 32)])
        >>> len(plan), plan.sources[23:26], plan.seams()
        (48, (23, 8, 9), (Seam(position=24, below=23, above=8),))
    """

    base_layers: int
    layers: tuple[PlannedLayer, ...]

    def __post_init__(self) -> None:
        if self.base_layers < 1:
            raise PlanError(f"base_layers: {self.base_layers} is no depth; a base has at least 1 decoder layer")
        if not self.layers:
            raise PlanError("the plan is empty; a model needs at least 1 decoder layer")
        for position, layer in enumerate(self.layers):
            if not 0 <= layer.source < self.base_layers:
                raise PlanError(
                    f"new layer {position}: base layer {layer.source} does not exist; the base has layers 0 to "
                    f"{self.base_layers - 1}"
                )

    @classmethod
    def from_sources(cls, base_layers: int, sources: Iterable[int]) -> LayerPlan:
        """The plan that stacks plain copies of the base layers ``sources``, bottom first."""
        return cls(base_layers, tuple(PlannedLayer(source) for source in sources))

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def sources(self) -> tuple[int, ...]:
        """The base layer of each new layer, bottom first."""
        return tuple(layer.source for layer in self.layers)

    @property
    def only_copies(self) -> bool:
        """Whether every layer starts as it is in the base."""
        return all(layer.initialization == "copy" for layer in self.layers)

    def ranges(self) -> tuple[LayerRange, ...]:
        """The fewest ranges that, stacked, give this plan."""
        starts = [0, *(i + 1 for i, (low, high) in enumerate(pairwise(self.layers)) if not _continues(low, high))]
        ends = [*starts[1:], len(self)]
        return tuple(
            LayerRange(self.layers[start].source, self.layers[end - 1].source + 1, *self.layers[start][1:])
            for start, end in zip(starts, ends, strict=True)
        )

    def duplicates(self) -> tuple[int, ...]:
        """The positions of the second and later occurrences of each base layer."""
        firsts = {source: position for position, source in reversed([*enumerate(self.sources)])}
        return tuple(position for position, source in enumerate(self.sources) if position != firsts[source])

    def seams(self) -> tuple[Seam, ...]:
        """Where layers meet that were not neighbours in the base. Layers that pass their input through make none."""
        acting = [(position, layer.source) for position, layer in enumerate(self.layers) if layer.acts]
        return tuple(
            Seam(position, below, above) for (_, below), (position, above) in pairwise(acting) if above != below + 1
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready values; `from_dict` gives the plan back."""
        return {"base_layers": self.base_layers, "ranges": [as_dict(part) for part in self.ranges()]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerPlan:
        """The plan that `to_dict` wrote.

        Raises:
            PlanError: The data does not have that form.
        """
        try:
            base_layers, ranges = int(data["base_layers"]), [_read_range(part) for part in data["ranges"]]
            # Checked before it is expanded: a marker file is not trusted, and [0, 10**12] would fill the memory.
            if not all(type(part.start) is type(part.end) is int for part in ranges):
                raise TypeError("a range does not consist of whole numbers")
            if base_layers > MAX_LAYERS or not all(0 <= part.start < part.end <= base_layers for part in ranges):
                raise ValueError("a range leaves the base")
            if sum(part.end - part.start for part in ranges) > MAX_LAYERS:
                raise ValueError("too many layers")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise PlanError(
                f"{json.dumps(data, default=str)[:200]} is no layer plan; expected "
                '{"base_layers": 32, "ranges": [{"start": 0, "end": 24, "initialization": "copy"}, ..]}'
            ) from error
        layers = (PlannedLayer(source, *part[2:]) for part in ranges for source in range(part.start, part.end))
        return cls(base_layers, tuple(layers))

    def __str__(self) -> str:
        parts = [
            f"[{p.start}..{p.end - 1}]" + ("" if p.initialization == "copy" else f" as {start_words(p)}")
            for p in self.ranges()
        ]
        return f"{self.base_layers} -> {len(self)} layers: {' + '.join(parts)}"


def as_dict(part: PlannedLayer | LayerRange) -> dict[str, Any]:
    """A layer or a range as JSON-ready values, without what is not said: plans of copies look as they always did."""
    said = part._asdict() | {"arguments": dict(part.arguments)}
    return {key: value for key, value in said.items() if value or key not in ("arguments", "passes_through")}


def _read_range(data: Mapping[str, Any]) -> LayerRange:
    """What `as_dict` made of a range.

    Raises:
        KeyError, TypeError, ValueError: It has not that form.
    """
    said = {**data}
    part = LayerRange(**said | {"arguments": frozen_arguments(dict(said.get("arguments", {})))})
    if not isinstance(part.initialization, str) or not part.initialization.isprintable():
        raise TypeError("an initialization is no name")
    if not isinstance(part.passes_through, bool):
        raise TypeError("passes_through is neither true nor false")
    return part


def frozen_arguments(arguments: Mapping[str, Any]) -> Arguments:
    """Arguments in the form that a plan holds.

    Raises:
        TypeError: A value is something other than a number, a text, a truth value, or a list of these.
    """
    return tuple((name, _frozen(value)) for name, value in sorted(arguments.items()))


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r:.80} is neither a number, nor a text, nor a list of these")


def _continues(low: PlannedLayer, high: PlannedLayer) -> bool:
    return high.source == low.source + 1 and high[1:] == low[1:]
