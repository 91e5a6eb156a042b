"""The plans that a probe compares: every contiguous repeat of the base, or those from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from solar_plugins.errors import ArgsError, SolarError
from solar_plugins.solar_block import InitArgs
from solar_plugins.storage.untrusted import parse_yaml, read_text
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.strategies import plan_of


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan and its ``solar.init``.

    Args:
        plan: The plan.
        init: Strategy and arguments, as in a recipe.
        block: ``(start, end)`` if the plan repeats layers ``[start, end)``, else None.
    """

    plan: LayerPlan
    init: Mapping[str, object]
    block: tuple[int, int] | None = None

    @property
    def added(self) -> int:
        """The number of added layers."""
        return len(self.plan) - self.plan.base_layers

    @property
    def is_dus(self) -> bool:
        """Whether it is depth up-scaling: the two copies drop the same number of layers."""
        return self.block is not None and self.block[0] == self.plan.base_layers - self.block[1]


def repeat(num_layers: int, start: int, end: int) -> Candidate:
    """Repeat layers ``[start, end)``: the base up to ``end``, then the base from ``start``.

    Example:
        >>> str(repeat(32, 8, 24).plan), repeat(32, 8, 24).is_dus
        ('32 -> 48 layers: [0..23] + [8..31]', True)
    """
    plan = LayerPlan.from_sources(num_layers, [*range(end), *range(start, num_layers)])
    if start == num_layers - end:
        init: dict[str, object] = {"strategy": "dus", "drop_layers": start}
    else:
        init = {"strategy": "slices", "slices": [[0, end], [start, num_layers]]}
    return Candidate(plan, init, (start, end))


def every_repeat(num_layers: int) -> list[Candidate]:
    """Every repeat of a contiguous block of the base: n (n + 1) / 2 plans, with 1 to n added layers."""
    return [repeat(num_layers, start, end) for start in range(num_layers) for end in range(start + 1, num_layers + 1)]


def read_candidates(path: Path, num_layers: int) -> list[Candidate]:
    """The plans of a YAML file: a list of ``solar.init`` blocks, also with strategies of other packages.

    Raises:
        ArgsError: The file is not such a list, or a plan is impossible for this base.
        PluginError: A strategy is not registered.
    """
    content = parse_yaml(read_text(path), str(path))
    if not isinstance(content, list) or not content:
        raise ArgsError(f"{path}: expected a list of plans, such as\n- {{strategy: dus, drop_layers: 8}}")
    return [_candidate(path, number, init, num_layers) for number, init in enumerate(content, start=1)]


def _candidate(path: Path, number: int, init: object, num_layers: int) -> Candidate:
    try:
        args = InitArgs.model_validate(init)
    except ValidationError:
        raise ArgsError(
            f"{path}, plan {number}: {init!r:.200} is not a plan; expected a map with a strategy and its arguments, "
            "such as {strategy: dus, drop_layers: 8}"
        ) from None
    try:
        plan = plan_of(args, num_layers, where="")
    except SolarError as error:
        raise type(error)(f"{path}, plan {number}: {error}") from None
    if plan.donors:
        raise ArgsError(
            f"{path}, plan {number}: takes layers from {', '.join(donor.name for donor in plan.donors)}, but a probe "
            "loads only the base; expected layers of the base. Build the model with solar upscale and evaluate that"
        )
    return Candidate(plan, args.model_dump(exclude_none=True), _block(plan))


def _block(plan: LayerPlan) -> tuple[int, int] | None:
    sources = [layer.source for layer in plan.layers]
    seams = [index for index in range(1, len(sources)) if sources[index] != sources[index - 1] + 1]
    if len(seams) != 1 or not plan.only_copies:
        return None
    start, end = sources[seams[0]], seams[0]
    return (start, end) if start < end and sources == [*range(end), *range(start, plan.base_layers)] else None
