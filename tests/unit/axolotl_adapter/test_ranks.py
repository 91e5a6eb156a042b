"""Ranks that meet at a store: real processes without Axolotl, so that each case takes seconds; and which rank logs."""

import json
import signal
import socket
import time

import pytest
from commands import cold, ended, run, started, warm

from solar_plugins.axolotl_adapter.ranks import launch_of, ready_together, torchrun_will_restart
from solar_plugins.logs import may_speak_while_waiting, speaks_for_node

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_RANK": "1"}

RANK = """
import json, logging, os, signal, sys, threading, time
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
from solar_plugins.axolotl_adapter import ranks
from solar_plugins.errors import CheckpointError
ranks.MESSAGE_SECONDS, ranks.CONNECT_SECONDS, ranks.UNREACHABLE_SECONDS = 0.5, 1.0, float(sys.argv[2])
ranks.REPORT_SECONDS = 8.0
signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell that starts pytest with & lets it ignore this.
start = time.time()
attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
action, seconds = json.loads(sys.argv[1]).get(attempt + "/" + os.environ["RANK"], ("join", 0))
if action == "poll rarely":
    ranks.POLL_SECONDS = 1.0 + 2.0 * int(os.environ["RANK"])
print("in", flush=True)
with ranks.ready_together("the cake"):
    time.sleep(seconds)
    if action == "fail":
        raise CheckpointError("the oven is cold")
    if action == "break":
        raise KeyError("oven")
    if action == "odd":
        raise CheckpointError("base_model: /data/" + chr(0xDCFF))
    if action == "die":
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
sys.stdout.write(f"out of {attempt} after {time.time() - start:.1f}\\n")  # print() would let lines of two ranks mix
sys.stdout.flush()
if action == "join":  # what Axolotl does next, at the same address
    import torch
    torch.distributed.init_process_group("gloo")
    together = torch.ones(1)
    torch.distributed.all_reduce(together)
    sys.stdout.write(f"sum {int(together)}\\n")
    torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("environment", "launched"),
    [
        (TORCHRUN, True),
        (TORCHRUN | {"WORLD_SIZE": "1"}, False),
        (TORCHRUN | {"MASTER_PORT": "x"}, False),
        (TORCHRUN | {"AXOLOTL_IS_PREPROCESS": "1"}, False),
        *(
            ({key: value for key, value in TORCHRUN.items() if key != name}, False)
            for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        ),
        ({}, False),
    ],
)
def test_only_a_complete_launch_counts(environment, launched):
    assert (launch_of(environment) is not None) == launched


@pytest.mark.parametrize(
    ("local_rank", "for_node", "while_waiting"), [("0", True, True), ("1", False, True), ("2", False, False)]
)
def test_which_ranks_log(monkeypatch, local_rank, for_node, while_waiting):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert (speaks_for_node(), may_speak_while_waiting()) == (for_node, while_waiting)


@pytest.mark.parametrize(
    ("count", "limit", "restarts"),
    [("0", "1", True), ("1", "1", False), ("0", "0", False), ("", "3", False), (None, None, False)],
)
def test_whether_torchrun_will_restart(count, limit, restarts):
    said = {"TORCHELASTIC_RESTART_COUNT": count, "TORCHELASTIC_MAX_RESTARTS": limit}
    assert torchrun_will_restart({key: value for key, value in said.items() if value is not None}) == restarts


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(port):
    """Start ranks as srun does, with the usual variables; `said` gives the exit status and the output of each."""

    def start_rank(rank, action="wait", seconds=0.0, unreachable_seconds=600.0, world_size=2, **env):
        launch = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
        launch |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | env
        actions = json.dumps({f"0/{rank}": [action, seconds]})
        return started(warm("python", "-c", RANK, actions, unreachable_seconds), env=launch)

    return start_rank


def said(process):
    return ended(process, timeout=60)


def read_until(process, words):
    """The output up to the line that contains ``words``; the test fails if the process exits first."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def test_a_single_process_does_not_wait(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    start = time.monotonic()
    with ready_together("nothing"):
        pass
    assert time.monotonic() - start < 1


@pytest.mark.slow
@pytest.mark.parametrize("slow", [0, 1])
def test_all_ranks_wait_for_the_slowest_and_name_it_and_the_process_group_follows(start, slow):
    processes = [start(rank, "join", seconds=4.0 if rank == slow else 0.0) for rank in (0, 1)]
    results = [said(process) for process in processes]
    for status, text in results:
        assert status == 0, text
        assert "sum 2" in text
    status, text = results[1 - slow]
    assert seconds_until_out(text) >= 3.5, "not before the slow one"
    assert f"1 of 2 ranks have the cake; waiting for rank {slow}." in text


def seconds_until_out(text, attempt=0):
    return float(text.split(f"out of {attempt} after ")[1].split()[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failing", "action", "words"), [(0, "fail", "the oven is cold"), (1, "break", "KeyError: 'oven'")]
)
@pytest.mark.parametrize("survivor_seconds", [0.0, 3.0])
def test_if_one_rank_fails_all_ranks_exit_with_its_error(start, failing, action, words, survivor_seconds):
    """Busy ranks too, and also if rank 0 fails, which hosts the store."""
    processes = [start(r, action, seconds=1.0) if r == failing else start(r, "wait", survivor_seconds) for r in (0, 1)]
    status, text = said(processes[1 - failing])
    assert status == 1
    (error,) = (line for line in text.splitlines() if "LaunchError: " in line)
    assert "the cake" in error
    assert error.endswith(f"rank {failing} on {socket.gethostname()}: {words}")
    status, text = said(processes[failing])
    assert status == 1
    assert words in text
    assert "LaunchError" not in text


@pytest.mark.slow
def test_rank_0_stays_until_all_ranks_have_read_the_failure_of_another(start):
    """The store ends with it."""
    waiting = start(0, world_size=3)
    failing = start(1, "fail", seconds=1.0, world_size=3)
    busy = start(2, seconds=4.0, world_size=3)
    assert said(failing)[0] == 1
    for process in (busy, waiting):
        status, text = said(process)
        assert status == 1
        assert f"rank 1 on {socket.gethostname()}: the oven is cold" in text


@pytest.mark.slow
def test_rank_0_stays_until_all_ranks_have_read_that_they_may_leave(start):
    """However rarely they poll, each finds its token."""
    processes = [start(rank, world_size=3, action="poll rarely") for rank in range(3)]
    for process in processes:
        status, text = said(process)
        assert (status, "out of 0" in text) == (0, True), text


@pytest.mark.slow
def test_an_error_that_is_not_valid_unicode_is_passed_on_too(start):
    failing, other = start(1, "odd"), start(0)
    status, text = said(other)
    assert status == 1
    assert f"rank 1 on {socket.gethostname()}: base_model: /data/\\udcff" in text
    assert said(failing)[0] == 1


@pytest.mark.slow
def test_an_interrupt_while_waiting_is_passed_on(start):
    busy, waiting = start(0, seconds=8.0), start(1)
    read_until(waiting, "waiting for rank 0")
    waiting.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in said(waiting)[1]
    status, text = said(busy)
    assert status == 1
    assert f"rank 1 on {socket.gethostname()}: KeyboardInterrupt: " in text


@pytest.mark.parametrize(
    ("environment", "facts"),
    [
        ({"MASTER_PORT": "70000"}, ["MASTER_PORT: 70000 ", "1024 to 65535"]),
        ({"MASTER_ADDR": "a..b"}, ["rank 0 at a..b:"]),
    ],
)
@pytest.mark.slow
def test_an_invalid_address_is_an_error(start, environment, facts):
    status, text = said(start(1, unreachable_seconds=1.0, **environment))
    assert status == 1
    (error,) = (line for line in text.splitlines() if "LaunchError: " in line)
    assert all(fact in error for fact in facts)


@pytest.mark.slow
@pytest.mark.parametrize("dying", [0, 1])
def test_a_rank_that_dies_can_come_back(start, dying):
    """Rank 0 hosts the store here, so the store dies with it."""
    victim = start(dying, "join", seconds=60.0)
    survivor = start(1 - dying, "join")
    heard = read_until(survivor, f"1 of 2 ranks have the cake; waiting for rank {dying}.")
    victim.kill()
    if dying == 0:
        heard += read_until(survivor, "waiting for rank 0 at 127.0.0.1")
    again = start(dying, "join")
    for process in (survivor, again):
        status, text = said(process)
        assert status == 0, heard + text
        assert "sum 2" in text


@pytest.mark.slow
@pytest.mark.parametrize("other_seconds", [0.0, 6.0])
def test_a_rank_that_dies_after_it_was_ready_can_come_back(start, other_seconds):
    """Before and after the other rank has left."""
    victim = start(1, "die")
    other = start(0, "join", seconds=other_seconds)
    assert said(victim)[0] == -signal.SIGKILL
    again = start(1, "join")
    for process in (other, again):
        status, text = said(process)
        assert status == 0, text
        assert "sum 2" in text


@pytest.mark.slow
def test_a_rank_0_that_cannot_be_reached_is_an_error(start, port):
    status, text = said(start(1, unreachable_seconds=3.0))
    assert status == 1
    place = f"rank 0 at 127.0.0.1:{port}"
    assert f"waiting for {place}\n" in text
    assert f"LaunchError: {place} could not be reached for 3 s ([Errno 111] Connection refused)" in text


@pytest.mark.slow
def test_a_port_that_another_program_uses_is_an_error(start, port):
    with socket.socket() as other:
        other.bind(("0.0.0.0", port))
        other.listen()
        status, text = said(start(0))
    assert status == 1
    last = text.strip().splitlines()[-1]
    assert "LaunchError: MASTER_ADDR, MASTER_PORT: " in last
    assert f"127.0.0.1:{port}" in last
    assert "If another program uses that port, set MASTER_PORT to another one on all ranks" in last


def torchrun_with_one_restart(actions):
    """Two ranks; the keys of ``actions`` are attempt and rank."""
    rank = warm("python", "-c", RANK, json.dumps(actions), 600)
    return run(cold("torchrun", "--standalone", "--nproc-per-node=2", "--max-restarts=1", "--no-python", *rank))


@pytest.mark.slow
@pytest.mark.parametrize(
    "first_attempt",
    [
        {"0/0": ["die", 0], "0/1": ["wait", 60]},
        pytest.param({"0/1": ["die", 0], "0/0": ["wait", 60]}, marks=pytest.mark.nightly),
        {"0/0": ["fail", 2], "0/1": ["wait", 0]},
        pytest.param({"0/1": ["break", 2], "0/0": ["wait", 0]}, marks=pytest.mark.nightly),
    ],
    ids=["0-dies-when-ready", "1-dies-when-ready", "0-fails", "1-fails"],
)
def test_messages_from_before_a_torchrun_restart_are_ignored(first_attempt):
    """torchrun keeps the store."""
    actions = first_attempt | {"1/1": ["join", 4.0]}
    result = torchrun_with_one_restart(actions)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "out of 0" not in result.stdout
    assert result.stdout.count("sum 2") == 2
    first, second = (part.split()[0] for part in result.stdout.split("out of 1 after ")[1:])
    assert min(float(first), float(second)) >= 3.5, "rank 0 waited for the slow one"


@pytest.mark.slow
def test_the_last_attempt_of_torchrun_fails_with_the_error_of_the_rank_that_failed():
    actions = {f"{attempt}/1": ["fail", 1.0] for attempt in (0, 1)}
    result = torchrun_with_one_restart(actions)
    assert result.returncode == 1
    assert result.stderr.count("CheckpointError: the oven is cold") == 2, "once each attempt"
