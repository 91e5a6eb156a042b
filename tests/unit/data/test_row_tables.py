import json
import os

import pytest

from solar_plugins.data import row_tables
from solar_plugins.data.formatters.base import RowError
from solar_plugins.data.row_tables import columns_of, numbered_rows, row_place, row_table, rows_of_batch
from solar_plugins.errors import DataError


def table(folder, *files, kind="json", wanted=()):
    return row_table([str(folder / file) for file in files], kind, wanted, folder / "tables")


def numbered(dataset):
    return [
        (one.file, one.row_index, str(one.row) if isinstance(one.row, RowError) else one.row)
        for one in numbered_rows(dataset)
    ]


def test_values_keep_their_types_and_rows_their_line_numbers(tmp_path):
    rows = [{"a": "2024-01-01"}, {"a": 5, "b": None}, {"b": {"c": [1.0, "x"]}}, {"a": "half \ud83d"}]
    (tmp_path / "r.jsonl").write_text("\n".join(["", *map(json.dumps, rows), "{cut", ""]))
    dataset = table(tmp_path, "r.jsonl")
    assert numbered(dataset) == [
        *(("", place, row) for place, row in enumerate(rows, 1)),
        ("", 5, "the row is not JSON (Expecting property name enclosed in double quotes)"),
    ]
    assert [row_place(dataset, index) for index in range(5)] == [2, 3, 4, 5, 6]
    assert list(rows_of_batch(dataset[1:3], [0, 0])) == list(numbered_rows(dataset))[1:3]


def test_rows_of_several_files_are_named_with_their_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.jsonl").write_text('{"n": 1}\n')
    (tmp_path / "y.jsonl").write_text('\n{"n": 2}\n{"n": 3}')
    dataset = table(tmp_path, "a/x.jsonl", "y.jsonl")
    assert numbered(dataset) == [("a/x.jsonl", 0, {"n": 1}), ("y.jsonl", 1, {"n": 2}), ("y.jsonl", 2, {"n": 3})]
    assert [row_place(dataset.select([2, 0]), index) for index in (0, 1)] == ["y.jsonl:3", "a/x.jsonl:1"]


def test_rows_of_other_datasets_are_numbered_by_index():
    from datasets import Dataset

    dataset = Dataset.from_list([{"n": n} for n in range(3)])
    assert numbered(dataset) == [("", n, {"n": n}) for n in range(3)]
    assert row_place(dataset, 2) == 3
    assert columns_of(dataset, ["x"]) == ["n"]


def test_columns_are_those_of_all_rows_until_the_needed_ones_are_seen(tmp_path):
    rows = [{"a": 1}, {"b": 1}, {"c": 1}]
    (tmp_path / "r.jsonl").write_text("{cut\n" + "".join(json.dumps(row) + "\n" for row in rows))
    dataset = table(tmp_path, "r.jsonl")
    assert columns_of(dataset, ["b"]) == ["a", "b"]
    assert columns_of(dataset, ["x"]) == columns_of(dataset) == ["a", "b", "c"]
    (tmp_path / "bad.jsonl").write_text("{cut\n")
    assert columns_of(table(tmp_path, "bad.jsonl"), ["x"]) == []


def test_changed_content_gives_another_table(tmp_path):
    tables = []
    for word in ("old", "new", "old"):
        (tmp_path / "r.jsonl").write_text(json.dumps({"a": word}))
        os.utime(tmp_path / "r.jsonl", (1_700_000_000, 1_700_000_000))
        tables.append(table(tmp_path, "r.jsonl"))
    assert [next(numbered_rows(one)).row["a"] for one in tables] == ["old", "new", "old"]
    assert tables[0]._fingerprint == tables[2]._fingerprint != tables[1]._fingerprint


def test_a_table_is_written_once_and_an_unfinished_one_is_rewritten(tmp_path, monkeypatch):
    (tmp_path / "r.jsonl").write_text('{"a": 1}')
    table(tmp_path, "r.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(row_tables, "read_blocks", lambda *_, **__: pytest.fail("read again"))
        table(tmp_path, "r.jsonl")
    [made] = (tmp_path / "tables").iterdir()
    (made / row_tables.DONE).unlink()
    (made / row_tables.TABLE).write_bytes(b"half")
    assert numbered(table(tmp_path, "r.jsonl")) == [("", 0, {"a": 1})]
    assert list((tmp_path / "tables").iterdir()) == [made]


def test_a_file_that_changes_while_being_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "r.jsonl").write_text('{"a": 1}')
    read = row_tables.read_blocks

    def read_and_change(path, **options):
        yield from read(path, **options)
        (tmp_path / "r.jsonl").write_text('{"a": 2}')

    with monkeypatch.context() as patch:
        patch.setattr(row_tables, "read_blocks", read_and_change)
        with pytest.raises(DataError, match=r"r\.jsonl: changed while"):
            table(tmp_path, "r.jsonl")
    assert numbered(table(tmp_path, "r.jsonl")) == [("", 0, {"a": 2})]


def test_a_file_without_rows(tmp_path):
    (tmp_path / "r.jsonl").write_text("\n")
    dataset = table(tmp_path, "r.jsonl")
    assert len(dataset) == 0
    assert numbered(dataset) == columns_of(dataset, ["a"]) == []


def test_binary_columns_are_read_only_if_wanted(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": ["x"], "b": [b"y"]}), tmp_path / "r.parquet")
    assert numbered(table(tmp_path, "r.parquet", kind="parquet")) == [("", 0, {"a": "x"})]
    assert numbered(table(tmp_path, "r.parquet", kind="parquet", wanted=["b"])) == [("", 0, {"a": "x", "b": "y"})]
