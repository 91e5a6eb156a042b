import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from solar_plugins.storage import atomic
from solar_plugins.storage.atomic import partials_of, sole_writer

pytestmark = pytest.mark.slow


@pytest.fixture
def target(tmp_path):
    """The final name of something that is to be written."""
    return tmp_path / "cache" / "model[1]"


@pytest.fixture
def lines(monkeypatch):
    """The messages so far; more are appended."""
    found = []
    monkeypatch.setattr(atomic.LOG, "info", lambda text, *values: found.append(text % values))
    return found


def lock_of(target):
    return target.parent / f".{target.name}.lock"


def test_the_lock_names_its_owner_while_it_is_held_and_is_gone_afterwards(target):
    with sole_writer(target):
        holder = json.loads(lock_of(target).read_text())
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
        assert abs(holder["since"] - time.time()) < 10
        with pytest.raises(Timeout):
            FileLock(lock_of(target), is_singleton=False).acquire(timeout=0)
    assert list(target.parent.iterdir()) == []


def test_a_failure_removes_the_lock_too(target):
    with pytest.raises(ZeroDivisionError), sole_writer(target):
        raise ZeroDivisionError
    assert list(target.parent.iterdir()) == []


def test_only_one_at_a_time_although_each_removes_the_lock_file(target):
    """Eight threads, each with a descriptor of its own, as processes have."""
    inside, most, turns = [], [], []

    def work():
        for _ in range(5):
            with sole_writer(target):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()
                turns.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(turns), max(most)) == (40, 1)


HOLD = """
import sys, time
from pathlib import Path
from solar_plugins.storage.atomic import new_partial_path, sole_writer
target = Path(sys.argv[1])
with sole_writer(target):
    partial = new_partial_path(target)
    partial.mkdir()
    (partial / "data").write_bytes(b"x" * 3_000_000)
    print(partial, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(target):
    """A process that holds the lock and has written 3 MB."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE, text=True)
    process.partial = Path(process.stdout.readline().strip())
    yield process
    process.kill()
    process.wait()


def test_a_waiting_process_names_the_owner_and_takes_over_if_it_dies(target, holder, lines, monkeypatch):
    monkeypatch.setattr(atomic, "FIRST_MESSAGE_SECONDS", 0.2)
    monkeypatch.setattr(atomic, "WAIT_MESSAGE_SECONDS", 0.3)

    def kill_after_two_messages():
        while len(lines) < 2:
            time.sleep(0.01)
        holder.send_signal(signal.SIGKILL)

    thread = threading.Thread(target=kill_after_two_messages)
    thread.start()
    with sole_writer(target):
        assert partials_of(target) == []
    thread.join()
    assert lines[0].startswith(f"waiting for process {holder.pid} on {socket.gethostname()}, writing since 20")
    assert (
        lines[0].endswith(
            f"(3 MB written; if you are sure that it is dead, remove {lock_of(target)}) to finish {target}"
        )
        or "(3.01 MB written" in lines[0]
    )
    assert lines[-1] == f"removing leftovers of an interrupted run: {holder.partial}"
    assert list(target.parent.iterdir()) == []


def test_a_lock_whose_owner_is_unknown_is_waited_for_too(target, lines, monkeypatch):
    monkeypatch.setattr(atomic, "FIRST_MESSAGE_SECONDS", 0.1)
    target.parent.mkdir()
    other = FileLock(lock_of(target), is_singleton=False, thread_local=False)
    other.acquire()
    threading.Timer(0.5, other.release).start()
    with sole_writer(target):
        pass
    advice = f"(0 B written; if you are sure that it is dead, remove {lock_of(target)})"
    assert lines == [f"waiting for another process {advice} to finish {target}"]


def test_a_long_wait_asks_seldom(target, monkeypatch):
    asked = []

    class Lock(FileLock):
        def acquire(self, timeout, poll_interval):
            asked.append((timeout, poll_interval))
            if len(asked) < 4:
                raise Timeout(self.lock_file)
            return super().acquire(timeout, poll_interval)

    monkeypatch.setattr(atomic, "FileLock", Lock)
    with sole_writer(target):
        pass
    assert asked == [(2.0, 0.1), (30.0, 1.0), (30.0, 1.0), (30.0, 1.0)]


def test_removing_the_lock_of_a_dead_node_ends_the_wait(target, holder, monkeypatch):
    """As the message advises: on NFS 3 the lock of a node that died stays until that node comes back."""
    threading.Timer(0.3, lock_of(target).unlink).start()
    with sole_writer(target):
        assert json.loads(lock_of(target).read_text())["pid"] == os.getpid()
    assert holder.poll() is None
    assert holder.partial.is_dir(), "it lives"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_file_locks_each_node_has_one_writer(target, lines, monkeypatch, tmp_path, code):
    import fcntl

    def no_locks_in_the_cache(file, operation):
        if os.readlink(f"/proc/self/fd/{file}").startswith(str(target.parent)):
            raise OSError(code, os.strerror(code))
        return real_flock(file, operation)

    real_flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", no_locks_in_the_cache)
    monkeypatch.setattr(atomic.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(atomic, "FIRST_MESSAGE_SECONDS", 0.1)
    entered = threading.Event()

    def second():
        with sole_writer(target):
            entered.set()

    with sole_writer(target):
        (local,) = tmp_path.glob("solar_plugins-*.lock")
        assert json.loads(local.read_text())["pid"] == os.getpid()
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.4)
    thread.join()
    assert entered.is_set()
    assert "no file locks there" in lines[0]
    assert any(line.startswith(f"waiting for process {os.getpid()} on ") for line in lines)
    assert not list(tmp_path.glob("solar_plugins-*.lock"))


def test_other_lock_errors_are_errors(target, monkeypatch):
    import fcntl

    def fail(file, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"), sole_writer(target):
        pass
