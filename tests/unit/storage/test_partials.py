import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from solar_plugins.storage import atomic
from solar_plugins.storage.atomic import STALE_SECONDS, new_partial_path, partials_of, remove_left_overs


@pytest.fixture
def target(tmp_path):
    """The final name of something that is to be written."""
    return tmp_path / "cache" / "model[1]"


WRITE = """
import sys, time
from pathlib import Path
from solar_plugins.storage.atomic import new_partial_path
partial = new_partial_path(Path(sys.argv[1]))
partial.mkdir(parents=True)
print(partial, flush=True)
time.sleep(60)
"""


@pytest.fixture
def writer(target):
    """A process that has begun to write."""
    process = subprocess.Popen([sys.executable, "-c", WRITE, str(target)], stdout=subprocess.PIPE, text=True)
    process.partial = Path(process.stdout.readline().strip())
    yield process
    process.kill()
    process.wait()


def test_only_the_partials_of_the_dead_are_removed(target, writer):
    mine = new_partial_path(target)
    mine.mkdir()
    kernel, pid, start, token = mine.name.rpartition(".partial-")[2].split("-")
    other_kernel = target.parent / mine.name.replace(kernel, "0123abcd")
    reused_pid = target.parent / mine.name.replace(f"-{start}-", f"-{int(start) - 1}-")
    dead_pid = target.parent / mine.name.replace(f"-{pid}-", "-4194305-")
    old_style = target.parent / f".{target.name}.partial-ab_12345"
    not_ours = target.parent / f".{target.name}.partial-{kernel}-{pid}-{start}-{token}.lock"
    for path in (other_kernel, reused_pid, dead_pid, old_style, not_ours):
        path.mkdir()
    expected = {mine, other_kernel, reused_pid, dead_pid, old_style, writer.partial}
    assert set(partials_of(target)) == expected
    remove_left_overs(target)
    assert set(partials_of(target)) == expected - {reused_pid, dead_pid}
    writer.kill()
    while writer.partial.exists():  # Not reaped yet: a zombie counts as dead.
        remove_left_overs(target)
    assert set(partials_of(target)) == {mine, other_kernel, old_style}
    assert not_ours.is_dir()


def test_another_nodes_partial_is_removed_when_nothing_in_it_changed_for_long(target):
    target.parent.mkdir()
    partial = target.parent / f".{target.name}.partial-0123abcd-1-1-01234567"
    (partial / "deep").mkdir(parents=True)
    (partial / "deep" / "data").write_text("x")
    now = time.time()
    old = now - STALE_SECONDS - 1
    for folder in (partial / "deep", partial):
        os.utime(folder, (old, old))
    remove_left_overs(target, now)
    assert partial.is_dir(), "its file is new"
    os.utime(partial / "deep" / "data", (old, old))
    remove_left_overs(target, now - 2)
    assert partial.is_dir(), "not yet old enough"
    remove_left_overs(target)
    assert partial.is_dir(), "without the server's clock nobody knows"
    remove_left_overs(target, now)
    assert not partial.exists()


def test_another_users_process_is_alive_even_if_proc_hides_it(target, monkeypatch):
    def not_permitted(pid, signal):
        raise PermissionError

    partial = new_partial_path(target)
    partial.mkdir(parents=True)
    monkeypatch.setattr(atomic.os, "kill", not_permitted)
    monkeypatch.setattr(atomic, "_process_start", lambda pid: None)
    remove_left_overs(target)
    assert partial.is_dir()
