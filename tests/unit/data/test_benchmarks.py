import json

import pytest

from solar_plugins.data.mixture_args import DecontaminateArgs
from solar_plugins.data.ngrams import Place
from solar_plugins.data.row_checks import benchmark_index
from solar_plugins.errors import DataError


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
def test_benchmarks_that_would_let_rows_pass(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    columns = {} if name.endswith(".txt") else {"columns": "question"}
    with pytest.raises(DataError, match=message):
        index_of({"path": str(tmp_path / name), **columns})


def test_a_text_file_in_another_encoding(tmp_path):
    (tmp_path / "b.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        index_of({"path": str(tmp_path / "b.txt")})
