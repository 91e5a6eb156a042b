import pytest
from pydantic import ValidationError

from solar_plugins.errors import PlanError
from solar_plugins.upscaling.strategies.base import Count, LayerRanges, StrategyArgs, require_ranges


class Args(StrategyArgs):
    count: Count | None = None
    ranges: LayerRanges | None = None


@pytest.mark.parametrize("value", [8, "8"])
def test_a_count_is_a_number_or_its_text(value):
    assert Args(count=value).count == 8


@pytest.mark.parametrize("value", [True, False, "eight", 2.5, "2.5"])
def test_invalid_counts_are_rejected(value):
    with pytest.raises(ValidationError, match="not true or false" if isinstance(value, bool) else "valid integer"):
        Args(count=value)


@pytest.mark.parametrize("value", ["0:24,8:32", [[0, 24], [8, 32]], [["0", "24"], ["8", "32"]]])
def test_ranges_as_an_option_and_as_yaml(value):
    assert Args(ranges=value).ranges == [[0, 24], [8, 32]]


@pytest.mark.parametrize("value", ["0-24", "0:24:2", "", [[0, 24, 3]], [[0]], [[0, True]], 24])
def test_invalid_ranges_are_rejected(value):
    with pytest.raises(ValidationError):
        Args(ranges=value)


def test_one_range_without_its_list_is_shown_with_it():
    with pytest.raises(ValidationError, match=r"expected a list of half-open ranges such as \[\[0, 24\]\]"):
        Args(ranges=[0, 24])


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Args(counts=1)


def test_ranges_lie_in_the_base():
    require_ranges("key", [[0, 1], [0, 32], [31, 32]], 32)
    for start, end in ([8, 33], [8, 4], [4, 4], [-1, 4], [32, 33]):
        with pytest.raises(
            PlanError, match=rf"^key: \[{start}, {end}\] is not a range of a base of 32 layers; .* <= 32$"
        ):
            require_ranges("key", [[0, 1], [start, end]], 32)
