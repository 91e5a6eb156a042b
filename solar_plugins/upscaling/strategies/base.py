"""What the arguments of initialisation strategies are made of. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from solar_plugins.errors import PlanError


class StrategyArgs(BaseModel):
    """The arguments of a strategy: its keys in ``solar.init``, its options on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _refuse_bool(value: object) -> object:
    # YAML's `yes` would become 1.
    if isinstance(value, bool):
        raise ValueError("expected a number, not a truth value")
    return value


Count = Annotated[int, BeforeValidator(_refuse_bool)]
"""A whole number, or its text on a command line."""


def _parse_ranges(value: object) -> object:
    """``"0:24,8:32"``, the form of the command line, as pairs; anything else unchanged."""
    if isinstance(value, list) and any(isinstance(part, int) for part in value):
        raise ValueError(f"expected a list of half-open ranges such as [{value}]")
    if not isinstance(value, str):
        return value
    pairs = [part.split(":") for part in value.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("expected half-open ranges such as 0:24,8:32")
    return pairs


LayerRanges = Annotated[list[Annotated[list[Count], Field(min_length=2, max_length=2)]], BeforeValidator(_parse_ranges)]
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
