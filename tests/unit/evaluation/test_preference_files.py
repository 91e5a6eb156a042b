import json

import pytest

from solar_plugins.data.row_encoder import RowEncoder
from solar_plugins.data.row_tally import RowTally
from solar_plugins.errors import DataError
from solar_plugins.evaluation.sdpo_order import encoded_pairs, find_file, sampled_rows

USER = {"role": "user", "content": "Why?"}
ROW = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (ROW, "preference"),
        ({"system": "", "question": "q", "chosen": "c", "rejected": "r"}, "orca_dpo_pairs"),
        ({"chosen": [USER, assistant("c")], "rejected": [USER, assistant("r")]}, "ultrafeedback_binarized"),
        ({"instruction": "i", "completions": []}, "ultrafeedback_scores"),
        ({"conversations": [], "chosen": {}, "rejected": {}}, "sharegpt_pairs"),
        ({"rephrased_question": "q", "rephrased_answer": "a", "original_answer": "b"}, "math_pairs"),
    ],
)
def test_the_formatter_is_detected_by_columns(tmp_path, row, name):
    found = find_file(write(tmp_path / "set.jsonl", row, "", row), None)
    assert found.formatter.name == name
    assert found.num_rows == 2


def test_the_formatter_is_detected_despite_bad_rows(tmp_path):
    question = {"question": "q", "chosen": "c", "rejected": "r"}
    path = write(tmp_path / "set.jsonl", "{cut", question | {"question": None}, question)
    assert find_file(path, None).formatter.name == "orca_dpo_pairs"


def test_type_selects_the_formatter(tmp_path):
    path = write(tmp_path / "set.jsonl", ROW)
    assert find_file(path, "ultrafeedback_binarized").formatter.name == "ultrafeedback_binarized"
    assert find_file(path, "prompt_and_answers").formatter.name == "preference"
    with pytest.raises(DataError, match=r"--type: 'orca' .* known: hh_rlhf, math_pairs, orca_dpo_pairs"):
        find_file(path, "orca")


def test_columns_are_not_detected_from_a_single_row(tmp_path):
    """The first row of a set may be cut, lack a column, or look like another shape."""
    argilla = {"system": "s", "input": "u", "chosen": "a", "rejected": "b"}
    orca = {"system": "s", "question": "u", "chosen": "a", "rejected": "b"}
    for odd in ("{cut", orca, {"chosen": None}, argilla | {"input": ""}):
        assert find_file(write(tmp_path / "set.jsonl", odd, argilla, argilla), None).formatter.name == "preference"
    for odd in ("{cut", orca | {"question": None}):
        assert find_file(write(tmp_path / "set.jsonl", odd, orca, orca), None).formatter.name == "orca_dpo_pairs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows; expected preference pairs"),
        ("\n\n", "no rows"),
        ("{oops\n", "no row can be read (row 1: the row is not JSON"),
        ("[1]\n", "no row can be read (row 1: the row has type int"),
        (
            '{"instruction": "i", "output": "o"}\n',
            "the first rows have the columns instruction, output; expected those of a",
        ),
    ],
)
def test_files_that_hold_no_pairs(tmp_path, text, message):
    path = tmp_path / "set.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as raised:
        find_file(path, None)
    assert str(raised.value).startswith(f"{path}: {message}")


def test_rows_become_ids_and_bad_ones_are_counted_and_named(tmp_path, encoder):
    rows = [
        ROW,
        ROW | {"chosen": ""},
        "{not json",
        ROW | {"rejected": "Because. "},
        ROW | {"chosen": "a</s>b"},
        ROW | {"prompt": "long " * 90},
        ROW | {"rejected": "long " * 90},
    ]
    tally = RowTally("set.jsonl", "preference")
    file = find_file(write(tmp_path / "set.jsonl", *rows), None)
    rows = RowEncoder(file.formatter, encoder, 64, truncate=True)
    read = list(encoded_pairs(file, frozenset(range(7)), rows, tally))
    assert [pair.row if pair else None for pair in read] == [1, None, None, None, None, None, 7]
    assert (tally.rows_read, tally.examples, tally.num_bad, tally.too_long, tally.cut) == (7, 2, 4, 1, 1)
    assert [number for number, _ in tally.first_bad] == [2, 3, 4, 5]
    facts = ["chosen is empty", "the row is not JSON", "chosen equals rejected", "'</s>'"]
    assert all(fact in problem for fact, (_, problem) in zip(facts, tally.first_bad, strict=True))
    decode = encoder.tokenizer.decode
    assert decode(read[0].chosen.tokens.input_ids) == "<s> ### User:\nWhy?\n\n### Assistant:\nBecause.</s>"
    assert decode([label for label in read[0].rejected.tokens.labels if label >= 0]) == "No.</s>"
    assert not read[0].cut
    assert read[-1].cut
    assert len(read[-1].rejected.tokens.input_ids) == len(read[-1].rejected.tokens.labels) == 64
    assert 2 not in read[-1].rejected.tokens.input_ids, "the end went with the rest of the answer"


def test_samples_have_the_given_size_and_are_reproducible():
    assert sampled_rows(5, None, 1) == sampled_rows(5, 9, 1) == {0, 1, 2, 3, 4}
    drawn = sampled_rows(1000, 50, 1)
    assert len(drawn) == 50
    assert drawn == sampled_rows(1000, 50, 1) != sampled_rows(1000, 50, 2)
    assert drawn <= set(range(1000))


def test_only_the_sampled_rows_are_read(tmp_path, encoder):
    file = find_file(write(tmp_path / "set.jsonl", *(ROW | {"prompt": str(i)} for i in range(9))), None)
    tally = RowTally("set.jsonl", "preference")
    read = encoded_pairs(file, frozenset({1, 4, 8}), RowEncoder(file.formatter, encoder, 64, truncate=True), tally)
    assert [pair.row for pair in read] == [2, 5, 9]
    assert tally.rows_read == 3
