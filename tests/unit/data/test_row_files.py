import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solar_plugins.data import row_files
from solar_plugins.data.row_files import read_blocks, require_readable
from solar_plugins.errors import DataError

ROWS = [{"a": f'{i} ü\n[,]}} "', "b": [{"role": "user", "content": None}], "n": i} for i in range(50)]


def rows_in(path):
    """Number and content of every row."""
    return [
        (block.first_row + at, json.loads(line))
        for block in read_blocks(str(path))
        for at, line in enumerate(block.lines)
        if line.strip()
    ]


def write(path, rows):
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.json", "r.parquet"])
@pytest.mark.parametrize("block_bytes", [1, 3, 100, 2_000_000])
def test_every_kind_gives_the_same_rows_in_blocks_of_any_size(tmp_path, monkeypatch, name, block_bytes):
    monkeypatch.setattr(row_files, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(row_files, "PARQUET_ROWS", min(block_bytes, 2000))
    path = write(tmp_path / name, ROWS)
    assert rows_in(path) == list(enumerate(ROWS, 1))
    assert all(b"\n" not in line for block in read_blocks(str(path)) for line in block.lines)


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.parquet"])
def test_the_progress_adds_up_to_the_file(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    assert sum(block.read_bytes for block in read_blocks(str(path))) == path.stat().st_size


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(deadline=None)  # a busy machine is no fault of the reader's
@given(st.lists(values), st.integers(1, 9), st.sampled_from([None, 2]))
def test_json_lists_of_anything(tmp_path_factory, rows, block_bytes, indent):
    path = tmp_path_factory.mktemp("json") / "r.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_files, "BLOCK_BYTES", block_bytes)
        assert [row for _, row in rows_in(path)] == rows


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("r.json", '{"a": 1}\n{"a": 2}\n', [(1, {"a": 1}), (2, {"a": 2})]),  # JSON lines under the name .json
        ("r.json", '\ufeff [ {"a": 1} ] \n', [(1, {"a": 1})]),
        ("r.json", "[]", []),
        ("r.json", "", []),
        ("r.jsonl", '\ufeff{"a": 1}', [(1, {"a": 1})]),
        ("r.jsonl", '\n\n{"a": 1}\r\n  \n{"a": 2}', [(3, {"a": 1}), (5, {"a": 2})]),
        ("r.jsonl", "", []),
        ("r.jsonl", "1", [(1, 1)]),
    ],
)
def test_shapes_of_files(tmp_path, name, content, rows):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert rows_in(tmp_path / name) == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.json", b'[{"a": 1}, {"a": ]', r"r\.json: row 2 is not readable JSON \(Expecting value"),
        ("r.json", b'[{"a": 1}, {"a": 2}', r"row 2 .*expected a comma or the end"),
        ("r.json", b'[{"a": 1} {"a": 2}]', r"row 1 .*expected a comma"),
        ("r.json", b'[{"a": 1},', r"row 2 .*the file ends inside the list"),
        ("r.json", b'[{"a": 1}] x', r"something follows the end of the list"),
        ("r.json", b"[" * 100_000, r"row 1 is not readable JSON .*recursion"),
        ("r.json", b'[{"a": "\xff"}]', r"not UTF-8"),
        ("r.jsonl.gz", b"no gzip", r"damaged gzip file"),
        ("r.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 100, mtime=0)[:-12], r"damaged gzip file"),
        ("r.parquet", b"PAR1 and no more", r"not a whole Parquet file"),
        (
            "r.csv",
            b"a,b",
            r"unknown kind of file; expected a name that ends in \.jsonl, \.jsonl\.gz, \.json, \.parquet",
        ),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows_in(tmp_path / name)


def test_a_row_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "MAX_ROW_BYTES", 5_000_000)
    for name, content in (("r.jsonl", b"{}\n" + b"x" * 9_000_000), ("r.json", b'[{}, {"a": "' + b"x" * 9_000_000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="row 2 is longer than 5 MB"):
            rows_in(tmp_path / name)


def test_parquet_values_that_json_does_not_know(tmp_path):
    path = write(tmp_path / "r.parquet", [{"a": b"\x00"}])
    with pytest.raises(DataError, match="cannot be written as JSON"):
        rows_in(path)


@pytest.mark.parametrize("path", ["missing.jsonl", "."])
def test_no_such_file(tmp_path, path):
    with pytest.raises(DataError, match=r"missing\.jsonl: cannot be read \(no such file\)|unknown kind"):
        require_readable(str(tmp_path / path))


def test_the_state_of_a_file(tmp_path):
    path = write(tmp_path / "r.jsonl", ROWS)
    assert require_readable(str(path)) == (path.stat().st_size, path.stat().st_mtime_ns)
