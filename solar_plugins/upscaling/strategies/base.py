"""The interface of upscaling strategies, and the types of their arguments. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from solar_plugins.errors import PlanError, PluginError
from solar_plugins.solar_block import NoTruthValue
from solar_plugins.upscaling.layer_plan import MAX_LAYERS, LayerPlan


class StrategyArgs(BaseModel):
    """Base class for the arguments of a strategy: keys in ``solar.init``, options on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


@dataclass(frozen=True, slots=True)
class InitStrategy[ArgsT: StrategyArgs]:
    """A named way to build a deeper model.

    Args:
        name: The value of ``solar.init.strategy``.
        args: Validates the strategy's arguments. Values from the command line are strings.
        plan: Pure function from the base's depth and the arguments to the plan. It raises `PlanError` for arguments
            that are impossible at this depth, with a message that starts with the argument's name.
        summary: A one-line description.
        source: Where it was published.
    """

    name: str
    args: type[ArgsT]
    plan: Callable[[int, ArgsT], LayerPlan]
    summary: str
    source: str = ""

    def __post_init__(self) -> None:
        require_args(self.name, self.args)


def require_args(name: str, args: object) -> None:
    """Check the ``args`` of a plugin's strategy or initializer.

    Raises:
        PluginError: It is not a subclass of `StrategyArgs`.
    """
    if not (isinstance(args, type) and issubclass(args, StrategyArgs)):
        raise PluginError(f"{name}: args is {args!r:.100}, expected a subclass of StrategyArgs")


Count = Annotated[int, NoTruthValue]
"""An integer, or a string from the command line."""


def parse_ranges(value: object) -> object:
    """Convert ``"0:24,8:32"``, as on the command line, to pairs. Other values are unchanged."""
    if isinstance(value, list) and any(isinstance(part, int) for part in value):
        raise ValueError(f"expected a list of half-open ranges such as [{value}]")
    if not isinstance(value, str):
        return value
    pairs = [part.split(":") for part in value.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("expected half-open ranges such as 0:24,8:32")
    return pairs


def _parse_pair(value: object) -> object:
    """Convert ``"0:24"``, as on the command line, to a pair. Other values are unchanged."""
    return value.split(":") if isinstance(value, str) else value


LayerPair = Annotated[list[Count], Field(min_length=2, max_length=2), BeforeValidator(_parse_pair)]
"""A half-open range of layers: ``[0, 24]``, or ``0:24``."""

LayerRanges = Annotated[list[LayerPair], BeforeValidator(parse_ranges)]
"""Half-open ranges of base layers: ``[[0, 24], [8, 32]]``, or ``0:24,8:32`` on the command line."""


def require_ranges(key: str, ranges: Iterable[Sequence[int]], num_layers: int) -> None:
    """Refuse ranges that are empty, reversed or outside a base of ``num_layers`` layers.

    Raises:
        PlanError: There is such a range. ``key`` is the name of the argument.
    """
    for start, end in ranges:
        if not 0 <= start < end <= num_layers:
            raise PlanError(
                f"{key}: [{start}, {end}] is not a range of a base of {num_layers} layers; expected [start, end) with "
                f"0 <= start < end <= {num_layers}"
            )


def repeated(num_layers: int, blocks: Sequence[Sequence[int]], times: int) -> LayerPlan:
    """The base with each block repeated ``times`` in a row. The blocks must be sorted and must not overlap."""
    most = 1 + (MAX_LAYERS - num_layers) // sum(end - start for start, end in blocks)
    if not 1 <= times <= most:
        raise PlanError(
            f"times: {times} is impossible for a base of {num_layers} layers; expected 1 (the base unchanged) to "
            f"{most:,} (at most {MAX_LAYERS:,} layers in total)"
        )
    sources: list[int] = []
    done = 0
    for start, end in blocks:
        sources += [*range(done, start), *(list(range(start, end)) * times)]
        done = end
    return LayerPlan.from_sources(num_layers, [*sources, *range(done, num_layers)])
