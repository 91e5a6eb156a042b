import importlib.util
import json
import threading
from dataclasses import replace

import pytest

from solar_plugins.data import prepared_datasets as prepared_sets
from solar_plugins.data.encoder import make_encoder
from solar_plugins.data.formatters import preference_formatters, sft_formatters
from solar_plugins.data.formatters.base import single_turn
from solar_plugins.data.prepared_datasets import TrainingRecords, count_rows, fingerprint, prepared_set, read_set
from solar_plugins.data.row_encoder import RowEncoder
from solar_plugins.data.row_tally import RowTally
from solar_plugins.errors import DataError

BAD = {3: {"output": ""}, 4: {"instruction": None}, 2105: {"output": "</s>"}, 2300: {"output": "word " * 99}}


def records_of(formatter, tokenizer, *, unpaired=False, **options):
    return TrainingRecords(RowEncoder(formatter, make_encoder(tokenizer, "test"), 64, **options), unpaired)


@pytest.fixture
def records(tokenizer):
    return records_of(sft_formatters()["alpaca"], tokenizer)


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


@pytest.mark.slow
@pytest.mark.parametrize("processes", [None, 1, 3])
def test_counts_do_not_depend_on_the_number_of_processes(dataset, records, processes, tmp_path):
    from datasets import load_from_disk

    ready = prepared_set(dataset, records, "datasets[0] (rows.jsonl)", tmp_path / "ready", processes)
    said = ready.tally.summary(64)
    assert said.startswith("datasets[0] (rows.jsonl) as alpaca: 2400 rows read, 2396 kept, 4 dropped: ")
    for fact in (
        "instruction",
        "(row 5)",
        "output is empty (row 4)",
        "'</s>'",
        "(row 2106)",
        "sequence_len 64 (row 2301)",
    ):
        assert fact in said
    rows = load_from_disk(str(ready.path))
    assert len(rows) == 2396
    learnt = [
        "".join(str(records.rows.encoder.tokenizer.decode([t for t in labels if t >= 0]))) for labels in rows["labels"]
    ]
    assert learnt == [f"a{n}</s>" for n in range(2400) if n not in BAD]


def test_the_result_has_the_form_of_axolotls_own_strategies(dataset, records):
    from datasets import List, Value

    rows, tally = read_set(dataset, records, "here", None)
    assert tally.rows_kept == len(rows) == 2396
    types = {"input_ids": "int32", "attention_mask": "int8", "labels": "int64"}
    assert rows.features == {name: List(Value(kind)) for name, kind in types.items()}


def test_pairs_and_rows_for_kto_are_texts(tokenizer, tmp_path):
    data = write_and_load(tmp_path / "pairs.jsonl", [{"question": "u", "chosen": "a", "rejected": "b"}] * 3)
    for unpaired, columns in ((False, {"prompt", "chosen", "rejected"}), (True, {"prompt", "completion", "label"})):
        records = records_of(preference_formatters()["orca_dpo_pairs"], tokenizer, unpaired=unpaired)
        rows, tally = read_set(data, records, "here", None)
        assert set(rows.column_names) == columns
        assert (tally.rows_kept, tally.examples) == (3, len(rows)) == (3, 6 if unpaired else 3)


def test_the_rows_that_are_too_long_of_conversations_in_part(tokenizer, tmp_path):
    turns = [("user", "u"), ("assistant", "a"), ("user", "long " * 70), ("assistant", "b")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    data = write_and_load(tmp_path / "turns.jsonl", [row, row, {"messages": row["messages"][2:]}])
    _, tally = read_set(data, records_of(sft_formatters()["messages"], tokenizer), "here", None)
    assert (tally.rows_kept, tally.examples, tally.examples_too_long, tally.too_long) == (2, 2, 2, 1)


def test_a_prepared_dataset_is_reused_with_its_tally(dataset, records, tmp_path, monkeypatch):
    first = prepared_set(dataset, records, "first", tmp_path / "ready", None)
    monkeypatch.setattr(prepared_sets, "read_set", lambda *_: pytest.fail("read again"))
    second = prepared_set(dataset, records, "second", tmp_path / "ready", None)
    assert second.path == first.path
    assert second.tally.summary(64) == first.tally.summary(64).replace("first", "second")


ALPACA_SOURCE = """
from solar_plugins.api import SFTFormatter, single_turn

def read(row):
    return single_turn(row["instruction"], row["output"])

formatter = SFTFormatter(name="alpaca", columns=(), to_messages=read, summary="")
"""


def formatter_from(path, source):
    """A formatter of a module that was just written."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.formatter


def test_comments_and_docstrings_of_a_formatter_keep_the_fingerprint(dataset, tokenizer, tmp_path):
    sources = [
        ALPACA_SOURCE,
        ALPACA_SOURCE.replace("row):\n", 'row):\n    """What an Alpaca row says."""\n    # One turn.\n'),
        ALPACA_SOURCE.replace('summary=""', 'summary="one turn"'),
    ]
    assert len(set(sources)) == 3
    formatters = [formatter_from(tmp_path / "quiz.py", source) for source in sources]
    assert len({fingerprint(dataset, records_of(formatter, tokenizer)) for formatter in formatters}) == 1


def test_all_settings_change_the_fingerprint(dataset, records, tokenizer, tmp_path, monkeypatch):
    other_tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    other_tokenizer.add_tokens(["zzz"])
    rows, alpaca = records.rows, records.rows.formatter
    others = [
        rows,
        replace(rows, max_length=65),
        replace(rows, truncate=True),
        replace(rows, seed=1),
        replace(rows, whole_conversations=True),
        replace(rows, formatter=replace(alpaca, version=99)),
        replace(rows, formatter=replace(alpaca, name="other")),
        replace(rows, formatter=formatter_from(tmp_path / "another_package.py", ALPACA_SOURCE)),
        replace(rows, encoder=make_encoder(other_tokenizer, "test")),
    ]
    pairs = replace(rows, formatter=preference_formatters()["orca_dpo_pairs"])
    other_rows = write_and_load(tmp_path / "other.jsonl", [{"instruction": "u", "output": "a"}])
    keys = [fingerprint(dataset, TrainingRecords(other)) for other in others]
    keys += [fingerprint(dataset, TrainingRecords(pairs, unpaired)) for unpaired in (False, True)]
    keys.append(fingerprint(other_rows, records))
    for name, value in (("template_text", lambda: "another template"), ("FORMAT_VERSION", 99)):
        with monkeypatch.context() as patch:
            patch.setattr(prepared_sets, name, value)
            keys.append(fingerprint(dataset, records))
    assert len(set(keys)) == len(keys) == 14


def test_a_new_formatter_version_prepares_again(dataset, records, tmp_path):
    def marked(row):
        return single_turn(row["instruction"] or "none", "new")

    rows = records.rows
    newer = replace(rows, formatter=replace(rows.formatter, to_messages=marked, version=2))
    first, second = (prepared_set(dataset, TrainingRecords(one), "here", tmp_path, None) for one in (rows, newer))
    assert first.path != second.path
    assert (first.tally.rows_kept, second.tally.rows_kept) == (2396, 2400)


def test_a_file_that_changed_is_read_again(records, tmp_path):
    row = {"instruction": "u", "output": "a"}
    before = fingerprint(write_and_load(tmp_path / "rows.jsonl", [row] * 2), records)
    assert fingerprint(write_and_load(tmp_path / "rows.jsonl", [row] * 3), records) != before


def test_a_failed_preparation_leaves_nothing_behind(dataset, records, tmp_path, monkeypatch):
    def full_disk(self):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepared_sets.RowTally, "to_json", full_disk)
        with pytest.raises(DataError, match=r"the prepared dataset could not be written \(No space left on device\)"):
            prepared_set(dataset, records, "here", tmp_path / "ready", None)
    assert list((tmp_path / "ready").iterdir()) == []
    assert prepared_set(dataset, records, "here", tmp_path / "ready", None).tally.rows_read == 2400


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"formatter": "alpaca", "rows": 3}'])
def test_a_prepared_dataset_with_a_damaged_tally_is_rebuilt(dataset, records, tmp_path, damage):
    first = prepared_set(dataset, records, "here", tmp_path / "ready", None)
    (first.path / prepared_sets.TALLY_FILE).write_text(damage)
    assert prepared_set(dataset, records, "here", tmp_path / "ready", None) == first
    assert list((tmp_path / "ready").iterdir()) == [first.path]


def test_concurrent_processes_prepare_once(dataset, records, tmp_path, monkeypatch):
    calls, results = [], []
    read = prepared_sets._read
    monkeypatch.setattr(prepared_sets, "_read", lambda *a, **k: (calls.append(1), read(*a, **k))[1])

    def work():
        results.append(prepared_set(dataset, records, "here", tmp_path / "ready", None))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len({result.path for result in results}) == 1
    assert len(results) == 4


PAIR = {"question": "u", "chosen": "good", "rejected": "bad and longer"}
PROMPT = "### User:\nu\n\n### Assistant:\n"


@pytest.fixture
def read(tokenizer):
    """The records of rows 10, 11 and so on, as dictionaries without the columns that are empty."""

    def read_rows(name, *rows, unpaired=False, **options):
        formatter = {**sft_formatters(), **preference_formatters()}[name]
        encoder = RowEncoder(formatter, make_encoder(tokenizer, "test"), **({"max_length": 64} | options))
        columns = sorted({name for row in rows for name in row})
        batch = {name: [row.get(name) for row in rows] for name in columns}
        result = TrainingRecords(encoder, unpaired).read_batch(batch, list(range(10, 10 + len(rows))))
        records = zip(*result.values(), strict=True)
        unused = ("solar_sound", "solar_tokens", "solar_opening")
        named = [dict(zip(result, values, strict=True)) for values in records]
        return [{k: v for k, v in one.items() if v is not None and k not in unused} for one in named]

    return read_rows


def test_a_conversation_has_a_record_for_each_answer(read, tokenizer):
    turns = [("user", "u"), ("assistant", "good"), ("user", "v"), ("assistant", "bye")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    records = read("messages", row, row)
    assert [record["solar_row"] for record in records] == [10, 10, 11, 11]
    assert records[0]["input_ids"] == tokenizer(PROMPT + "good</s>")["input_ids"]
    assert records[0]["attention_mask"] == [1] * len(records[0]["input_ids"])
    assert tokenizer.decode([token for token in records[1]["labels"] if token >= 0]) == "bye</s>"


def test_a_pair(read):
    assert read("orca_dpo_pairs", PAIR) == [
        {"solar_row": 10, "solar_cut": False, "prompt": PROMPT, "chosen": "good</s>", "rejected": "bad and longer</s>"}
    ]


def test_a_pair_for_kto_is_two_records(read):
    bookkeeping = {"solar_row": 10, "solar_cut": False}
    assert read("orca_dpo_pairs", PAIR, unpaired=True) == [
        bookkeeping | {"prompt": PROMPT, "completion": "good</s>", "label": True},
        bookkeeping | {"prompt": PROMPT, "completion": "bad and longer</s>", "label": False},
    ]


def test_rows_without_an_example_are_records_too(read):
    good, bad, long = read("orca_dpo_pairs", PAIR, PAIR | {"chosen": ""}, PAIR | {"question": "long " * 70})
    assert "solar_problem" not in good
    assert bad == {"solar_row": 11, "solar_cut": False, "solar_problem": "chosen is empty"}
    assert long == {"solar_row": 12, "solar_cut": False, "solar_problem": "too long"}


def test_truncated_examples_are_marked(read, tokenizer):
    room = len(tokenizer(PROMPT + "bad and")["input_ids"])
    assert [record["solar_cut"] for record in read("orca_dpo_pairs", PAIR, max_length=room, truncate=True)] == [True]
    kto = read("orca_dpo_pairs", PAIR, max_length=room, truncate=True, unpaired=True)
    assert [record["solar_cut"] for record in kto] == [False, True]
    [record] = read("alpaca", {"instruction": "u", "output": "bad and longer"}, max_length=room, truncate=True)
    assert record["solar_cut"]
    assert len(record["input_ids"]) == len(record["labels"]) == len(record["attention_mask"]) == room


def test_records_are_counted_by_their_rows():
    records = [
        (3, None, False, True, 30, None),
        (3, None, False, False, 50, "note\nnote"),
        (3, "too long", False, False, 0, None),
        (4, "too long", False, False, 0, None),
        (4, "too long", False, False, 0, None),
        (7, "x", False, False, 0, None),
        (8, "tie", True, False, 0, None),
    ]
    tally = count_rows(RowTally("here", "messages"), *zip(*records, strict=True))
    assert (tally.rows_read, tally.rows_kept, tally.examples, tally.cut) == (4, 1, 2, 1)
    assert (tally.num_tokens, tally.num_tokens_once, tally.repetition) == (80, 50, 1.6)
    assert (tally.nothing_to_learn, tally.notes) == ({"tie": 1}, {"note": 2})
    assert (tally.examples_too_long, tally.too_long, tally.bad) == (1, 1, {"x": 1})
    assert tally.first_rows == {"note": [4, 4], "too long": [5], "x": [8], "tie": [9]}
