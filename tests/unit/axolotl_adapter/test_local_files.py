"""Local datasets of a recipe: which files, splits and slices, compared with what `datasets` itself loads."""

import gzip
import json
import os
from pathlib import Path

import pytest

from solar_plugins.axolotl_adapter.local_files import is_local, load_local
from solar_plugins.axolotl_adapter.recipe_checks import FormattedDataset
from solar_plugins.data.formatters import sft_formatters
from solar_plugins.data.row_tables import LINE_COLUMN, numbered_rows
from solar_plugins.errors import DataError

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with a cache of its own."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    return tmp_path


def source(**entry):
    return FormattedDataset("datasets", 0, entry, sft_formatters()["alpaca"])


def save(name, *numbers):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"instruction": "u", "output": str(number)}) + "\n" for number in numbers)
    Path(name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


def outputs(dataset):
    return [one.row["output"] for one in numbered_rows(dataset)]


def axolotls(**entry):
    """What Axolotl itself loads."""
    from axolotl.utils.data.shared import load_dataset_with_config
    from axolotl.utils.dict import DictDefault

    found = load_dataset_with_config(DictDefault(entry), False)
    return found if hasattr(found, "column_names") and isinstance(found.column_names, list) else dict(found)


def make_files():
    save("one.jsonl", *range(20))
    save("plain.txt", *range(3))
    save("packed.jsonl.gz", *range(4))
    save("shards/train-00000-of-00002.jsonl", 1, 2)
    save("shards/train-00001-of-00002.jsonl", 3)
    save("shards/test.jsonl", 4)
    save("named/de.jsonl", 5)
    save("named/en.jsonl", 6)
    Path("named/README.md").write_text(
        "---\nconfigs:\n- config_name: de\n  data_files: de.jsonl\n- config_name: en\n  data_files: en.jsonl\n---\n"
    )


ENTRIES = [
    {"path": "one.jsonl"},
    {"path": "one.jsonl", "split": "train[5:7]"},
    {"path": "one.jsonl", "split": "train[-3:]"},
    {"path": "one.jsonl", "split": "train[10%:20%]"},
    {"path": "one.jsonl", "split": "train[:2]+train[18:]"},
    {"path": "plain.txt", "ds_type": "json"},
    {"path": "packed.jsonl.gz"},
    {"path": "shards", "split": "train"},
    {"path": "shards", "split": "train+test"},
    {"path": "shards", "data_files": "shards/train-*.jsonl", "split": "train"},
    {"path": "shards", "data_files": ["one.jsonl", "shards/test.jsonl"], "split": "train[:3]"},
    {"path": "named", "name": "de", "split": "train"},
    {"path": "named", "name": "en", "split": "train"},
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: " ".join(map(str, entry.values())))
def test_the_rows_are_the_ones_that_axolotl_loads(folder, entry):
    make_files()
    found = load_local(source(**entry))
    assert found.column_names[-1] == LINE_COLUMN, "by our own reader"
    assert outputs(found) == [str(output) for output in axolotls(**entry)["output"]]


def test_a_folder_without_a_split_gives_all_splits(folder):
    make_files()
    found, expected = load_local(source(path="shards")), axolotls(path="shards")
    assert list(found) == list(expected) == ["train", "test"]
    assert {name: outputs(one) for name, one in found.items()} == {"train": ["1", "2", "3"], "test": ["4"]}
    assert "dev" not in found


@pytest.mark.parametrize("split", ["dev", "train[5:", "train[a:b]"])
def test_a_split_that_cannot_be_read(folder, split):
    make_files()
    with pytest.raises(DataError, match=r"datasets\[0\] \(shards\): split .* has train, test\. Set split: "):
        load_local(source(path="shards", split=split))


def saved(outputs):
    from datasets import Dataset

    return Dataset.from_list([{"instruction": "u", "output": output} for output in outputs])


OTHER_FORMATS = {
    "rows.csv": lambda outputs: Path("rows.csv").write_text(
        "instruction,output\n" + "".join(f"u,{o}\n" for o in outputs)
    ),
    "saved": lambda outputs: saved(outputs).save_to_disk("saved"),
    "rows.arrow": lambda outputs: os.replace(
        saved(outputs).save_to_disk("made") or "made/data-00000-of-00001.arrow", "rows.arrow"
    ),
}


@pytest.mark.parametrize("path", OTHER_FORMATS)
def test_formats_that_datasets_reads_are_cached_by_content_too(folder, path):
    keys = []
    for outputs_of_file in (["old"], ["new"], ["old"]):
        OTHER_FORMATS[path](outputs_of_file)
        for file in [Path(path), *Path(path).rglob("*")]:
            os.utime(file, (1_700_000_000, 1_700_000_000))
        found = load_local(source(path=path))
        assert outputs(found) == outputs_of_file
        keys.append(found._fingerprint)
    assert keys[0] != keys[1]


def test_a_hub_dataset_is_not_local(folder):
    assert not is_local(source(path="org/data"))
    assert not is_local(source())
    save("org/data/train.jsonl", 1)
    assert is_local(source(path="org/data"))


def test_parts_of_a_folder_of_save_to_disk(folder):
    import datasets

    datasets.DatasetDict(train=saved(list("abcd")), test=saved(["t"])).save_to_disk("saved")
    assert outputs(load_local(source(path="saved", split="train[1:3]+test"))) == ["b", "c", "t"]
    with pytest.raises(DataError, match=r"split 'dev' cannot be read .* has train, test"):
        load_local(source(path="saved", split="dev"))


def test_a_path_is_not_a_pattern(folder):
    save("rows [1]*.jsonl", 1)
    save("rows 1.jsonl", 2)
    assert outputs(load_local(source(path="rows [1]*.jsonl"))) == ["1"]


OF_ANOTHER_FORMAT = {
    "b.csv": b"instruction,output\nu,1\n",
    "b.tsv": b"instruction\toutput\nu\t1\n",
    "b.csv.gz": gzip.compress(b"instruction,output\nu,1\n"),
    "b.parquet": b"PAR1",
    "deep/b.arrow": b"ARROW1",
}


@pytest.mark.parametrize("name", OF_ANOTHER_FORMAT)
@pytest.mark.parametrize("rows", [("a.jsonl", "c.json"), ("train.jsonl.gz",), ("train.jsonl", "test.jsonl")])
def test_a_folder_with_several_formats_is_rejected(folder, name, rows):
    """`datasets` reads only the most common format, and so does Axolotl."""
    for number, row_file in enumerate(rows):
        save(f"mixed/{row_file}", number)
    other = Path("mixed", name if rows[0] == "a.jsonl" else name.replace("b.", "train-2."))
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(OF_ANOTHER_FORMAT[name])
    other_format = {"csv": "CSV", "tsv": "TSV", "csv.gz": "CSV", "parquet": "Parquet", "arrow": "Arrow"}[
        name.split(".", 1)[1]
    ]
    with pytest.raises(DataError) as caught:
        load_local(source(path="mixed", split="train"))
    words = str(caught.value)
    assert f"{len(rows)} JSON (" in words
    assert f"1 {other_format} ({other.relative_to('mixed')})" in words
    assert "data_files:" in words
    assert words.startswith("datasets[0] (mixed): ")
    if name == "b.csv":
        assert outputs(load_local(source(path="mixed", data_files=str(other), ds_type="csv", split="train"))) == [1]
    named = [f"mixed/{row_file}" for row_file in rows]
    assert len(load_local(source(path="mixed", data_files=named, split="train"))) == len(rows), "the fix works"


def test_other_files_next_to_a_dataset_are_ignored(folder):
    save("data/a.jsonl", 1)
    for name in ("README.md", "LICENSE.txt", "plot.png", ".hidden.csv", "dataset_infos.json", "notes.md"):
        Path("data", name).write_text("{}")
    assert outputs(load_local(source(path="data", split="train"))) == ["1"]
    saved(["2"]).to_parquet("tables/a.parquet")
    Path("tables/stats.json").write_text('{\n "rows": 1\n}')
    assert outputs(load_local(source(path="tables", split="train"))) == ["2"]


def test_a_card_that_lists_the_files_decides(folder):
    save("data/a.jsonl", 1)
    Path("data/b.csv").write_bytes(OF_ANOTHER_FORMAT["b.csv"])
    Path("data/README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: a.jsonl\n---\n")
    assert outputs(load_local(source(path="data", split="train"))) == ["1"]


def test_files_without_a_split_are_listed(folder, caplog):
    save("data/train.jsonl", 1)
    save("data/extra.jsonl", 2)
    with caplog.at_level("WARNING"):
        assert outputs(load_local(source(path="data", split="train"))) == ["1"]
    assert "datasets[0] (data): 1 of the folder's files are not read" in caplog.text
    assert "extra.jsonl" in caplog.text
    caplog.clear()
    os.rename("data/extra.jsonl", "data/train-2.jsonl")
    assert sorted(outputs(load_local(source(path="data", split="train")))) == ["1", "2"]
    assert not caplog.text
