import json
from collections import namedtuple

import pytest

from solar_plugins.data.formatters.base import NothingToLearn, RowError
from solar_plugins.data.row_tally import RowTally
from solar_plugins.errors import DataError

Example = namedtuple("Example", "too_long cut num_tokens notes", defaults=(False, False, 0, ()))
PLAIN, LONG, CUT = Example(), Example(too_long=True), Example(cut=True)


def tally(rows_read=100, bad=(), too_long=(), examples=(PLAIN,)):
    """Rows of which some are bad or too long, by their index; the others give the same examples."""
    made, problems = RowTally("datasets[0] (a.jsonl)", "alpaca"), dict(bad)
    for index in range(rows_read):
        if index in problems:
            made.add_bad(index, problems[index])
        else:
            made.add(index, [LONG] if index in too_long else examples)
    return made


def test_all_rows_are_kept():
    assert tally().summary(512) == "datasets[0] (a.jsonl) as alpaca: 100 rows read, 100 kept, 0 dropped"


def test_each_kind_is_counted_and_its_first_rows_are_named_from_1():
    found = tally(bad=[(n, "output is empty") for n in range(0, 12, 2)] + [(1, "input is missing")], too_long=[98])
    assert found.summary(512) == (
        "datasets[0] (a.jsonl) as alpaca: 100 rows read, 92 kept, 8 dropped: "
        "6 output is empty (rows 1, 3, 5, 7, 9, ...); 1 input is missing (row 2); "
        "1 longer than sequence_len 512 (row 99)"
    )
    assert (found.num_bad, found.too_long, found.rows_kept) == (7, 1, 92)


def test_conversations_of_several_turns():
    found = tally(3, examples=[Example(), Example(), LONG])
    assert (found.examples, found.examples_too_long, found.too_long) == (6, 3, 0)
    assert found.summary(8) == (
        "datasets[0] (a.jsonl) as alpaca: 3 rows read, 3 kept (6 examples), 0 dropped. "
        "3 later answers of kept conversations are too long and were left out"
    )


def test_repeated_turns_are_reported():
    """Eight turns of one length: the examples have 1 + 2 + ... + 8 turns, 4.5 times the conversation's 8."""
    words = tally(2, examples=[Example(num_tokens=100 * turns) for turns in range(1, 9)]).summary(8)
    assert "The examples have 4.5 times the tokens of the conversations" in words
    assert "solar: {data: {examples_per: conversation}}" in words
    assert "times the tokens" not in tally(2, examples=[Example(num_tokens=9)]).summary(8)


def test_valid_rows_without_an_example_are_reported_but_not_bad():
    found = tally(10)
    for index in range(10, 30):
        found.add_error(index, NothingToLearn("status", "is tie"))
    found.add_error(30, RowError("chosen", "is empty"))
    assert (found.num_bad, found.rows_kept, found.rows_read) == (1, 10, 31)
    assert "21 dropped: 20 status is tie (rows 11, 12, 13, 14, 15, ...); 1 chosen is empty (row 31)" in found.summary(8)
    found.judge("drop", 0.04, 8)
    with pytest.raises(DataError, match="1 of 31 rows"):
        found.judge("stop", 1, 8)


def test_omitted_parts_of_rows_are_counted():
    assert (
        tally(2, examples=[Example(notes=("answer set aside",) * 2)])
        .summary(8)
        .endswith("0 dropped. 4 answer set aside (rows 1, 1, 2, 2)")
    )


def test_a_row_is_too_long_if_all_of_its_examples_are():
    found = tally(2, examples=[LONG, LONG])
    assert (found.too_long, found.examples_too_long, found.rows_kept) == (2, 0, 0)


def test_truncated_examples_are_counted():
    assert (
        tally(2, examples=[CUT, Example()])
        .summary(8)
        .endswith("2 kept (4 examples), 0 dropped. 2 of 4 examples are truncated at sequence_len 8")
    )
    assert tally(2, examples=[Example(too_long=True, cut=True), Example()]).cut == 0, "it was left out"


def test_the_first_bad_rows_come_in_the_order_of_the_dataset():
    found = tally(bad=[(9, "b"), (4, "a"), (7, "b"), (50, "a"), (51, "c"), (52, "c")])
    assert found.first_bad == [(5, "a"), (8, "b"), (10, "b"), (51, "a"), (52, "c")]


def test_many_kinds_of_problems_are_summarized():
    words = tally(bad=[(n, f"kind {n:02}") for n in range(10)]).summary(8)
    assert "kind 07 (row 8); 2 for 2 other reasons" in words
    assert "kind 08" not in words


def test_json_round_trip_with_another_dataset_name():
    found = tally(bad=[(3, "output is empty")], too_long=[4])
    again = RowTally.from_dict(json.loads(found.to_json()), "datasets[7] (b.jsonl)")
    assert again.summary(9) == found.summary(9).replace("datasets[0] (a.jsonl)", "datasets[7] (b.jsonl)")


@pytest.mark.parametrize(
    ("found", "rule", "words"),
    [
        (tally(0), ("drop", 0.5), "datasets[0] (a.jsonl): no rows; expected rows for alpaca"),
        (
            tally(bad=[(4, "output is empty")]),
            ("stop", 1),
            "datasets[0] (a.jsonl): 1 of 100 rows cannot be read as alpaca:\n  1 output is empty (row 5)\nFix them",
        ),
        (
            tally(bad=[(n, "output is empty") for n in range(3)]),
            ("drop", 0.02),
            "3 of 100 rows cannot be read as alpaca, more than the share of 0.02 that solar.data.max_bad_share allows:"
            "\n  3 output is empty (rows 1, 2, 3)\nFix the rows",
        ),
        (
            tally(3, too_long=range(3)),
            ("drop", 0.02),
            "none of its 3 rows is left to train on:\n  3 longer than sequence_len 64 (rows 1, 2, 3)\nRaise",
        ),
    ],
)
def test_datasets_that_stop_a_run(found, rule, words):
    with pytest.raises(DataError) as error:
        found.judge(*rule, 64)
    assert words in str(error.value)


def test_a_broken_formatter_is_not_blamed_on_the_rows():
    found = tally(2, bad=[(n, "alpaca failed with TypeError: x (mine.py:3)") for n in range(2)])
    for rule in ("drop", "stop"):
        with pytest.raises(DataError, match="Fix the formatter alpaca"):
            found.judge(rule, 0.02, 64)
    found.add_bad(2, "output is empty")
    with pytest.raises(DataError, match="Fix the rows"):
        found.judge("drop", 0.02, 64)


def test_datasets_that_do_not():
    tally(bad=[(0, "x"), (1, "x")]).judge("drop", 0.02, 64)
    tally(too_long=range(99)).judge("stop", 0.0, 64)
