"""Folders in which several ranks can train."""

import json
import shutil

import pytest
import yaml


@pytest.fixture(scope="session")
def small_base(tmp_path_factory, tiny_model, sentencepiece_tokenizer):
    """A Mistral-type base of 8 layers in float32, with its tokenizer."""
    directory = tiny_model(tmp_path_factory.mktemp("small") / "base", kind="mistral", dtype="float32", vocab_size=32000)
    for path in sentencepiece_tokenizer.iterdir():
        shutil.copy(path, directory)
    return directory


@pytest.fixture(scope="session")
def make_training_folder(tmp_path_factory, small_base, tiny_recipe):
    """Make a folder with the base, rows, and the tiny recipe with changed keys and the plugin for CPU ranks."""

    def make(rows, keys):
        folder = tmp_path_factory.mktemp("ranks")
        shutil.copytree(small_base, folder / "base")
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = tiny_recipe | keys
        recipe["plugins"] = ["cpu_ranks.CpuRanksPlugin", "solar_plugins.SolarPlugin"]
        (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
        return folder

    return make
