from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_plugins.data.row_selection import Examples, held_out, shard, share
from solar_plugins.errors import DataError

OPENINGS = st.lists(st.integers(min_value=-(2**63), max_value=2**63 - 1), min_size=1, max_size=40)


def one_row_each(openings):
    return Examples(range(len(openings)), openings)


def rows_in(dataset, openings):
    return {row for row, opening in zip(*dataset, strict=True) if opening in openings}


@given(OPENINGS, st.integers(min_value=1, max_value=6))
def test_shards_together_have_each_opening_once_and_about_as_many(openings, num_shards):
    shards = [shard(one_row_each(openings), num_shards, index, 1) for index in range(num_shards)]
    assert Counter(opening for found in shards for opening in found) == Counter(set(openings))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@given(OPENINGS, st.fractions(min_value=Fraction(1, 100), max_value=1), st.integers())
def test_a_share_never_has_more_rows_than_asked(openings, weight, seed):
    dataset = one_row_each(openings)
    found = share(dataset, float(weight), seed)
    wanted = max(1, int(len(openings) * float(weight)))
    assert len(rows_in(dataset, found)) <= wanted
    assert len(rows_in(dataset, found)) == wanted or len(set(openings)) < len(openings), (
        "equal where all begin otherwise"
    )
    assert found == share(Examples([*reversed(dataset.rows)], [*reversed(openings)]), float(weight), seed)


def test_the_examples_of_a_row_count_once():
    dataset = Examples([row for row in range(10) for _ in range(3)], [row for row in range(10) for _ in range(3)])
    assert len(held_out([dataset], 0.2, 1)) == 2
    assert len(held_out([dataset], 4, 1)) == 4
    assert len(held_out([dataset], 0.11, 1)) == 2, "rounded up, as train_test_split does"
    assert len(share(dataset, 0.5, 1)) == 5


def test_several_datasets_are_split_together():
    first, second = one_row_each([*range(20)]), one_row_each([*range(10, 40)])
    found = held_out([first, second], 0.2, 1)
    assert len(rows_in(first, found)) + len(rows_in(second, found)) == 10
    assert found != held_out([first, second], 0.2, 2), "by the seed"
    assert found == held_out([second, first], 0.2, 1)


def test_large_groups_stay_in_training():
    assert held_out([one_row_each([7] * 30 + [*range(100, 110)])], 5, 1).isdisjoint({7})


@pytest.mark.parametrize(
    ("openings", "size", "words"),
    [
        ([1, 2, 3], 3, "val_set_size: 3 of 3 rows; expected a share"),
        ([1, 2, 3], 1.0, "val_set_size: 1 of 3 rows; expected a share"),
        ([1, 2], 99, "val_set_size: 99 of 2 rows; expected a share"),
        ([7] * 9, 0.5, "val_set_size: 0.5 of 9 rows cannot be held out"),
    ],
)
def test_impossible_held_out_splits_are_errors(openings, size, words):
    with pytest.raises(DataError) as error:
        held_out([one_row_each(openings)], size, 1)
    assert str(error.value).startswith(words)
