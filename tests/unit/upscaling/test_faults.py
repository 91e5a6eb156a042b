"""Kills, full disks, I/O errors, changing bases, crowds of processes; `fault_runner.py` makes most of the attempts."""

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from shared_disks import SHARING, disk

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling import checkpoint
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan

RUNNER = Path(__file__).parent / "fault_runner.py"

pytestmark = pytest.mark.slow

SHARED_WIDTH = 128
"""Matrices of 32 kB, so that they have whole blocks to share."""


@pytest.fixture
def folder():
    """In memory if possible: the attempts flush more than ten thousand files."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture
def attempts(folder, run):
    """What the runner reports of a mode."""

    def run_mode(mode, folder=folder, width=8):
        result = run("python", RUNNER, mode, folder, width, env={"PYTHONPATH": str(RUNNER.parents[1])})
        assert result.returncode == 0, result.stderr[-2000:]
        report = json.loads(result.stdout)
        print({key: value for key, value in report.items() if key != "waiting"})
        assert report["problems"] == [], report["count"]
        return report

    return run_mode


def load_runner():
    spec = importlib.util.spec_from_file_location("fault_runner", RUNNER)
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    return runner


def test_killed_before_every_operation(attempts):
    """The base is untouched, no partial checkpoint is reused, one more run gives the same bytes and no leftovers."""
    report = attempts("kill")
    assert report["points"] >= 80, "a writer with so few operations is not watched right"
    assert sum(report["outcomes"].values()) == report["points"]
    assert report["outcomes"]["partial left"] > 50
    assert 1 <= report["outcomes"]["finished"] < 10, "killed after the rename"


@pytest.mark.nightly
def test_every_file_operation_may_fail_once(attempts):
    """An error is one paragraph and leaves nothing; where it does not matter, the result is right."""
    report = attempts("errors")
    assert report["points"]["No space left on device"] >= 80
    assert report["points"]["Input/output error"] >= 300
    assert report["texts"].keys() == {"No space left on device", "Input/output error"}
    # Whose failure may be passed over: looking at links, the note in the lock file, sendfile (copied otherwise).
    assert report["ignored"].keys() <= {
        *("lstat", "stat", "fstat", "open", "mkdir", "read", "write", "unlink"),
        "close",
    } | {"sendfile"}


@pytest.mark.nightly
@pytest.mark.parametrize("kind", SHARING)
def test_killed_before_every_operation_on_a_disk_that_shares_blocks(attempts, kind):
    """The same promises; the operations that share blocks are among those before which it is killed."""
    with disk(kind) as shared:
        report = attempts("kill", shared, SHARED_WIDTH)
        assert report["points"] >= 60
        assert report["outcomes"]["partial left"] > 40
        assert any(json.loads(path.read_text()).get("shared_block") for path in shared.glob("cache/*/solar_plan.json"))


@pytest.mark.nightly
@pytest.mark.parametrize("kind", SHARING)
def test_every_operation_fails_once_on_a_disk_that_shares_blocks(attempts, kind):
    with disk(kind) as shared:
        report = attempts("errors", shared, SHARED_WIDTH)
        assert report["texts"].keys() == {"No space left on device", "Input/output error"}


@pytest.mark.parametrize("kind", SHARING)
def test_eight_processes_on_a_disk_that_shares_blocks(attempts, kind):
    with disk(kind) as shared:
        report = attempts("many-1-die", shared, SHARED_WIDTH)
        assert report["statuses"] == [-signal.SIGKILL, *[0] * 7], report["errors"]
        assert (report["placed"], report["rest"]) == (1, [])


@pytest.mark.nightly
def test_the_base_changes_before_every_third_operation(attempts):
    """Refused up to the moment in which everything has been read; after it, it does not matter."""
    report = attempts("changes")
    assert report["found"].keys() == {"grow", "truncate", "replace", "utime"}
    for outcomes in report["found"].values():
        (refused, early), (too_late, late) = outcomes
        assert (refused, too_late) == ("refused", "too late to matter")
        assert early > 5 * late


def test_eight_processes_make_one_copy_and_name_the_writer_they_wait_for(attempts):
    report = attempts("many-1-live")
    (owner,) = report["owners"]
    assert (report["statuses"], report["placed"], report["second"], report["rest"]) == ([0] * 8, 1, 0, [])
    assert len(report["waiting"]) == 7
    assert all(line.startswith(f"waiting for process {owner} on ") for line in report["waiting"])
    assert any("(102 kB written; " in line for line in report["waiting"])


def test_eight_processes_whose_first_writer_is_killed(attempts):
    report = attempts("many-1-die")
    assert report["statuses"] == [-signal.SIGKILL, *[0] * 7], report["errors"]
    assert (len(report["owners"]), report["placed"], report["second"], report["rest"]) == (2, 1, 0, [])


def test_two_nodes_whose_locks_do_not_reach_each_other(attempts):
    """Both write, each in a directory of its own; one result is taken, and no live writer's files are removed."""
    report = attempts("many-2-live")
    assert report["statuses"] == [0] * 8, report["errors"]
    assert (len(report["owners"]), report["placed"], report["second"], report["rest"]) == (2, 1, 1, [])


def test_two_nodes_and_a_killed_writer(attempts):
    """The dead one's node takes over, or finds what the other node has finished in the meantime."""
    report = attempts("many-2-die")
    assert report["statuses"] == [-signal.SIGKILL, *[0] * 7], report["errors"]
    assert report["placed"] == 1
    assert len(report["owners"]) == report["placed"] + report["second"] + 1
    assert report["rest"] == []


def test_the_command_killed_at_random_moments(folder, run):
    """The real command on 100 MB, killed at times spread over its entire run; then it runs to its end."""
    runner = load_runner()
    base = runner.make_base(folder / "base", layers=4, hidden=1024, vocabulary=8192)
    out = folder / "cache" / "out"
    command = [str(Path(sys.executable).parent / "solar"), "upscale", str(base), str(out), "--drop-layers", "1"]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    duration = time.monotonic() - start
    expected, before = runner.content(out), (runner.content(base), runner.times(base))
    moments, partials, generator = 14, 0, random.Random(0)
    for moment in range(moments):
        shutil.rmtree(out, ignore_errors=True)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(duration * (0.4 + 0.6 * (moment + generator.random()) / moments))
        process.kill()
        process.wait()
        partials += any(".partial-" in path.name for path in out.parent.iterdir())
        if out.exists():
            assert runner.content(out) == expected
        assert (runner.content(base), runner.times(base)) == before
    assert partials > 0, "no kill struck while it wrote"
    assert run(*command).returncode == 0
    assert runner.content(out) == expected
    assert list(out.parent.iterdir()) == [out]
    assert run("solar", "verify", out, "--base", base).returncode == 0


def test_a_disk_that_is_really_full(folder, monkeypatch):
    disk = folder / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("no permission to mount a small disk; test_every_file_operation_may_fail_once injects ENOSPC")
    try:
        runner = load_runner()
        base = find_base(str(runner.make_base(folder / "base", layers=2, hidden=256, vocabulary=512)))
        plan = LayerPlan.from_sources(2, [0, 1, 0, 1])
        with pytest.raises(CheckpointError, match=r"MB free, but the upscaled checkpoint needs 4\.\d+ MB"):
            ensure_checkpoint(base, plan, disk / "cache")
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint, "_require_space", lambda *_: None)
            with pytest.raises(CheckpointError, match=r"could not be written .No space left.*Free disk space"):
                ensure_checkpoint(base, plan, disk / "cache")
        assert list((disk / "cache").iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
        directory = ensure_checkpoint(base, plan, disk / "cache")
        assert directory == ensure_checkpoint(base, plan, disk / "cache")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
