"""What an initialisation strategy is made of, and what its arguments are made of. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from solar_plugins.errors import PlanError, PluginError
from solar_plugins.solar_block import NoTruthValue
from solar_plugins.upscaling.layer_plan import MAX_LAYERS, LayerPlan


class StrategyArgs(BaseModel):
    """The arguments of a strategy: its keys in ``solar.init``, its options on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


@dataclass(frozen=True, slots=True)
class InitStrategy[ArgsT: StrategyArgs]:
    """A named way to build a deeper model.

    Args:
        name: What ``solar.init.strategy`` says.
        args: Validates the strategy's arguments. Values from a command line arrive as text.
        plan: Pure function from the base's depth and the arguments to the plan. It raises `PlanError`, whose text
            starts with the name of the argument, for arguments that are impossible at this depth.
        summary: One line for people.
        source: Where it is published.
    """

    name: str
    args: type[ArgsT]
    plan: Callable[[int, ArgsT], LayerPlan]
    summary: str
    source: str = ""

    def __post_init__(self) -> None:
        require_args(self.name, self.args)


def require_args(name: str, args: object) -> None:
    """Check what a plugin's author gave as the arguments of a strategy or an initializer.

    Raises:
        PluginError: It is no subclass of `StrategyArgs`.
    """
    if not (isinstance(args, type) and issubclass(args, StrategyArgs)):
        raise PluginError(f"{name}: args is {args!r:.100}, expected a subclass of StrategyArgs")


Count = Annotated[int, NoTruthValue]
"""A whole number, or its text on a command line."""


def parse_ranges(value: object) -> object:
    """``"0:24,8:32"``, the form of the command line, as pairs; anything else unchanged."""
    if isinstance(value, list) and any(isinstance(part, int) for part in value):
        raise ValueError(f"expected a list of half-open ranges such as [{value}]")
    if not isinstance(value, str):
        return value
    pairs = [part.split(":") for part in value.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("expected half-open ranges such as 0:24,8:32")
    return pairs


def _parse_pair(value: object) -> object:
    """``"0:24"``, the form of the command line, as a pair; anything else unchanged."""
    return value.split(":") if isinstance(value, str) else value


LayerPair = Annotated[list[Count], Field(min_length=2, max_length=2), BeforeValidator(_parse_pair)]
"""A half-open range of layers: ``[0, 24]``, or ``0:24``."""

LayerRanges = Annotated[list[LayerPair], BeforeValidator(parse_ranges)]
"""Half-open ranges of base layers: ``[[0, 24], [8, 32]]``, as an option ``0:24,8:32``."""


def require_ranges(key: str, ranges: Iterable[Sequence[int]], num_layers: int) -> None:
    """Refuse ranges that are empty, backwards or leave a base of ``num_layers`` layers.

    Raises:
        PlanError: One is; ``key`` is the argument that holds them.
    """
    for start, end in ranges:
        if not 0 <= start < end <= num_layers:
            raise PlanError(
                f"{key}: [{start}, {end}] is no range of a base of {num_layers} layers; a range is [start, end) with "
                f"0 <= start < end <= {num_layers}"
            )


def repeated(num_layers: int, blocks: Sequence[Sequence[int]], times: int) -> LayerPlan:
    """The base with each of its ``blocks``, which are in order and do not overlap, ``times`` in a row."""
    most = 1 + (MAX_LAYERS - num_layers) // sum(end - start for start, end in blocks)
    if not 1 <= times <= most:
        raise PlanError(
            f"times: {times} is impossible for a base of {num_layers} layers; allowed are 1 (the base as it is) to "
            f"{most:,} (no more than {MAX_LAYERS:,} layers in all)"
        )
    sources: list[int] = []
    done = 0
    for start, end in blocks:
        sources += [*range(done, start), *(list(range(start, end)) * times)]
        done = end
    return LayerPlan.from_sources(num_layers, [*sources, *range(done, num_layers)])
