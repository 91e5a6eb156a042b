"""`solar recipes show`: half a screen, from the keys."""

import json

import pytest
import yaml
from click.testing import CliRunner
from known_models import MISTRAL

from solar_plugins.cli import solar
from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.sharing.show import show

FILES = sorted(recipe_directory().rglob("*.yml"))


@pytest.fixture
def mistral(tmp_path):
    (tmp_path / "mistral").mkdir()
    (tmp_path / "mistral/config.json").write_text(json.dumps(MISTRAL))
    return str(tmp_path / "mistral")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(recipe_directory())))
def test_every_recipe_fits_half_a_screen(path, mistral):
    lines = show(path, base=mistral).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith(f"{path.name}: ")


def test_what_it_says_of_the_first_stage(mistral):
    text = show(recipe_directory() / "solar_dus.yml", base=mistral, gpus=["8xH100"])
    for fact in (
        "mistralai/Mistral-7B-v0.1: 32 layers",
        "dus (drop_layers: 8)",
        "32 -> 48 layers: [0..23] + [8..31], 10.7B parameters",
        "all parameters",
        "HuggingFaceFW/fineweb-edu (sample-100BT, train, type pretrain)",
        "64 sequences x 4,096 packed = 262,144",
        "5,000 steps",
        "adamw_torch_fused, learning rate 2e-05, cosine, 100 warmup steps, weight decay 0.1",
        "36.7 GB of each of 8 GPUs (8xH100)",
        "150 GB per checkpoint, at most 2 kept",
        "outputs/solar_dus",
        "runs no third-party code",
    ):
        assert fact in text


def test_no_comment_changes_it(tmp_path, mistral):
    source = recipe_directory() / "solar_dus.yml"
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "solar_dus.yml").write_text(yaml.safe_dump(yaml.safe_load(source.read_text()), sort_keys=False))
    (tmp_path / "recipes").symlink_to(recipe_directory())  # for the DeepSpeed file
    assert show(plain / "solar_dus.yml", base=mistral) == show(source, base=mistral)


def test_without_the_base_it_says_what_is_not_known(tmp_path):
    text = show(recipe_directory() / "solar_dus.yml")
    assert "--base" in text
    assert "dus (drop_layers: 8)" in text


def test_rows_and_foreign_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n' * 10)
    recipe = {
        "base_model": "org/b",
        "trust_remote_code": True,
        "datasets": [{"path": "rows.jsonl", "type": "mine.load"}],
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_epochs": 3,
        "learning_rate": "1e-5",
    }
    (tmp_path / "r.yml").write_text(yaml.safe_dump(recipe))
    text = show(tmp_path / "r.yml")
    assert "10 rows" in text
    assert "8 steps" in text
    assert "trust_remote_code runs the Python code" in text
    assert "mine.load" in text


def test_hostile_values(tmp_path):
    recipe = {
        "base_model": "\x1b[31mred\n" * 50,
        "datasets": [{"path": "x" * 5000, "type": [[]]}] * 40 + [None, 3],
        "plugins": ["x" * 5000 + ".Plugin"],
        "max_steps": [1],
        "num_epochs": {"a": 1},
        "learning_rate": "much",
        "gradient_accumulation_steps": float("nan"),
    }
    (tmp_path / "r.yml").write_text(yaml.safe_dump(recipe))
    result = CliRunner().invoke(solar, ["recipes", "show", str(tmp_path / "r.yml")])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert len(result.output.splitlines()) <= 24


@pytest.mark.parametrize("text", ["sets: 3\noutput: x\n", "stages: [3]\n", "base_model: [1]\n", "a: [\n"])
def test_broken_files_are_told_in_words(tmp_path, text):
    (tmp_path / "r.yml").write_text(text)
    result = CliRunner().invoke(solar, ["recipes", "show", str(tmp_path / "r.yml")])
    assert result.exit_code == 1
    assert "r.yml" in result.output or "base_model" in result.output


def test_a_folder_lists_its_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.yml").write_text("base_model: org/b\nrl: dpo\n")
    assert show(tmp_path).count("preference training (DPO)") == 2
