"""The datasets of a recipe after `load_datasets`, with Axolotl's own loaders of files and tokenizers."""

import json
import logging
import os
import re
import shutil

import pytest
from transformers import AutoTokenizer

from solar_plugins.axolotl_adapter.datasets import use_prepared_datasets
from solar_plugins.data.formatters import preference_formatters
from solar_plugins.data.template import template_text
from solar_plugins.errors import DataError

pytestmark = pytest.mark.slow

ALPACA = [{"instruction": f"u{n}", "input": "", "output": f"a{n}"} for n in range(6)]
PAIRS = [{"system": "", "question": f"u{n}", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(6)]


@pytest.fixture
def folder(tmp_path, sentencepiece_tokenizer, monkeypatch):
    """The current directory, with a base's config and tokenizer, and two datasets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))
    shutil.copytree(sentencepiece_tokenizer, tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "mistral", "vocab_size": 32000}')
    write("alpaca.jsonl", ALPACA)
    write("pairs.jsonl", PAIRS)
    return tmp_path


def write(name, rows):
    with open(name, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def recipe(path="alpaca.jsonl", kind="alpaca", **keys):
    from axolotl.utils.dict import DictDefault

    base = {"base_model": "base", "tokenizer_config": "base", "dataset_prepared_path": "prepared", "sequence_len": 64}
    datasets = keys.pop("datasets", [{"path": path, "type": f"solar_plugins.{kind}"}])
    return DictDefault(base | {"datasets": datasets} | keys)


def refused(cfg):
    with pytest.raises(DataError) as error:
        use_prepared_datasets(cfg)
    return str(error.value)


def load(cfg, key="datasets", number=0):
    from axolotl.utils.data.shared import load_dataset_with_config

    return load_dataset_with_config(cfg[key][number], False)


def test_an_instruction_dataset(folder):
    cfg = recipe()
    assert use_prepared_datasets(cfg) == ["datasets[0] (alpaca.jsonl) as alpaca: 6 rows read, 6 kept, 0 dropped"]
    assert cfg.datasets[0].path.startswith("prepared/solar_plugins/")
    assert cfg.datasets[0].type is None
    assert load(cfg).column_names == ["input_ids", "attention_mask", "labels"]
    assert (cfg.chat_template, cfg.chat_template_jinja) == ("jinja", template_text()), "for the saved tokenizer"


@pytest.mark.slow
def test_axolotl_uses_the_prepared_dataset_as_it_is_and_mixes_it_with_others(folder):
    from axolotl.loaders import load_tokenizer
    from axolotl.utils.data.sft import prepare_datasets

    write("text.jsonl", [{"text": "hello " * 9}] * 4)
    cfg = recipe(
        datasets=[
            {"path": "alpaca.jsonl", "type": "solar_plugins.alpaca"},
            {"path": "text.jsonl", "type": "completion"},
        ],
        val_set_size=0,
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        batch_size=1,
        num_epochs=1,
        min_sample_len=2,
    )
    use_prepared_datasets(cfg)
    tokenizer = load_tokenizer(cfg)
    train, *_ = prepare_datasets(cfg, tokenizer)
    assert len(train) == 10
    answers = {tokenizer.decode([t for t in row["labels"] if t >= 0]) for row in train}
    assert {f"a{n}</s>" for n in range(6)} < answers


def test_a_preference_dataset_reaches_the_preference_loader(folder):
    from axolotl.loaders import load_tokenizer
    from axolotl.utils.data.rl import prepare_preference_datasets
    from axolotl.utils.schemas.enums import RLType

    cfg = recipe("pairs.jsonl", "orca_dpo_pairs", rl=RLType.DPO)
    use_prepared_datasets(cfg)
    train, _ = prepare_preference_datasets(cfg, load_tokenizer(cfg))
    assert sorted(train["chosen"]) == [f"a{n}</s>" for n in range(6)]
    assert set(train["prompt"]) == {f"### User:\nu{n}\n\n### Assistant:\n" for n in range(6)}


def test_test_datasets_and_datasets_of_other_types(folder):
    other = {"path": "x.jsonl", "type": "completion"}
    cfg = recipe(
        datasets=[other, {"path": "alpaca.jsonl", "type": "solar_plugins.alpaca"}],
        test_datasets=[{"path": "alpaca.jsonl", "type": "solar_plugins.alpaca", "split": "train"}],
        eval_sequence_len=2,
    )
    assert cfg.datasets[0] == other
    assert "test_datasets[0] (alpaca.jsonl): none of its 6 rows is left" in refused(cfg)
    cfg.eval_sequence_len = 60
    assert len(use_prepared_datasets(cfg)) == 2
    assert cfg.datasets[0] == other
    assert cfg.datasets[1].path != cfg.test_datasets[0].path


def test_a_recipe_without_our_formatters_loads_no_tokenizer(folder, monkeypatch):
    monkeypatch.setattr("axolotl.loaders.load_tokenizer", lambda cfg: pytest.fail("loaded a tokenizer"))
    cfg = recipe(datasets=[{"path": "x", "type": "completion"}])
    assert use_prepared_datasets(cfg) == []


def test_bad_rows_are_dropped_or_stop_the_run_as_the_recipe_says(folder, caplog):
    write("bad.jsonl", [*ALPACA, {"instruction": "u", "input": "", "output": ""}])
    assert "1 of 7 rows cannot be read as alpaca, more than the share of 0.02" in refused(recipe("bad.jsonl"))
    caplog.set_level(logging.INFO, logger="axolotl.solar_plugins.formatters")
    lines = use_prepared_datasets(recipe("bad.jsonl", solar={"data": {"max_bad_share": 0.2}}))
    assert lines == ["datasets[0] (bad.jsonl) as alpaca: 7 rows read, 6 kept, 1 dropped: 1 output is empty (row 7)"]
    assert lines[0] in caplog.messages
    stop = recipe("bad.jsonl", solar={"data": {"bad_rows": "stop", "max_bad_share": 1}})
    assert "1 of 7 rows cannot be read as alpaca:\n  1 output is empty (row 7)" in refused(stop), "from the cache, too"


def test_rows_that_are_too_long(folder):
    write("long.jsonl", [*ALPACA, {"instruction": "u", "input": "", "output": "word " * 99}])
    assert (
        "7 rows read, 6 kept, 1 dropped: 1 longer than sequence_len 64 (row 7)"
        in use_prepared_datasets(recipe("long.jsonl"))[0]
    )
    strict = refused(recipe("long.jsonl", excess_length_strategy="raise"))
    assert strict.startswith("excess_length_strategy: raise, and datasets[0] (long.jsonl) as alpaca")
    assert "7 kept" in use_prepared_datasets(recipe("long.jsonl", excess_length_strategy="truncate"))[0]
    assert "none of its 7 rows is left to train on" in refused(recipe("long.jsonl", sequence_len=4))


def test_a_dataset_for_another_formatter_is_rejected_with_a_suggestion(folder):
    words = refused(recipe("pairs.jsonl", "alpaca"))
    for fact in (
        "datasets[0] (pairs.jsonl): has no column instruction, output, ",
        "type: solar_plugins.alpaca",
        "it has system, question, chosen, rejected.",
        "solar_plugins.orca_dpo_pairs (with rl: dpo) or solar_plugins.preference (with rl: dpo)",
    ):
        assert fact in words
    assert "solar_plugins.alpaca (without rl:)" in refused(recipe("alpaca.jsonl", "orca_dpo_pairs", rl="dpo"))
    write("other.jsonl", [{"a": 1}])
    words = refused(recipe("other.jsonl"))
    assert "it has a. No registered formatter can read its first 100 rows" in words


PUBLISHED = {
    "TRL's preference form": ({"prompt": "u", "chosen": "a", "rejected": "b"}, ["preference"]),
    "argilla's Orca pairs": (
        {"system": "s", "input": "u", "chosen": "a", "rejected": "b", "status": "swapped"},
        ["preference"],
    ),
    "argilla's ties": ({"system": "s", "input": "u", "chosen": "a", "rejected": "b", "status": "tie"}, []),
    "KTO": ({"prompt": "u", "completion": "a", "label": True}, ["unpaired_preference"]),
    "columns of a formatter whose rows fail": ({"conversations": "u", "messages": "v"}, []),
    "tools": ({"tools": "[{}, 1]", "query": "u", "response": "a"}, []),
    "LLaMA-Factory's ranking": (
        {"conversations": [{"from": "human", "value": "u"}], "chosen": "a", "rejected": "b"},
        ["sharegpt_pairs"],
    ),
}
KINDS = {"without rl:": {}, "with rl: dpo": {"rl": "dpo"}, "under rl: kto": {"rl": "kto"}}


@pytest.mark.parametrize("title", PUBLISHED)
def test_every_suggested_formatter_works(folder, title):
    row, names = PUBLISHED[title]
    write("rows.jsonl", [row] * 3)
    words = refused(recipe("rows.jsonl", "alpaca"))
    hinted = re.findall(r"solar_plugins\.(\w+) \(([^)]*)\)", words)
    assert [name for name, _ in hinted] == names
    assert ("No registered formatter can read" in words) == (not names)
    for name, kind in hinted:
        assert "3 kept" in use_prepared_datasets(recipe("rows.jsonl", name, **KINDS[kind]))[0]


def test_other_formatters_are_suggested_if_the_rows_fail(folder):
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    write("rows.jsonl", [{"conversations": "u", "messages": turns, "chosen": "a", "rejected": "b"}] * 3)
    words = refused(recipe("rows.jsonl", "sharegpt"))
    assert "3 conversations is a string, expected a list of messages" in words
    assert "solar_plugins.messages (without rl:) or solar_plugins.sharegpt_pairs (with rl: dpo)" in words


def test_the_first_cause_of_a_failed_load_is_shown(folder, monkeypatch):
    def broken_loader(*_):
        try:
            raise TypeError("Couldn't cast array of type string to null")
        except TypeError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error

    monkeypatch.setattr("axolotl.utils.data.shared.load_dataset_with_config", broken_loader)
    words = refused(recipe("org/set"))
    assert "cannot be loaded (TypeError: Couldn't cast array of type string to null)" in words
    assert "An error occurred" not in words


def test_files_that_cannot_be_loaded(folder):
    assert "datasets[0] (gone.jsonl): cannot be loaded (" in refused(recipe("gone.jsonl"))
    (folder / "broken.jsonl").write_text("{")
    assert "1 the row is not JSON (Expecting property name enclosed in double quotes) (row 1)" in refused(
        recipe("broken.jsonl")
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "datasets[0] (rows.jsonl): no rows; expected rows for alpaca"),
        (b"\n \n", "datasets[0] (rows.jsonl): no rows"),
        ("é\n".encode("latin-1") * 3, "3 of 3 rows cannot be read as alpaca"),
        (b'[{"instruction": "u"}, {"instruction" "u"}]', "rows.jsonl: row 2 is not valid JSON"),
        (b"\x1f\x8b no gzip", "rows.jsonl: damaged compressed file"),
    ],
)
def test_local_files_without_a_row_to_train_on(folder, content, words):
    (folder / "rows.jsonl").write_bytes(content)
    assert words in refused(recipe("rows.jsonl"))


def test_a_changed_file_of_the_same_size_and_time_is_read_again(folder):
    for word in ("old", "new"):
        write("rows.jsonl", [{"instruction": "u", "output": word}])
        os.utime("rows.jsonl", (1_700_000_000, 1_700_000_000))
        cfg = recipe("rows.jsonl")
        use_prepared_datasets(cfg)
        decoded = AutoTokenizer.from_pretrained("base").decode([t for t in load(cfg)["labels"][0] if t >= 0])
        assert decoded == f"{word}</s>"


def test_rows_are_located_by_line_and_file(folder):
    good, bad = json.dumps(ALPACA[0]), json.dumps(ALPACA[0] | {"output": ""})
    (folder / "parts").mkdir()
    (folder / "parts/a.jsonl").write_text(f"\n{good}\n\n{bad}\n")
    (folder / "parts/b.jsonl").write_text(f"{good}\n{{cut\n{bad}\n")
    lenient = {"data": {"max_bad_share": 0.9}}
    [one] = use_prepared_datasets(recipe("parts/a.jsonl", solar=lenient))
    assert one.endswith("1 output is empty (row 4)")
    [both] = use_prepared_datasets(recipe("parts", solar=lenient))
    assert "2 output is empty (rows a.jsonl:4, b.jsonl:3)" in both
    assert "1 the row is not JSON (Expecting property name enclosed in double quotes) (row b.jsonl:2)" in both


def test_a_dataset_with_other_splits(folder):
    from datasets import DatasetDict

    DatasetDict({"fit": load(recipe(datasets=[{"path": "alpaca.jsonl"}]))}).save_to_disk("splits")
    assert "has no split 'train'; it has fit. Set split: to one of them" in refused(recipe("splits"))
    cfg = recipe(datasets=[{"path": "splits", "type": "solar_plugins.alpaca", "split": "fit"}])
    assert "6 kept" in use_prepared_datasets(cfg)[0]


def test_a_tokenizer_with_another_template(folder):
    (folder / "base" / "chat_template.jinja").write_text("{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}")
    words = refused(recipe())
    assert words.startswith("chat_template: not set, and the tokenizer of base has another template")
    assert "({% for m in messages %}<|im_start|>{{ m.role }}" in words
    assert words.endswith("set chat_template: solar")
    assert use_prepared_datasets(recipe(chat_template="jinja", chat_template_jinja=template_text()))
    words = refused(recipe(chat_template="tokenizer_default"))
    assert words.startswith("chat_template: tokenizer_default, and the tokenizer of base has another template")


def test_a_tokenizer_with_solars_template_keeps_it(folder):
    (folder / "base" / "chat_template.jinja").write_text(template_text())
    cfg = recipe()
    assert use_prepared_datasets(cfg)
    assert cfg.chat_template is None
    for choice in ("tokenizer_default", "tokenizer_default_fallback_chatml"):
        assert use_prepared_datasets(recipe(chat_template=choice))


def test_a_tokenizer_without_an_end_token(folder):
    config = json.loads((folder / "base" / "tokenizer_config.json").read_text())
    config["eos_token"] = None
    (folder / "base" / "tokenizer_config.json").write_text(json.dumps(config))
    assert refused(recipe()).startswith("tokenizer_config: the tokenizer of base has no EOS token")


def test_a_tokenizer_that_appends_eos_to_every_text(folder):
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    path = str(folder / "base" / "tokenizer.json")
    ending = Tokenizer.from_file(path)
    ending.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    ending.save(path)
    config = json.loads((folder / "base" / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "base" / "tokenizer_config.json").write_text(json.dumps(config))
    for method in ("dpo", "ipo", "kto"):
        words = refused(recipe("pairs.jsonl", "orca_dpo_pairs", rl=method))
        assert words.startswith("tokenizer_config: the tokenizer of base appends </s> to every text. ")
        assert f"rl: {method}" in words
        assert "add_eos_token: false" in words
    assert use_prepared_datasets(recipe("pairs.jsonl", "orca_dpo_pairs", rl="orpo")), "its trainer adds nothing"
    assert use_prepared_datasets(recipe())


@pytest.mark.slow
def test_the_seed_of_the_recipe_reaches_the_formatter(folder):
    completions = [{"response": f"r{n}", "overall_score": 9 - n} for n in range(9)]
    write("scores.jsonl", [{"instruction": "u", "completions": completions}] * 20)

    def rejected(seed):
        cfg = recipe("scores.jsonl", "ultrafeedback_scores", rl="dpo", seed=seed)
        use_prepared_datasets(cfg)
        return load(cfg)["rejected"][:]

    assert rejected(1) == rejected(1)
    assert rejected(1) != rejected(2)
    assert rejected(None) == rejected(42) != rejected(0), "Axolotl's default"
    assert "ultrafeedback_scores" in preference_formatters()
