"""The rank that writes takes longer than a collective may, or dies: the run continues, and ranks log that they wait."""

import json
import os
import re
import signal
import threading
import time

import pytest
from commands import cold, ended
from launchers import evidence, free_port, single_rank, torchrun

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

TEXTS = [{"text": f"The number {n} is followed by the number {n + 1}. " * 20} for n in range(10)]
TIMEOUT = {"ddp_timeout": 10}
SLOW = "15"
"""Seconds, longer than `TIMEOUT` allows a collective."""


@pytest.fixture
def folder(make_training_folder):
    def make(**keys):
        return make_training_folder(
            TEXTS,
            {"datasets": [{"path": "rows.jsonl", "ds_type": "json", "type": "completion"}], "max_steps": 1} | keys,
        )

    return make


def finished_checkpoints(cache):
    return [
        path.name
        for path in cache.glob("upscaled-*")
        if json.loads((path / "config.json").read_text())["num_hidden_layers"] == 12
    ]


@pytest.mark.nightly
def test_a_slow_writer_with_a_shared_folder(folder):
    place = folder(**TIMEOUT)
    status, said = torchrun(place, "ddp", 2, SLOW_WRITER=SLOW)
    assert status == 0, said[-5000:]
    assert re.search(r"waiting for process \d+ on \S+, writing since .* to finish .*/cache/upscaled-8-to-12-", said)
    assert said.count("upscaling base: 8 -> 12 layers") == 1
    assert len(finished_checkpoints(place / "cache")) == 1
    assert [len(rank["layer_sums"]) for rank in evidence(place, 2)] == [12, 12]


@pytest.mark.nightly
def test_a_slow_node_with_its_own_folder(folder):
    place = folder(**TIMEOUT, solar={"init": {"strategy": "dus", "drop_layers": 2}})
    port = free_port()
    nodes = [
        single_rank(place, rank, 2, port, start=cold, HF_HOME=str(place / f"node{rank}"), SLOW_WRITER=seconds)
        for rank, seconds in enumerate(["0", SLOW])
    ]
    (status, said), (other_status, other_said) = all_finished(nodes)
    assert (status, other_status) == (0, 0), said[-3000:] + other_said[-3000:]
    assert "1 of 2 ranks have the upscaled checkpoint; waiting for rank 1." in said
    for rank, text in enumerate((said, other_said)):
        assert text.count("upscaling base: 8 -> 12 layers") == 1, "once per node"
        assert len(finished_checkpoints(place / f"node{rank}" / "solar_plugins")) == 1
    first, second = evidence(place, 2)
    assert first["layer_sums"] == second["layer_sums"]
    assert first["losses"] == second["losses"]


def all_finished(processes):
    """Exit status and output of processes that wait for each other; read at the same time, so that no pipe fills up."""
    results = [None] * len(processes)

    def collect(number):
        results[number] = ended(processes[number], 300)

    threads = [threading.Thread(target=collect, args=(number,)) for number in range(len(processes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_another_rank_takes_over_from_a_killed_writer(folder):
    place, port = folder(), free_port()
    writer = single_rank(place, 0, 2, port, SLOW_WRITER="300")
    (partial,) = wait_for(lambda: list((place / "cache").glob(".upscaled-*.partial-*")), writer)
    waiting = single_rank(place, 1, 2, port, SLOW_WRITER="0")
    lines = []
    for line in waiting.stdout:
        lines.append(line)
        if re.search(r"waiting for process \d+ on ", line):
            break
    os.killpg(writer.pid, signal.SIGKILL)
    for line in waiting.stdout:
        lines.append(line)
        if "upscaling base: 8 -> 12 layers" in line:
            break
    assert any(f"removing leftovers of an interrupted run: {partial}" in line for line in lines)
    wait_for(lambda: finished_checkpoints(place / "cache") if not partial.exists() else None, waiting)
    back = single_rank(place, 0, 2, port)
    (status, said), (other_status, other_said) = all_finished([back, waiting])
    writer.wait()
    assert (status, other_status) == (0, 0), said[-3000:] + "".join(lines)[-3000:] + other_said[-3000:]
    assert "using the cached upscaled checkpoint" in said
    assert "upscaling base" not in said
    assert [len(rank["layer_sums"]) for rank in evidence(place, 2)] == [12, 12]


def wait_for(look, process, seconds=120):
    """The first result of ``look`` that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[0][-3000:]
        try:
            if found := look():
                return found
        except FileNotFoundError:
            pass  # Its owner is working on it.
        time.sleep(0.2)
    raise AssertionError("timed out")


def test_torchrun_restarts_after_the_writer_was_killed(folder):
    place = folder()
    status, said = torchrun(place, "ddp", 2, "--max-restarts=1", SLOW_WRITER="1", DIES_ONCE="1")
    assert status == 0, said[-5000:]
    assert said.count("upscaling base: 8 -> 12 layers") >= 2, "once by the killed rank, and again"
    assert "exitcode: -9" in said, said
    assert len(finished_checkpoints(place / "cache")) == 1
    assert not [path for path in (place / "cache").iterdir() if path.name.startswith(".")]
    assert [len(rank["layer_sums"]) for rank in evidence(place, 2)] == [12, 12]
