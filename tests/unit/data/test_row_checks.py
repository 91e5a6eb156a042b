import json

import pytest

from solar_plugins.data.ngrams import Match, NgramIndex, Place
from solar_plugins.data.row_checks import BlockVerdict, Dropped, Reason, RowRules, check_block, check_row, texts_in
from solar_plugins.data.row_files import Block
from solar_plugins.errors import DataError

INDEX = NgramIndex(3, [("one two three four", Place("gsm8k.jsonl", 7))])
RULES = RowRules(("q", "a"), "task", frozenset({"cot_gsm8k"}))


def block(*rows, first_row=1):
    return Block("f.jsonl", first_row, [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows], 9)


def test_a_block_with_one_of_each():
    verdict = check_block(
        block(
            {"q": "x", "a": "", "task": "other"},
            b" \r",
            {"q": "x"},
            {"q": "x", "a": None},
            {"q": "x", "a": 5},
            {"q": "x", "a": "y", "task": " cot_gsm8k"},
            {"q": "x", "a": "say: Two, three FOUR!", "task": 3},
            first_row=11,
        ),
        RULES,
        INDEX,
    )
    assert verdict == BlockVerdict(
        kept=bytes([1, 0, 0, 0, 0, 0, 0]),
        rows=6,
        dropped=[
            Dropped("f.jsonl", 13, Reason.MISSING_TEXT, "a", "no such column"),
            Dropped("f.jsonl", 14, Reason.MISSING_TEXT, "a", "None"),
            Dropped("f.jsonl", 15, Reason.MISSING_TEXT, "a", "5"),
            Dropped("f.jsonl", 16, Reason.EXCLUDED_TASK, "task", "cot_gsm8k"),
            Dropped(
                "f.jsonl", 17, Reason.BENCHMARK_OVERLAP, "a", "two three four",
                Match("two three four", Place("gsm8k.jsonl", 7)),
            ),
        ],
        rows_with_task=2,
        columns=("q", "a", "task"),
    )  # fmt: skip


def test_a_task_is_excluded_by_its_whole_name():
    row = {"q": "", "a": "", "task": "cot_gsm8k_ii"}
    assert check_row(row, RULES, INDEX) is None
    assert check_row(row | {"task": "cot_gsm8k"}, RULES, INDEX)[0] is Reason.EXCLUDED_TASK
    assert check_row(row | {"task": "cot_gsm8k"}, RowRules(("q", "a")), INDEX) is None, "no column is named"


def test_messages_are_texts_and_columns_that_are_not_named_are_not_compared():
    row = {"q": [{"role": "user", "content": "one two three"}], "a": "", "other": "two three four"}
    assert check_row(row, RULES, INDEX)[1:3] == ("q", "one two three")
    assert check_row(row, RowRules(("a",)), INDEX) is None
    assert check_row(row, RULES, None) is None


def test_an_ngram_does_not_reach_from_one_column_into_the_next():
    assert check_row({"q": "one two", "a": "three four"}, RULES, INDEX) is None


@pytest.mark.parametrize("value", [None, 5, [], {}, [{"n": 1}]])
def test_values_without_text(value):
    assert list(texts_in(value)) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"q": ', r"^f\.jsonl: row 3 is not readable JSON .*expected an object on the line.*It begins b'\{\"q\": '"),
        (b"\xff", r"row 3 is not readable JSON"),
        (b"[" * 100_000, r"row 3 is not readable JSON"),
        (b'"text"', r"^f\.jsonl: row 3 is a str, expected an object"),
        (b"[1]", r"row 3 is a list, expected an object"),
        (b"null", r"row 3 is a NoneType, expected an object"),
    ],
)
def test_lines_that_are_no_row(line, message):
    with pytest.raises(DataError, match=message):
        check_block(block({"q": "", "a": ""}, b"", line), RULES, INDEX)
