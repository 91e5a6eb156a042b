"""`axolotl evaluate` does not ask plugins for datasets: Axolotl's own look-up of a `type`."""

import os
import sys
from dataclasses import replace

import pytest

import solar_plugins
from solar_plugins.axolotl_adapter.bindings import bind, folder_by_content, is_called_without_plugins
from solar_plugins.axolotl_adapter.recipe_checks import FormattedDataset, check_recipe
from solar_plugins.data.formatters.base import SFTFormatter
from solar_plugins.errors import DataError, PluginError
from solar_plugins.recipe import parse_recipe

SET = {"path": "rows.jsonl", "type": "solar_plugins.alpaca"}


@pytest.fixture(autouse=True)
def _unbound():
    before = set(sys.modules), set(vars(solar_plugins))
    yield
    for name in set(sys.modules) - before[0]:
        if getattr(sys.modules[name], "load", None) and name.startswith("solar_plugins."):
            del sys.modules[name]
    for name in set(vars(solar_plugins)) - before[1]:
        delattr(solar_plugins, name)


def test_axolotls_loader_finds_the_formatter_and_gets_ids_and_labels(tokenizer):
    from axolotl.utils.data.wrappers import get_dataset_wrapper
    from axolotl.utils.dict import DictDefault
    from datasets import Dataset

    cfg = DictDefault({"datasets": [SET], "sequence_len": 64, "base_model": "base"})
    (found,) = check_recipe(parse_recipe(cfg))
    bind(found)
    bind(found)  # Axolotl may call `register` again.
    rows = Dataset.from_list([{"instruction": "u", "output": "good"}])
    ready, _ = get_dataset_wrapper(cfg.datasets[0], tokenizer, cfg, "solar_plugins.alpaca", rows)
    assert tokenizer.decode([token for token in ready[0]["labels"] if token >= 0]) == "good</s>"
    with pytest.raises(DataError, match=r"datasets\[0\] \(rows.jsonl\): has no column instruction"):
        get_dataset_wrapper(cfg.datasets[0], tokenizer, cfg, "x", Dataset.from_list([{"output": "good"}]))


def test_rows_of_a_local_file_are_read_as_in_training(tokenizer, tmp_path, monkeypatch, caplog):
    from axolotl.utils.data.wrappers import get_dataset_wrapper
    from axolotl.utils.dict import DictDefault
    from datasets import Dataset, config

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "hub")
    (tmp_path / "rows.jsonl").write_text('\n{"instruction": "u", "output": "new"}\n{cut\n')
    cfg = DictDefault(
        {"datasets": [SET], "sequence_len": 64, "base_model": "base", "solar": {"data": {"max_bad_share": 0.5}}}
    )
    bind(*check_recipe(parse_recipe(cfg)))
    stale = Dataset.from_list([{"instruction": "u", "output": "old"}])
    ready, _ = get_dataset_wrapper(cfg.datasets[0], tokenizer, cfg, "solar_plugins.alpaca", stale)
    assert [tokenizer.decode([t for t in row["labels"] if t >= 0]) for row in ready] == ["new</s>"]
    assert "(row 3)" in caplog.text


def test_a_preference_dataset_is_rejected(caplog):
    from axolotl.prompt_strategies.dpo import load

    recipe = {"datasets": [SET | {"type": "solar_plugins.math_pairs"}], "rl": "dpo", "sequence_len": 64}
    bind(*check_recipe(parse_recipe(recipe)))
    assert load("solar_plugins.math_pairs", {}, dataset_idx=0) is None, "Axolotl stops on None in its next line"
    with pytest.raises(DataError, match=r"does not ask plugins for datasets.* test_datasets"):
        solar_plugins.math_pairs({}, dataset_idx=0)


@pytest.mark.parametrize("name", ["data", "upscaling", "hookimpl", "SolarPlugin"])
def test_a_formatter_cannot_use_the_name_of_something_else(name):
    formatter = SFTFormatter(name=name, columns=(), to_messages=lambda row: [], summary="")
    before = getattr(solar_plugins, name, None)
    with pytest.raises(PluginError, match=f"the formatter '{name}' is reserved in solar_plugins"):
        bind(FormattedDataset("datasets", 0, {}, formatter))
    assert getattr(solar_plugins, name, None) is before


def test_the_command_that_does_not_ask_plugins_is_recognized_by_its_file():
    from axolotl.cli import evaluate, train

    code = "found = is_called_without_plugins()"
    for module, expected in ((evaluate, True), (train, False)):
        names = {"is_called_without_plugins": is_called_without_plugins, "__name__": "__main__"}
        exec(compile(code, module.__file__, "exec"), names)
        assert names["found"] is expected
    assert not is_called_without_plugins()


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "data/rows.jsonl"},
        {"path": "data"},
        {"path": "data", "data_files": "data/*.jsonl"},
        {"path": "data", "data_files": ["data/rows.jsonl"]},
    ],
)
def test_prepared_rows_have_a_folder_by_content_formatter_and_version(tmp_path, monkeypatch, entry):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "data" / "rows.jsonl"
    file.parent.mkdir()
    formatter = SFTFormatter(name="x", columns=(), to_messages=lambda row: [], summary="x")
    folders = []
    for content, version in (("old", 1), ("new", 1), ("old", 1), ("old", 2)):
        file.write_text(content)
        os.utime(file, (1_700_000_000, 1_700_000_000))
        found = FormattedDataset("datasets", 0, entry | {"type": "x"}, replace(formatter, version=version))
        folders.append(folder_by_content(tmp_path, [found]))
    assert folders[0] == folders[2]
    assert len(set(folders)) == 3
    hub = FormattedDataset("datasets", 0, {"path": "org/set"}, formatter)
    assert folder_by_content(tmp_path, [hub]).parent == tmp_path
