"""`val_set_size`, `shards` and `weight` choose conversations; Axolotl's own loaders then load both parts."""

import json
import re
import shutil

import pytest

from solar_plugins.axolotl_adapter.datasets import read_in_memory, use_prepared_datasets
from solar_plugins.axolotl_adapter.recipe_checks import check_recipe
from solar_plugins.errors import ArgsError, DataError
from solar_plugins.recipe import parse_recipe

pytestmark = pytest.mark.slow

KEYS = {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "batch_size": 1, "num_epochs": 1, "min_sample_len": 2}
SPLIT = {"val_set_size": 0.2, "seed": 42}
ASKED = ("Describe fruit {}", "Its color?", "Its size?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sentencepiece_tokenizer):
    """A directory with a base's config and tokenizer, and datasets of 60 rows about 60 fruits."""
    path = tmp_path_factory.mktemp("chosen")
    shutil.copytree(sentencepiece_tokenizer, path / "base")
    (path / "base" / "config.json").write_text('{"model_type": "mistral", "vocab_size": 32000}')
    fruits = range(100, 160)
    chats = [
        [(who, text.format(n)) for text in ASKED for who, text in (("human", text), ("gpt", f"It {text}"))]
        for n in fruits
    ]
    rows = {
        "chats": [{"conversations": [{"from": who, "value": text} for who, text in chat]} for chat in chats],
        # The same fruits again: a shorter dialogue, and a question with other answers.
        "starts": [{"conversations": [{"from": who, "value": text} for who, text in chat[:4]]} for chat in chats],
        "single": [{"instruction": ASKED[0].format(n), "output": f"Answer {n % 3}"} for n in fruits],
        "pairs": [{"question": ASKED[0].format(n), "chosen": "good", "rejected": "bad"} for n in fruits],
        "pairs2": [{"question": ASKED[0].format(n), "chosen": "better", "rejected": "bad"} for n in fruits],
        "kto": [
            {"prompt": ASKED[0].format(n), "completion": text, "label": text == "yes"}
            for n in fruits
            for text in ("yes", "no")
        ],
    }
    for name, made in rows.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.fixture
def recipe(folder, monkeypatch, tmp_path):
    from axolotl.utils.dict import DictDefault

    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "hub"))

    def make(*datasets, **keys):
        entries = [{"path": f"{name}.jsonl", "type": f"solar_plugins.{kind}", **more} for name, kind, more in datasets]
        base = {"base_model": "base", "tokenizer_config": "base", "dataset_prepared_path": str(tmp_path / "prepared")}
        return DictDefault({**base, "sequence_len": 256, **KEYS, "datasets": entries, **keys})

    return make


def loaded(cfg):
    """The texts of the examples that Axolotl trains and evaluates on."""
    from axolotl.loaders import load_tokenizer
    from axolotl.utils.data.rl import prepare_preference_datasets
    from axolotl.utils.data.sft import prepare_datasets
    from axolotl.utils.schemas.enums import RLType

    use_prepared_datasets(cfg)
    tokenizer = load_tokenizer(cfg)
    if cfg.rl:
        cfg.rl = RLType(cfg.rl)
        found = prepare_preference_datasets(cfg, tokenizer)
        return [[row["prompt"] for row in one or ()] for one in found]
    train, test, *_ = prepare_datasets(cfg, tokenizer)
    return [[tokenizer.decode(row["input_ids"]) for row in one or ()] for one in (train, test)]


def fruits(texts):
    return {int(re.search(r"fruit (\d+)", text).group(1)) for text in texts}


SETS = {
    "conversations": ([("chats", "sharegpt", {})], {}, (144, 36)),
    "several datasets": ([("chats", "sharegpt", {}), ("starts", "sharegpt", {}), ("single", "alpaca", {})], {}, None),
    "several answers to a question": (
        [("pairs", "orca_dpo_pairs", {"split": "train"}), ("pairs2", "orca_dpo_pairs", {"split": "train"})],
        {"rl": "dpo"},
        (96, 24),
    ),
    "kto from pairs": ([("pairs", "orca_dpo_pairs", {"split": "train"})], {"rl": "kto"}, (96, 24)),
    "kto": ([("kto", "unpaired_preference", {"split": "train"})], {"rl": "kto"}, (96, 24)),
    "without exact duplicates": (
        [("chats", "sharegpt", {}), ("starts", "sharegpt", {})],
        {"dataset_exact_deduplication": True},
        (144, 36),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("title", SETS)
def test_nothing_is_both_held_out_and_trained_on(recipe, title):
    datasets, keys, sizes = SETS[title]
    train, test = loaded(recipe(*datasets, **(SPLIT | keys)))
    assert test
    assert not fruits(train) & fruits(test)
    assert fruits(train) | fruits(test) == {*range(100, 160)}
    assert sizes is None or (len(train), len(test)) == sizes


def test_the_split_in_the_log_and_in_the_recipe(recipe):
    cfg = recipe(("chats", "sharegpt", {}), **SPLIT)
    lines = use_prepared_datasets(cfg)
    assert lines[1:] == [
        "datasets[0] (chats.jsonl): 12 of 60 rows, 36 of 180 examples, held out (val_set_size: 0.2, seed 42)"
    ]
    assert (cfg.val_set_size, len(cfg.datasets), len(cfg.test_datasets)) == (0, 1, 1)
    again = recipe(("chats", "sharegpt", {}), **SPLIT)
    use_prepared_datasets(again)
    assert (again.datasets, again.test_datasets) == (cfg.datasets, cfg.test_datasets)
    other = recipe(("chats", "sharegpt", {}), val_set_size=0.2, seed=1)
    use_prepared_datasets(other)
    assert other.test_datasets != cfg.test_datasets


def test_a_changed_file_is_split_again(recipe, folder):
    rows = (folder / "chats.jsonl").read_text()
    paths = set()
    for number in range(2):
        (folder / "changing.jsonl").write_text(rows.replace("Its color?", f"Its color {number}?"))
        cfg = recipe(("changing", "sharegpt", {}), **SPLIT)
        use_prepared_datasets(cfg)
        paths |= {cfg.datasets[0].path, cfg.test_datasets[0].path}
    assert len(paths) == 4


def test_shards_and_weight_choose_complete_conversations(recipe):
    from datasets import load_from_disk

    def rows_of(**entry):
        cfg = recipe(("chats", "sharegpt", entry), seed=42)
        lines = use_prepared_datasets(cfg)
        assert set(cfg.datasets[0]) == {"path"}, "otherwise Axolotl would choose again"
        ready = load_from_disk(cfg.datasets[0].path)
        return [tuple(row) for row in ready["input_ids"]], lines

    everything, _ = rows_of()
    parts = [rows_of(shards=4, shards_idx=index)[0] for index in range(4)]
    assert sorted(row for part in parts for row in part) == sorted(everything)
    assert [len(part) for part in parts] == [45] * 4
    assert all(sum(row in part for row in everything[:3]) in (0, 3) for part in parts)
    half, lines = rows_of(weight=0.5)
    assert (len(half), lines[1]) == (
        90,
        "datasets[0] (chats.jsonl): 30 of 60 rows, 90 of 180 examples, taken (weight: 0.5, seed 42)",
    )
    assert rows_of(weight=1.0)[0] == everything
    with pytest.raises(DataError, match="shards: 99 leaves no rows"):
        rows_of(shards=99, shards_idx=98)


def test_a_split_with_datasets_of_other_types_is_rejected(recipe):
    cfg = recipe(("chats", "sharegpt", {}), **SPLIT)
    cfg.datasets.append({"path": "x.jsonl", "type": "completion"})
    with pytest.raises(ArgsError, match=r"^val_set_size: 0\.2 .*solar_plugins\.sharegpt .*test_datasets"):
        check_recipe(parse_recipe(cfg))


@pytest.mark.parametrize(("entry", "keys"), [({"shards": 4}, {}), ({}, SPLIT)])
def test_commands_that_do_not_ask_plugins_are_rejected(recipe, entry, keys):
    """`axolotl evaluate` would split the rows itself, and evaluate on rows that were trained on."""
    cfg = recipe(("chats", "sharegpt", entry), **keys)
    with pytest.raises(DataError, match=r"this Axolotl command splits the rows itself.* test_datasets"):
        read_in_memory(None, None, cfg, cfg.datasets[0], None)
