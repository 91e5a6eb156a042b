import json

import pytest

from solar_plugins.data.ngrams import Match, NgramIndex, Place
from solar_plugins.data.row_checks import BlockResult, Dropped, Reason, RowRules, check_block, check_row, texts_in
from solar_plugins.data.row_files import Block

INDEX = NgramIndex(3, [("one two three four", Place("gsm8k.jsonl", 7))])
RULES = RowRules(("q", "a"), "task", frozenset({"cot_gsm8k"}))


def block(*rows, first_row=1):
    return Block("f.jsonl", first_row, [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows], 9)


def test_a_block_with_one_of_each():
    result = check_block(
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
    assert result == BlockResult(
        kept=bytes([1, 0, 0, 0, 0, 0, 0]),
        rows=6,
        dropped=[
            Dropped("f.jsonl", 13, Reason.MISSING_TEXT, "a", "the column is missing"),
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


def test_parts_of_one_content_are_one_text_as_training_reads_them():
    parts = [{"type": "text", "text": text} for text in ("So: one two", " three", " and")]
    rules = RowRules(("messages",))
    row = {"messages": [{"role": "user", "content": parts}]}
    assert check_row(row, rules, INDEX)[:3] == (Reason.BENCHMARK_OVERLAP, "messages", "one two three")
    apart = {"messages": [{"role": "user", "content": [part]} for part in parts]}
    assert check_row(apart, rules, INDEX) is None, "messages are texts of their own"


@pytest.mark.parametrize("value", [None, 5, [], {}, [{"n": 1}]])
def test_values_without_text(value):
    assert list(texts_in(value)) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"q": ', "the row is not JSON (Expecting value)"),
        (b'{"q": "", "a": ""},', "the row is not JSON (extra characters after the object"),
        (b"\xff", "the row is not UTF-8"),
        (b'{"q": "\xed\xa0\xbd"}', "the row is not UTF-8"),  # half a character, as UTF-8 cannot be
        (b"[" * 100_000, "the row is not JSON (maximum recursion depth exceeded"),
        (b"1" * 5000, "the row is not JSON (Exceeds the limit"),
        (b'"text"', "the row has type str, expected"),
        (b"[1]", "the row has type list, expected"),
        (b"null", "the row has type NoneType, expected"),
    ],
)
def test_a_line_that_is_no_row_is_one_bad_row(line, problem):
    result = check_block(block({"q": "", "a": ""}, b"", line, {"q": "", "a": ""}), RULES, INDEX)
    assert (result.kept, result.rows) == (bytes([1, 0, 0, 1]), 3)
    [dropped] = result.dropped
    assert (dropped.row, dropped.reason, dropped.column) == (3, Reason.UNREADABLE, "")
    assert dropped.value.startswith(problem)


def test_half_a_character_in_a_text_column_is_unreadable_and_elsewhere_is_not_read():
    row = {"q": "", "a": [{"content": "half \ud83d"}]}
    reason, column, value, _ = check_row(row, RULES, INDEX)
    assert (reason, column) == (Reason.UNREADABLE, "a")
    assert "'\\ud83d'" in value
    assert check_row({"q": "", "a": "", "note": "\ud83d"}, RULES, INDEX) is None
