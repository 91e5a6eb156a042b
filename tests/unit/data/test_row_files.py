import bz2
import datetime
import decimal
import gzip
import json
import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solar_plugins.data import row_files
from solar_plugins.data.formatters.base import RowError
from solar_plugins.data.row_files import (
    left_out_columns,
    parse_row,
    read_blocks,
    require_readable,
)
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


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.json", "r.parquet", "r.ndjson"])
@pytest.mark.parametrize("block_bytes", [1, 3, 100, 2_000_000])
def test_every_format_has_the_same_rows_in_blocks_of_any_size(tmp_path, monkeypatch, name, block_bytes):
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


@pytest.mark.slow
@settings(deadline=None)  # a busy machine is not the reader's fault
@given(st.lists(values), st.integers(1, 9), st.sampled_from([None, 2]))
def test_json_lists_of_any_values(tmp_path_factory, rows, block_bytes, indent):
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
        ("r.jsonl", '\ufeff{"a": 1}\r\n\ufeff{"a": 2}\n\ufeff{"a": 3}', [(1, {"a": 1}), (2, {"a": 2}), (3, {"a": 3})]),
        ("r.parquet", '\n{"a": 1}', [(2, {"a": 1})]),
        ("r.jsonl", "", []),
        ("r.jsonl", "1", [(1, 1)]),
        # The content decides the layout: an array of rows, or values over several lines, under any name.
        *((name, '[{"a": 1}, {"a": 2}]', [(1, {"a": 1}), (2, {"a": 2})]) for name in ("r.jsonl", "r.json")),
        *((name, '[\n{"a": 1},\n{"a": 2}\n]\n', [(1, {"a": 1}), (2, {"a": 2})]) for name in ("r.jsonl", "r.json")),
        *(
            (name, '{\n "a": 1\n}\n{\n "a": [\n  {"b": 2}\n ]\n}', [(1, {"a": 1}), (2, {"a": [{"b": 2}]})])
            for name in ("r.jsonl", "r.json")
        ),
        ("r.json", '{"a": 1}{"a": 2}', [(1, {"a": 1}), (2, {"a": 2})]),
        ("r.json", '\n{"a": 1}\n\n{"a": 2}', [(2, {"a": 1}), (4, {"a": 2})]),
        ("r.jsonl", '[1]\n{"a": 2}', [(1, [1]), (2, {"a": 2})]),
    ],
)
def test_shapes_of_files(tmp_path, name, content, rows):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert rows_in(tmp_path / name) == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.json", b'[{"a": 1}, {"a": ]', r"r\.json: row 2 is not valid JSON \(Expecting value"),
        ("r.json", b'[{"a": 1}, {"a": 2}', r"row 2 .*expected a comma or the end"),
        ("r.json", b'[{"a": 1} {"a": 2}]', r"row 1 .*expected a comma"),
        ("r.json", b'[{"a": 1},', r"row 2 .*the file ends inside"),
        ("r.json", b'[{"a": 1}] x', r"extra characters after the end"),
        ("r.json", b"[" * 100_000, r"row 1 is not valid JSON .*recursion"),
        *((f"r.jsonl{ending}", b"none of these", r"damaged compressed file") for ending in row_files.COMPRESSIONS),
        ("r.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 100, mtime=0)[:-12], r"damaged compressed file"),
        ("r.jsonl.xz", lzma.compress(b'{"a": 1}\n' * 100)[:40], r"damaged compressed file"),
        ("r.jsonl", '{"a": 1}\n'.encode("utf-16")[:-1], r"truncated or damaged utf-16"),
        ("r.parquet", b"PAR1 and no more", r"r\.parquet: damaged Parquet file"),
        ("r.parquet", b"none of these", r"r\.parquet: not a Parquet file, .*PAR1"),
        (
            "r.csv",
            b"a,b",
            r"unknown file format; expected .*\.jsonl, \.json, \.ndjson, \.parquet; the first 3",
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


def compressed(data, ending):
    if ending in (".zst", ".lz4"):
        import pyarrow

        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, {".zst": "zstd", ".lz4": "lz4"}[ending]) as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()
    return {".gz": gzip, ".bz2": bz2, ".xz": lzma}[ending].compress(data)


@pytest.mark.parametrize("name", ["r.jsonl", "r.json"])
@pytest.mark.parametrize("ending", row_files.COMPRESSIONS)
@pytest.mark.parametrize("named", [True, False])
def test_compressed_files_are_detected_by_their_content(tmp_path, monkeypatch, name, ending, named):
    monkeypatch.setattr(row_files, "BLOCK_BYTES", 100)
    path = write(tmp_path / name, ROWS)
    path.write_bytes(compressed(path.read_bytes(), ending))
    path = path.rename(tmp_path / f"{name}{ending}") if named else path
    assert rows_in(path) == list(enumerate(ROWS, 1))


@pytest.mark.parametrize("name", ["r.jsonl", "r.json"])
@pytest.mark.parametrize("block_bytes", [1, 7, 2_000_000])
@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_encodings_that_json_files_have(tmp_path, monkeypatch, name, block_bytes, encoding):
    monkeypatch.setattr(row_files, "BLOCK_BYTES", block_bytes)
    path = write(tmp_path / name, [*ROWS[:5], {"a": "😀"}])
    path.write_bytes(path.read_bytes().decode().encode(encoding))
    assert rows_in(path) == list(enumerate([*ROWS[:5], {"a": "😀"}], 1))


DAMAGES = {
    "cut": b'{"a": "x", "b',
    "cut after a value": b'{"a": "x"',
    "comma": b'{"a": 1},',
    "latin-1": '{"a": "é"}'.encode("latin-1"),
    "windows-1252": '{"a": "“x”"}'.encode("cp1252"),
    "raw half of a pair": b'{"a": "\xed\xa0\xbd"}',
    "list": b'["a"]',
    "text": b"no json",
    "two": b'{"a": 1} {"a": 2}',
    "single quotes": b"{'a': 1}",
    "NUL": b"\0\0\0\0",
}


@pytest.mark.parametrize("place", [0, 3, 7])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_is_one_bad_row(tmp_path, damage, place):
    lines = [json.dumps({"n": n}).encode() for n in range(8)]
    lines[place] = DAMAGES[damage]
    (tmp_path / "r.jsonl").write_bytes(b"\n\n".join(lines))
    found = {}
    for block in read_blocks(str(tmp_path / "r.jsonl")):
        for number, line in enumerate(block.lines, block.first_row):
            if line.strip():
                try:
                    found[number] = parse_row(line)
                except RowError as error:
                    found[number] = str(error)
    assert str(found.pop(2 * place + 1)).startswith("the row ")
    assert found == {2 * n + 1: {"n": n} for n in range(8) if n != place}


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_an_element_of_an_array_that_is_not_utf8_is_one_bad_row(tmp_path, encoding):
    rows = [{"a": 1}, {"a": "é"}, {"a": 3}]
    (tmp_path / "r.json").write_bytes(json.dumps(rows, ensure_ascii=False).encode(encoding))
    [block] = read_blocks(str(tmp_path / "r.json"))
    assert [parse_row(block.lines[place]) for place in (0, 2)] == [{"a": 1}, {"a": 3}]
    with pytest.raises(RowError, match="is not UTF-8"):
        parse_row(block.lines[1])


def test_unpaired_surrogates_as_an_escape_or_in_utf16(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(b'{"a": "\\ud83d"}\n')
    assert rows_in(tmp_path / "r.jsonl") == [(1, {"a": "\ud83d"})]
    (tmp_path / "r.jsonl").write_bytes('{"a": "\ud83d"}\n{"a": 2}'.encode("utf-16", "surrogatepass"))
    first, second = [line for block in read_blocks(str(tmp_path / "r.jsonl")) for line in block.lines]
    with pytest.raises(RowError, match="is not UTF-8"):
        parse_row(first)
    assert parse_row(second) == {"a": 2}


def test_missing_columns_are_none():
    row = parse_row(b'{"a": 1}')
    assert (row["a"], row["b"], row.get("b"), "b" in row) == (1, None, None, False)


def parquet_columns():
    """A column of every kind that Parquet can hold, by name."""
    import pyarrow as pa

    day, moment = datetime.date(2024, 1, 2), datetime.datetime(2024, 1, 2, 3, 4, 5)
    columns = {
        "date32": pa.array([day], pa.date32()),
        "date64": pa.array([day], pa.date64()),
        "time32": pa.array([datetime.time(1, 2)], pa.time32("s")),
        "time64": pa.array([datetime.time(1, 2)], pa.time64("us")),
        "timestamp with a zone": pa.array([moment], pa.timestamp("ms", "UTC")),
        "timestamp beyond Python": pa.array([2**40], pa.timestamp("s")),
        "time of nanoseconds": pa.array([1], pa.timestamp("ns")),
        "duration": pa.array([datetime.timedelta(1)], pa.duration("us")),
        "decimal128": pa.array([decimal.Decimal("1.5")], pa.decimal128(9, 2)),
        "decimal256": pa.array([decimal.Decimal("1.5")], pa.decimal256(50, 2)),
        "binary": pa.array([b"\x89PNG\xff"], pa.binary()),
        "large_binary": pa.array([b"\x89PNG\xff"], pa.large_binary()),
        "binary of one size": pa.array([b"\x89PNG"], pa.binary(4)),
        "picture": pa.array([{"bytes": b"\xff", "path": None}]),
        "pictures": pa.array([[{"bytes": b"\xff", "path": "x"}]]),
        "dictionary": pa.array(["x"]).dictionary_encode(),
        "large_string": pa.array(["x"], pa.large_string()),
        "string_view": pa.array(["x"], pa.string_view()),
        "null": pa.nulls(1),
        "half": pa.array([1.5]).cast(pa.float16()),
        "not a number": pa.array([float("nan")]),
        "uint64": pa.array([2**64 - 1], pa.uint64()),
        "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        "messages with times": pa.array([[{"role": "user", "at": moment}]]),
        "text as bytes": pa.array([b"caf\xc3\xa9"], pa.binary()),
    }
    return columns | {f"timestamp {unit}": pa.array([moment], pa.timestamp(unit)) for unit in ("s", "ms", "us")}


def test_unwanted_columns_never_make_a_parquet_file_unreadable(tmp_path):
    import pyarrow
    import pyarrow.parquet

    for name, column in parquet_columns().items():
        path = tmp_path / "r.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": ["x"], "other": column}), path)
        [block] = read_blocks(str(path), wanted=("text",))
        assert parse_row(block.lines[0])["text"] == "x", name


def test_wanted_columns_are_read_and_non_strings_do_not_become_strings(tmp_path):
    import pyarrow
    import pyarrow.parquet

    columns = parquet_columns()
    expected = {
        "date32": "2024-01-02",
        "timestamp us": "2024-01-02T03:04:05",
        "decimal128": "1.50",
        "dictionary": "x",
        "messages with times": [{"role": "user", "at": "2024-01-02T03:04:05"}],
        "text as bytes": "café",
        "binary": {"bytes": 5},
        "picture": {"bytes": {"bytes": 1}, "path": None},
    }
    path = tmp_path / "r.parquet"
    pyarrow.parquet.write_table(pyarrow.table({name: columns[name] for name in expected}), path)
    [block] = read_blocks(str(path), wanted=tuple(expected))
    assert parse_row(block.lines[0]) == expected
    assert next(read_blocks(str(path))).lines == block.lines, "without a choice, all of them"
    assert left_out_columns(str(path), ()) == ["text as bytes", "binary", "picture"]


@pytest.mark.parametrize("name", ["r.jsonl", "R.PARQUET"])
def test_parquet_is_detected_by_its_content(tmp_path, name):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": ["x"], "picture": [b"\xff"]}), tmp_path / name)
    [block] = read_blocks(str(tmp_path / name), kind="json", wanted=["a"])
    assert block.lines == [b'{"a": "x"}']
    assert left_out_columns(str(tmp_path / name), ["a"]) == ["picture"]


def test_a_text_of_parquet_that_is_not_utf8_is_one_bad_row(tmp_path):
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.array([b"a", b"caf\xe9", b"c"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "r.parquet")
    [block] = read_blocks(str(tmp_path / "r.parquet"))
    assert [parse_row(block.lines[place])["text"] for place in (0, 2)] == ["a", "c"]
    with pytest.raises(RowError, match="is not UTF-8"):
        parse_row(block.lines[1])


@pytest.mark.parametrize("path", ["missing.jsonl", "."])
def test_no_such_file(tmp_path, path):
    with pytest.raises(DataError, match=r"missing\.jsonl: cannot be read \(no such file\)|unknown file format"):
        require_readable(str(tmp_path / path))


def test_a_folder_is_reported_as_not_a_file(tmp_path):
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(DataError, match=r"rows\.jsonl: cannot be read \(not a file\)"):
        require_readable(str(tmp_path / "rows.jsonl"))
