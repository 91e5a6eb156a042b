import json

import pytest

from solar_plugins.data.row_tally import RowReport
from solar_plugins.errors import DataError


def report(rows_read=100, bad=(), too_long=(), examples=None):
    made = RowReport("datasets[0] (a.jsonl)", "alpaca", rows_read=rows_read)
    made.add_bad(bad)
    made.add_too_long(too_long)
    made.examples = made.rows_kept if examples is None else examples
    return made


def test_all_rows_are_kept():
    assert report().words(512) == "datasets[0] (a.jsonl) as alpaca: 100 rows read, 100 kept, 0 dropped"


def test_each_kind_is_counted_and_its_first_rows_are_named_from_1():
    found = report(bad=[(n, "output is empty") for n in range(0, 12, 2)] + [(1, "input is missing")], too_long=[98])
    assert found.words(512) == (
        "datasets[0] (a.jsonl) as alpaca: 100 rows read, 92 kept, 8 dropped: "
        "6 output is empty (rows 1, 3, 5, 7, 9, ...); 1 input is missing (row 2); "
        "1 longer than sequence_len 512 (row 99)"
    )
    assert (found.num_bad, found.too_long, found.rows_kept) == (7, 1, 92)


def test_conversations_of_several_turns():
    found = report(examples=150)
    found.shortened = 3
    assert "100 kept (giving 150 examples), 0 dropped." in found.words(8)
    assert found.words(8).endswith("Of conversations that were kept, 3 later answers are too long and were left out")


def test_many_kinds_are_summed_up():
    words = report(bad=[(n, f"kind {n:02}") for n in range(10)]).words(8)
    assert "kind 07 (row 8); 2 for 2 more reasons" in words
    assert "kind 08" not in words


def test_it_survives_its_file_and_takes_the_name_of_the_recipe_that_asks():
    found = report(bad=[(3, "output is empty")], too_long=[4])
    again = RowReport.from_dict(json.loads(found.to_json()), "datasets[7] (b.jsonl)")
    assert again.words(9) == found.words(9).replace("datasets[0] (a.jsonl)", "datasets[7] (b.jsonl)")


@pytest.mark.parametrize(
    ("found", "rule", "words"),
    [
        (report(0), ("drop", 0.5), "datasets[0] (a.jsonl): has no rows; expected rows for alpaca. Give another file"),
        (
            report(bad=[(4, "output is empty")]),
            ("stop", 1),
            "datasets[0] (a.jsonl): 1 of 100 rows cannot be read as alpaca:\n  1 output is empty (row 5)\nMend them",
        ),
        (
            report(bad=[(n, "output is empty") for n in range(3)]),
            ("drop", 0.02),
            "3 of 100 rows cannot be read as alpaca, more than the share of 0.02 that solar.data.max_bad_share allows:"
            "\n  3 output is empty (rows 1, 2, 3)\nLook whether",
        ),
        (
            report(3, too_long=range(3)),
            ("drop", 0.02),
            "none of its 3 rows is left to train on:\n  3 longer than sequence_len 64 (rows 1, 2, 3)\nRaise",
        ),
    ],
)
def test_sets_that_stop_a_run(found, rule, words):
    with pytest.raises(DataError) as error:
        found.judge(*rule, 64)
    assert words in str(error.value)


def test_sets_that_do_not():
    report(bad=[(0, "x"), (1, "x")]).judge("drop", 0.02, 64)
    report(too_long=range(99)).judge("stop", 0.0, 64)
