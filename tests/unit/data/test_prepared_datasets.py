import json
import threading

import pytest

from solar_plugins.data import prepared_datasets as prepared_sets
from solar_plugins.data.encoder import make_encoder
from solar_plugins.data.formatters import preference_formatters, sft_formatters
from solar_plugins.data.formatters.base import SFTFormatter, single_turn
from solar_plugins.data.prepared_datasets import fingerprint, prepared_set, read_set
from solar_plugins.data.row_encoder import RowReader
from solar_plugins.errors import DataError

BAD = {3: {"output": ""}, 4: {"instruction": None}, 2105: {"output": "</s>"}, 2300: {"output": "word " * 99}}


@pytest.fixture
def reader(tokenizer):
    return RowReader(sft_formatters()["alpaca"], make_encoder(tokenizer, "test"), 64)


@pytest.fixture
def dataset(tmp_path):
    """2,400 rows of which four are bad in four ways, loaded from a file as Axolotl loads it."""
    return write_and_load(
        tmp_path / "rows.jsonl", [{"instruction": f"u{n}", "output": f"a{n}"} | BAD.get(n, {}) for n in range(2400)]
    )


def write_and_load(path, rows):
    from datasets import load_dataset

    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(path.parent / "hub"))


@pytest.mark.parametrize("processes", [None, 1, 3])
def test_counts_do_not_depend_on_the_number_of_processes(dataset, reader, processes, tmp_path):
    from datasets import load_from_disk

    ready = prepared_set(dataset, reader, "datasets[0] (rows.jsonl)", tmp_path / "ready", processes)
    assert ready.report.words(64) == (
        "datasets[0] (rows.jsonl) as alpaca: 2400 rows read, 2396 kept, 4 dropped: 1 instruction is missing (row 5); "
        "1 output is empty (row 4); 1 the assistant's text holds the special token '</s>' (row 2106); "
        "1 longer than sequence_len 64 (row 2301)"
    )
    rows = load_from_disk(str(ready.path))
    assert len(rows) == 2396
    learnt = ["".join(str(reader.encoder.tokenizer.decode([t for t in labels if t >= 0]))) for labels in rows["labels"]]
    assert learnt == [f"a{n}</s>" for n in range(2400) if n not in BAD]


def test_the_result_looks_like_what_axolotls_own_strategies_give(dataset, reader):
    from datasets import List, Value

    rows, report = read_set(dataset, reader, "here", None)
    assert report.rows_kept == len(rows) == 2396
    types = {"input_ids": "int32", "attention_mask": "int8", "labels": "int64"}
    assert rows.features == {name: List(Value(kind)) for name, kind in types.items()}


def test_pairs_and_rows_for_kto_are_texts(tokenizer, tmp_path):
    data = write_and_load(tmp_path / "pairs.jsonl", [{"question": "u", "chosen": "a", "rejected": "b"}] * 3)
    for unpaired, columns in ((False, {"prompt", "chosen", "rejected"}), (True, {"prompt", "completion", "label"})):
        reader = RowReader(
            preference_formatters()["orca_dpo_pairs"], make_encoder(tokenizer, "test"), 64, unpaired=unpaired
        )
        rows, report = read_set(data, reader, "here", None)
        assert set(rows.column_names) == columns
        assert (report.rows_kept, report.examples) == (3, len(rows)) == (3, 6 if unpaired else 3)


def test_the_rows_that_are_too_long_of_conversations_in_part(tokenizer, tmp_path):
    turns = [("user", "u"), ("assistant", "a"), ("user", "long " * 70), ("assistant", "b")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    data = write_and_load(tmp_path / "turns.jsonl", [row, row, {"messages": row["messages"][2:]}])
    _, report = read_set(data, RowReader(sft_formatters()["messages"], make_encoder(tokenizer, "t"), 64), "here", None)
    assert (report.rows_kept, report.examples, report.shortened, report.too_long) == (2, 2, 2, 1)


def test_a_ready_set_is_found_again_and_says_the_same(dataset, reader, tmp_path, monkeypatch):
    first = prepared_set(dataset, reader, "first", tmp_path / "ready", None)
    monkeypatch.setattr(prepared_sets, "read_set", lambda *_: pytest.fail("read again"))
    second = prepared_set(dataset, reader, "second", tmp_path / "ready", None)
    assert second.path == first.path
    assert second.report.words(64) == first.report.words(64).replace("first", "second")


def test_everything_that_matters_changes_the_fingerprint(dataset, reader, tokenizer, tmp_path, monkeypatch):
    from dataclasses import replace

    def other_formatter(row):
        return single_turn("u", "a")

    other_tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    other_tokenizer.add_tokens(["zzz"])
    readers = [
        reader,
        replace(reader, sequence_len=65),
        replace(reader, truncate=True),
        replace(reader, seed=1),
        replace(reader, formatter=sft_formatters()["alpaca_prompt"]),
        replace(reader, formatter=SFTFormatter(name="alpaca", columns=(), to_messages=other_formatter, summary="")),
        replace(reader, encoder=make_encoder(other_tokenizer, "test")),
    ]
    other_rows = write_and_load(tmp_path / "other.jsonl", [{"instruction": "u", "output": "a"}])
    keys = [fingerprint(dataset, other) for other in readers] + [fingerprint(other_rows, reader)]
    monkeypatch.setattr(prepared_sets, "_code", lambda module: "changed")
    keys.append(fingerprint(dataset, reader))
    assert len(set(keys)) == len(keys)


def test_a_file_that_changed_is_read_again(reader, tmp_path):
    row = {"instruction": "u", "output": "a"}
    before = fingerprint(write_and_load(tmp_path / "rows.jsonl", [row] * 2), reader)
    assert fingerprint(write_and_load(tmp_path / "rows.jsonl", [row] * 3), reader) != before


def test_nothing_is_left_of_a_set_whose_making_failed(dataset, reader, tmp_path, monkeypatch):
    def full_disk(self):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepared_sets.RowReport, "to_json", full_disk)
        with pytest.raises(DataError, match=r"the prepared dataset could not be written \(No space left on device\)"):
            prepared_set(dataset, reader, "here", tmp_path / "ready", None)
    assert list((tmp_path / "ready").iterdir()) == []
    assert prepared_set(dataset, reader, "here", tmp_path / "ready", None).report.rows_read == 2400


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"formatter": "alpaca", "rows": 3}'])
def test_a_ready_set_whose_report_is_damaged_is_made_again(dataset, reader, tmp_path, damage):
    first = prepared_set(dataset, reader, "here", tmp_path / "ready", None)
    (first.path / prepared_sets.REPORT_FILE).write_text(damage)
    assert prepared_set(dataset, reader, "here", tmp_path / "ready", None) == first
    assert list((tmp_path / "ready").iterdir()) == [first.path]


def test_of_many_at_once_one_does_the_work(dataset, reader, tmp_path, monkeypatch):
    calls, results = [], []
    monkeypatch.setattr(prepared_sets, "read_set", lambda *a, **k: (calls.append(1), read_set(*a, **k))[1])

    def work():
        results.append(prepared_set(dataset, reader, "here", tmp_path / "ready", None))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len({result.path for result in results}) == 1
    assert len(results) == 4
