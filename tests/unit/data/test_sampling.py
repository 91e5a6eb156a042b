from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from solar_plugins.data.mixture import choose_rows, rows_with_shares

kept_rows = st.lists(st.integers(0, 1), max_size=60).map(bytes)


def chosen(kept, rows, seed):
    return [row for row, stays in enumerate(choose_rows(kept, rows, seed)) if stays]


def test_the_choice_is_pinned():
    """Twenty rows with the seed 42, worked out from Python's documented generator: the five smallest numbers."""
    import random

    draw = random.Random(42)
    numbers = [draw.getrandbits(64) for _ in range(20)]
    assert chosen(bytes([1] * 20), 5, 42) == sorted(sorted(range(20), key=numbers.__getitem__)[:5])


@given(kept_rows, st.integers(1, 60), st.integers(0, 3))
def test_as_many_as_asked_for_all_of_them_kept_rows(kept, rows, seed):
    found = chosen(kept, rows, seed)
    assert len(found) == min(rows, sum(kept))
    assert all(kept[row] for row in found)
    assert found == chosen(kept, rows, seed)


@given(kept_rows, st.integers(1, 60), st.integers(1, 60))
def test_a_smaller_cap_chooses_a_part(kept, rows, others):
    assert set(chosen(kept, min(rows, others), 1)) <= set(chosen(kept, max(rows, others), 1))


@given(kept_rows, st.integers(1, 60), st.data())
def test_dropping_a_row_replaces_only_that_row(kept, rows, data):
    before = chosen(kept, rows, 1)
    if not before:
        return
    gone = data.draw(st.sampled_from(before))
    without = bytearray(kept)
    without[gone] = 0
    after = chosen(without, rows, 1)
    assert set(before) - {gone} <= set(after)
    assert len(set(after) - set(before)) <= 1


def test_the_seed_decides():
    assert chosen(bytes([1] * 200), 20, 1) != chosen(bytes([1] * 200), 20, 2)


def test_every_row_is_chosen_about_equally_often():
    counts = Counter(row for seed in range(2000) for row in chosen(bytes([1] * 20), 5, seed))
    assert all(400 < counts[row] < 600 for row in range(20)), "500 expected, five standard deviations are 97"


def test_no_cap_keeps_all():
    assert chosen(bytes([1, 0, 1]), None, 1) == [0, 2]


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 1000), st.integers(0, 2000)), min_size=1).map(
        lambda sets: ({k: w for k, (w, _) in sets.items()}, {k: a for k, (_, a) in sets.items()})
    )
)
def test_shares(sets):
    wanted, available = sets
    rows = rows_with_shares(wanted, available)
    for name, count in rows.items():
        assert count <= min(wanted[name], available[name])
    scarce = [name for name in wanted if rows[name] == min(wanted[name], available[name])]
    assert scarce, "the scarcest set gives all it has"
    for name in wanted:  # |rows / wanted - scale| < 1 row
        scale = rows[scarce[0]] / wanted[scarce[0]]
        assert any(abs(rows[name] - wanted[name] * rows[one] / wanted[one]) < 1 + 1e-6 for one in scarce), scale


def test_nothing_is_scarce():
    assert rows_with_shares({"a": 10, "b": 5}, {"a": 100, "b": 5}) == {"a": 10, "b": 5}
