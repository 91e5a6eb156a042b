"""`solar run` with the real Axolotl: a training stage that is killed resumes, and ends with the same weights."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import commands
import pytest
import yaml
from commands import PROGRAMS

from solar_plugins import lineage


@pytest.fixture
def folder(training_folder):
    """A pipeline of one training stage, which saves all that resuming needs after each step."""
    recipe = yaml.safe_load((training_folder / "recipe.yml").read_text())
    recipe |= {"max_steps": 4, "save_steps": 1, "save_total_limit": 4}
    (training_folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    launch = f"{sys.executable} -I -S {commands.HERE / 'warm_client.py'} {commands.warm_server().name}"
    stages = [{"name": "dus", "recipe": "recipe.yml"}]
    pipeline = {"records": "records", "launch": launch, "stages": stages}
    (training_folder / "pipeline.yml").write_text(yaml.safe_dump(pipeline))
    return training_folder


def start(folder, *options):
    command = [str(PROGRAMS / "solar"), "run", "pipeline.yml", *options]
    return subprocess.Popen(
        command, cwd=folder, env=commands.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(folder, *options):
    process = start(folder, *options)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    return said


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "out" / "model.safetensors")


def saved(folder):
    return [path for path in (folder / "out").glob("checkpoint-*") if (path / "trainer_state.json").exists()]


@pytest.mark.slow
def test_a_killed_training_resumes_from_its_newest_checkpoint_that_is_complete(folder, tmp_path):
    import torch

    process = start(folder)
    deadline = time.monotonic() + 300
    while len(saved(folder)) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    run_again = start(folder, "--dry-run")  # It waits until no process of the killed stage is left.
    assert "would continue" in run_again.communicate()[0]
    newest, before = sorted(saved(folder), key=lambda path: path.name, reverse=True)[:2]
    optimizer = newest / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1000])

    said = run(folder)
    for fact in (f"{newest.name} cannot be resumed from (optimizer.pt", f"damaged-{newest.name}", f"out/{before.name}"):
        assert fact in said
    assert "dus: done" in run(folder)

    stages = [(stage.kind, stage.result.short) for stage in lineage.read(folder / "out").stages]
    assert stages == [("upscale", "base-12-layers"), ("pretrain", "out")], "once, although it was started twice"
    resumed = weights(folder)
    shutil.move(folder / "out", folder / "resumed")
    run(folder)
    uninterrupted = weights(folder)
    assert resumed.keys() == uninterrupted.keys()
    for name, tensor in resumed.items():
        assert torch.equal(tensor, uninterrupted[name]), name


@pytest.mark.slow
def test_a_run_that_saves_the_model_only_starts_again(folder):
    """The unfinished output is moved aside; nothing of it is in the new one."""
    path = folder / "recipe.yml"
    path.write_text(path.read_text() + "save_only_model: true\n")
    process = start(folder)
    deadline = time.monotonic() + 300
    while not saved(folder):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    said = run(folder)
    assert "no optimizer" in said
    assert "out.unfinished-1" in said
    assert Path(folder / "out" / "model.safetensors").exists()
