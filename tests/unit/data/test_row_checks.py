import json
import os
import signal

import pytest

from solar_plugins.data import row_checks
from solar_plugins.data.mixture_args import DecontaminateArgs
from solar_plugins.data.ngrams import Match, NgramIndex, Place
from solar_plugins.data.row_checks import (
    BlockResult,
    Dropped,
    Reason,
    RowRules,
    Scanner,
    benchmark_index,
    check_block,
    check_row,
    default_processes,
    texts_in,
)
from solar_plugins.data.row_files import Block
from solar_plugins.errors import DataError

INDEX = NgramIndex(3, [("one two three four", Place("gsm8k.jsonl", 7))])
RULES = RowRules(("q", "a"), "task", frozenset({"cot_gsm8k"}))


def block(*rows, first_row=1):
    return Block("f.jsonl", first_row, [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows], 9)


def test_each_kind_of_bad_row_in_a_block_is_counted():
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


def test_a_task_is_excluded_by_its_full_name():
    row = {"q": "", "a": "", "task": "cot_gsm8k_ii"}
    assert check_row(row, RULES, INDEX) is None
    assert check_row(row | {"task": "cot_gsm8k"}, RULES, INDEX)[0] is Reason.EXCLUDED_TASK
    assert check_row(row | {"task": "cot_gsm8k"}, RowRules(("q", "a")), INDEX) is None, "no column is named"


def test_messages_are_compared_and_other_columns_are_not():
    row = {"q": [{"role": "user", "content": "one two three"}], "a": "", "other": "two three four"}
    assert check_row(row, RULES, INDEX)[1:3] == ("q", "one two three")
    assert check_row(row, RowRules(("a",)), INDEX) is None
    assert check_row(row, RULES, None) is None


def test_an_ngram_does_not_span_columns():
    assert check_row({"q": "one two", "a": "three four"}, RULES, INDEX) is None


def test_content_parts_are_joined_as_in_training():
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
def test_an_unreadable_line_is_one_bad_row(line, problem):
    result = check_block(block({"q": "", "a": ""}, b"", line, {"q": "", "a": ""}), RULES, INDEX)
    assert (result.kept, result.rows) == (bytes([1, 0, 0, 1]), 3)
    [dropped] = result.dropped
    assert (dropped.row, dropped.reason, dropped.column) == (3, Reason.UNREADABLE, "")
    assert dropped.value.startswith(problem)


def test_unpaired_surrogates_matter_in_text_columns_only():
    row = {"q": "", "a": [{"content": "half \ud83d"}]}
    reason, column, value, _ = check_row(row, RULES, INDEX)
    assert (reason, column) == (Reason.UNREADABLE, "a")
    assert "'\\ud83d'" in value
    assert check_row({"q": "", "a": "", "note": "\ud83d"}, RULES, INDEX) is None


def index_of(*against, ngram=3):
    return benchmark_index(DecontaminateArgs.model_validate({"against": against, "ngram": ngram}))


def test_rows_and_lines(tmp_path):
    rows = [{"question": "a b c d", "choices": {"text": ["e f g", "yes"]}, "answer": "h i j"}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.txt").write_text("k l m\n\nn o p\n")
    found = index_of(
        {"path": str(tmp_path / "b.jsonl"), "columns": ["question", "choices"]}, {"path": str(tmp_path / "b.txt")}
    )
    assert found.match("b c d").benchmark == Place(str(tmp_path / "b.jsonl"), 1)
    assert found.match("e f g").benchmark == Place(str(tmp_path / "b.jsonl"), 1)
    assert found.match("n o p").benchmark == Place(str(tmp_path / "b.txt"), 3)
    assert found.match("h i j") is None, "this column is not named"
    assert len(found) == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "b.jsonl",
            '{"question": "a"}\n{"q": "b"}\n',
            r"row 2 has no text in the column 'question'; its columns are q",
        ),
        ("b.jsonl", '{"question": 5}', r"row 1 has no text in the column 'question'"),
        ("b.jsonl", "[5]", r"row 1: .*int, expected a JSON object"),
        ("b.jsonl", '{"question": "a"}\n{', r"row 2: the row is not JSON \(Expecting property name.*b'{'"),
        ("b.jsonl", "", r"b\.(jsonl|txt): no text"),
        ("b.jsonl", '{"question": " "}', r"b\.(jsonl|txt): no text"),
        ("b.txt", " \n", r"b\.(jsonl|txt): no text"),
    ],
)
def test_unusable_benchmarks_are_rejected(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    columns = {} if name.endswith(".txt") else {"columns": "question"}
    with pytest.raises(DataError, match=message):
        index_of({"path": str(tmp_path / name), **columns})


def test_a_text_file_in_another_encoding(tmp_path):
    (tmp_path / "b.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        index_of({"path": str(tmp_path / "b.txt")})


BAD_WORDS = NgramIndex(2, [("bad words", Place("b", 1))])


def blocks():
    for at in range(40):
        texts = ["fine", "bad words"] * (40 - at)  # the first take longest, but still come first
        yield Block("f", at, [json.dumps({"text": text}).encode() for text in texts], 1)


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_order_from_any_number_of_processes(processes):
    with Scanner(BAD_WORDS, processes) as scanner:
        found = list(scanner.results(blocks(), RowRules(("text",))))
    assert [block for block, _ in found] == list(blocks())
    for block, result in found:
        assert result.kept == bytes([1, 0]) * (len(block.lines) // 2)
        assert {one.reason for one in result.dropped} == {Reason.BENCHMARK_OVERLAP}


def test_few_blocks_are_read_ahead():
    read = []

    def counted():
        for block in blocks():
            read.append(block)
            yield block

    with Scanner(None, 2) as scanner:
        next(scanner.results(counted(), RowRules(("text",))))
    assert len(read) == 5


@pytest.mark.parametrize("processes", [1, 2])
def test_an_unreadable_line_is_dropped_and_reading_continues(processes):
    damaged = Block("f", 7, [b'{"text": "x"}', b"{"], 1)
    with Scanner(None, processes) as scanner:
        results = list(scanner.results([damaged, *blocks()], RowRules(("text",))))
    assert len(results) == 1 + len(list(blocks()))
    [dropped] = results[0][1].dropped
    assert (dropped.row, dropped.reason) == (8, Reason.UNREADABLE)


def test_a_killed_worker_is_an_error_not_a_hang(monkeypatch):
    monkeypatch.setattr(row_checks, "_check", _killed)
    with Scanner(None, 2) as scanner, pytest.raises(DataError, match="was killed"):
        list(scanner.results(blocks(), RowRules(("text",))))


def _killed(block, rules):
    os.kill(os.getpid(), signal.SIGKILL)


def test_small_files_need_no_processes():
    assert default_processes(1000) == 1
    assert default_processes(10**10) == min(len(os.sched_getaffinity(0)), 8)
