"""Ranks that meet at a store: real processes without Axolotl, so that each case takes seconds."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from solar_plugins.ranks import launch_of, may_speak_while_waiting, ready_together, speaks_for_node

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_RANK": "1"}

RANK = """
import logging, os, sys, time
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from solar_plugins import ranks
from solar_plugins.errors import CheckpointError
ranks.MESSAGE_SECONDS = 0.5
start = time.time()
rank, action, seconds = os.environ["RANK"], sys.argv[1], float(sys.argv[2])
print("in", flush=True)
with ranks.ready_together("the cake"):
    time.sleep(seconds)
    if action == "fail":
        raise CheckpointError("the oven is cold")
print(f"out {time.time() - start:.1f}", flush=True)
if action == "join":  # what Axolotl does next, at the same address
    import torch
    torch.distributed.init_process_group("gloo")
    together = torch.ones(1)
    torch.distributed.all_reduce(together)
    print(f"sum {int(together)}", flush=True)
    torch.distributed.destroy_process_group()
"""


@pytest.fixture
def start():
    """Start ranks as srun does, with the usual variables; what each said comes back with its exit status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []

    def start_rank(rank, action="wait", seconds=0.0, world_size=2):
        place = {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
        process = subprocess.Popen(
            [sys.executable, "-c", RANK, action, str(seconds)],
            env=os.environ | place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield start_rank
    for process in running:
        process.kill()
        process.wait()


def said(process):
    text, _ = process.communicate(timeout=60)
    return process.returncode, text


@pytest.mark.parametrize(
    ("environment", "launched"),
    [
        (TORCHRUN, True),
        (TORCHRUN | {"WORLD_SIZE": "1"}, False),
        (TORCHRUN | {"MASTER_PORT": "x"}, False),
        (TORCHRUN | {"AXOLOTL_IS_PREPROCESS": "1"}, False),
        *((TORCHRUN.keys() - {name}, False) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")),
        ({}, False),
    ],
)
def test_only_a_whole_launch_counts(environment, launched):
    if isinstance(environment, set):
        environment = {name: TORCHRUN[name] for name in environment}
    assert (launch_of(environment) is not None) == launched


def test_a_lone_process_does_not_wait(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    start = time.monotonic()
    with ready_together("nothing"):
        pass
    assert time.monotonic() - start < 1
    assert speaks_for_node()


@pytest.mark.parametrize(
    ("local_rank", "speaks", "waits_aloud"), [("0", True, True), ("1", False, True), ("2", False, False)]
)
def test_who_speaks(monkeypatch, local_rank, speaks, waits_aloud):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert (speaks_for_node(), may_speak_while_waiting()) == (speaks, waits_aloud)


@pytest.mark.parametrize("slow", [0, 1])
def test_all_wait_for_the_slowest_and_say_for_whom_and_the_process_group_follows(start, slow):
    processes = [start(rank, "join", seconds=4.0 if rank == slow else 0.0) for rank in (0, 1)]
    results = [said(process) for process in processes]
    for status, text in results:
        assert status == 0, text
        assert "sum 2" in text
    status, text = results[1 - slow]
    assert float(text.split("out ")[1].split()[0]) >= 3.5, "not without the other"
    if slow == 1:
        assert "1 of 2 ranks have the cake; waiting for rank 1. If one of them is dead, stop the run" in text
    else:
        assert "waiting for rank" in text


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_takes_the_others_with_it_in_its_own_words(start, failing):
    processes = [start(rank, "fail" if rank == failing else "wait", seconds=1.0) for rank in (0, 1)]
    status, text = said(processes[1 - failing])
    assert status == 1
    assert "CheckpointError: another rank could not make the cake, so this one stops too; " in text
    assert f"rank {failing} on {socket.gethostname()}: the oven is cold" in text
    status, text = said(processes[failing])
    assert status == 1
    assert "the oven is cold" in text


@pytest.mark.parametrize("dying", [0, 1])
def test_a_rank_that_dies_can_come_back(start, dying):
    """Rank 0 hosts the store here, so that with it the meeting place dies too."""
    survivor = start(1 - dying, "join")
    victim = start(dying, "join", seconds=60.0)
    assert victim.stdout.readline() == "in\n"
    time.sleep(2)
    os.kill(victim.pid, signal.SIGKILL)
    time.sleep(1)
    assert survivor.poll() is None, survivor.communicate()[0]
    again = start(dying, "join")
    for process in (survivor, again):
        status, text = said(process)
        assert status == 0, text
        assert "sum 2" in text
