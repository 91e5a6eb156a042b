"""Mixtures and prepared datasets that are killed, or meet an I/O error, at any operation (`fault_runner.py`)."""

import json
import os
import tempfile
from pathlib import Path

import pytest

RUNNER = Path(__file__).parent / "fault_runner.py"

pytestmark = pytest.mark.slow


@pytest.fixture
def report(request, run):
    """What the runner reports for an output and a kind of fault."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        result = run("python", RUNNER, *request.param, folder, env={"PYTHONPATH": str(RUNNER.parents[1])})
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads(result.stdout)
    print(report)
    assert sum(report["outcomes"].values()) == report["points"]
    return report


@pytest.mark.parametrize("report", [("mixture", "kill")], indirect=True)
def test_a_killed_mixture_leaves_either_the_old_or_the_new_output(report):
    assert report["problems"] == []
    assert report["points"] > 50
    assert report["outcomes"]["old"] > 30
    assert report["outcomes"]["none"] == 1, "between two renames"
    assert report["outcomes"]["new"] > 5


@pytest.mark.parametrize("report", [("mixture", "fail")], indirect=True)
def test_a_failed_mixture_leaves_either_the_old_or_the_new_output(report):
    assert report["problems"] == []
    assert report["points"] > 100
    assert report["outcomes"].keys() == {"old", "new"}


@pytest.mark.parametrize(
    "report", [("prepared", "kill"), pytest.param(("prepared", "fail"), marks=pytest.mark.nightly)], indirect=True
)
def test_partial_prepared_datasets_are_never_used(report):
    assert report["problems"] == []
    assert report["points"] > 50
    assert report["outcomes"].keys() == {"old", "none", "new"}
    assert report["outcomes"]["none"] > 30, "what was damaged goes first"
