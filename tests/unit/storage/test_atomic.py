"""Files and directories; checkpoints, mixtures and prepared datasets have fault tests of their own."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from solar_plugins.errors import DataError
from solar_plugins.storage import atomic
from solar_plugins.storage.atomic import (
    STALE_SECONDS,
    ensure_directory,
    new_partial_path,
    partials_of,
    remove_left_overs,
    write_directory,
    write_errors_explained,
    write_file,
)


@pytest.fixture
def target(tmp_path):
    """The final path of something to write."""
    return tmp_path / "cache" / "thing[1]"


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "page.html"
    for content in (b"first", b"second"):
        write_file(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, name, error):
    def fail(*args):
        raise error

    path = tmp_path / "page.html"
    path.write_bytes(b"first")
    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[name], fail)
    with pytest.raises(type(error)):
        write_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    flushed = []

    def fsync(handle):
        flushed.append(os.fstat(handle).st_size)
        assert not (tmp_path / "page.html").exists()

    monkeypatch.setattr(os, "fsync", fsync)
    write_file(tmp_path / "page.html", b"x" * 100)
    assert flushed == [100]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/file")
    write_file(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far/file").read_bytes() == b"x"


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    child = os.fork()
    if child == 0:
        os.fsync = lambda handle: os._exit(9)
        write_file(tmp_path / "page.html", b"never")
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".page.html.partial-")
    write_file(tmp_path / "page.html", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/a/b"),
            "out/x: the thing could not be written (No space left on device, /a/b); a partial one is never used. Free "
            "disk space or fix the permissions, or name another folder",
        ),
        (OSError(errno.EIO, "Input/output error"), "(Input/output error); a partial one is never used. A disk or file"),
        (OSError("a library's\nown words"), "(a library's own words); a partial"),
    ],
)
def test_write_errors_are_explained(error, text):
    with (
        pytest.raises(DataError) as found,
        write_errors_explained(Path("out/x"), "thing", "name another folder", DataError),
    ):
        raise error
    assert text in str(found.value)
    assert "\n" not in str(found.value)


WHOLE = {"whole", "deep/file"}


def fill(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("new")
    (folder / "whole").touch()


def is_finished(folder):
    return files(folder) == WHOLE and (folder / "deep/file").read_text() == "new"


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def ensure(target, fill=fill, is_finished=is_finished):
    return ensure_directory(target, fill, is_finished, what="thing")


@pytest.fixture
def old(target):
    """The target, with other content."""
    target.mkdir(parents=True)
    (target / "precious").touch()
    return target


def alone(target):
    """Whether its parent folder holds nothing else."""
    return list(target.parent.iterdir()) == [target]


def test_it_is_made_once(target):
    assert ensure(target) is True
    assert ensure(target, fill=None) is False
    assert is_finished(target)
    assert alone(target)


def test_a_failure_leaves_nothing_behind(target):
    def fail(folder):
        fill(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ensure(target, fill=fail)
    assert list(target.parent.iterdir()) == []


def test_what_is_damaged_is_made_again(old, caplog):
    assert ensure(old) is True
    assert is_finished(old)
    assert alone(old)
    assert f"{old}: this thing is damaged or incomplete" in caplog.text


def test_a_file_in_place_of_the_directory_is_replaced(target):
    target.parent.mkdir()
    target.touch()
    assert ensure(target) is True
    assert alone(target)


def test_an_unreadable_directory_is_not_treated_as_damaged(old):
    def unreadable(folder):
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        ensure(old, is_finished=unreadable)
    assert files(old) == {"precious"}


def test_a_checkpoint_rewritten_by_another_computer_is_restored(target):
    """It looked damaged twice, also under the lock; after it was moved aside it turns out to be complete."""
    ensure(target)
    inode, looks = target.stat().st_ino, iter([False, False])
    assert ensure(target, fill=None, is_finished=lambda folder: next(looks, True) and is_finished(folder)) is False
    assert target.stat().st_ino == inode
    assert alone(target)


@pytest.mark.parametrize("replace", [False, True])
def test_a_checkpoint_finished_first_by_another_computer_is_used(target, replace):
    def overtaken(folder):
        target.mkdir()
        fill(target)
        fill(folder)

    target.parent.mkdir()
    assert write_directory(target, overtaken, is_finished, replace=replace) is False
    assert alone(target)


def test_existing_output_is_replaced_only_on_request(old):
    with pytest.raises(OSError, match="not empty"):
        write_directory(old, fill, is_finished)
    assert files(old) == {"precious"}
    assert write_directory(old, fill, is_finished, replace=True) is True
    assert is_finished(old)
    assert alone(old)


def test_old_content_is_replaced_only_by_complete_new_content(old):
    def check(folder):
        assert files(old) == {"precious"}
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_directory(old, check, is_finished, replace=True)
    assert files(old) == {"precious"}
    assert alone(old)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_old_content_is_restored_if_the_new_content_cannot_replace_it(old, monkeypatch, error):
    real_rename = Path.rename

    def rename(path, to):
        if files(path) == WHOLE:
            raise error
        return real_rename(path, to)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(type(error)):
        write_directory(old, fill, is_finished, replace=True)
    assert files(old) == {"precious"}
    assert alone(old)


def test_it_is_not_removed_if_it_cannot_come_back(old, monkeypatch):
    real_rename = Path.rename

    def only_the_first(path, to):
        if path != old:
            raise OSError(errno.EIO, "Input/output error")
        return real_rename(path, to)

    monkeypatch.setattr(Path, "rename", only_the_first)
    with pytest.raises(OSError, match="Input/output error"):
        write_directory(old, fill, is_finished, replace=True)
    (aside,) = old.parent.iterdir()
    assert files(aside) == {"precious"}


def test_files_are_flushed_before_the_rename_and_the_old_content_is_removed_after_it(old, monkeypatch):
    events = []

    def note(module, name, what):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: (events.append(what(*args)), real(*args))[1])

    note(os, "fsync", lambda handle: os.path.basename(os.readlink(f"/proc/self/fd/{handle}")).partition("-")[0])
    note(Path, "rename", lambda path, to: "rename")
    note(atomic, "remove", lambda path: "remove")
    write_directory(old, fill, is_finished, replace=True)
    partial = f".{old.name}.partial"
    assert sorted(events[:4]) == sorted(["file", "deep", "whole", partial])
    assert events.index("file") < events.index("deep"), "a name in a folder after the file"
    assert events[3:] == [partial, "rename", "rename", "cache", "remove", "remove"]


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


def test_another_users_process_counts_as_alive_even_if_proc_hides_it(target, monkeypatch):
    def not_permitted(pid, signal):
        raise PermissionError

    partial = new_partial_path(target)
    partial.mkdir(parents=True)
    monkeypatch.setattr(atomic.os, "kill", not_permitted)
    monkeypatch.setattr(atomic, "_process_start", lambda pid: None)
    remove_left_overs(target)
    assert partial.is_dir()
