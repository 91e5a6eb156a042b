"""The writer of directories with the simplest content; checkpoints, mixtures and prepared datasets have fault tests."""

import errno
import os
from pathlib import Path

import pytest

from solar_plugins.storage import atomic
from solar_plugins.storage.atomic import ensure_directory, write_directory

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
def target(tmp_path):
    """The final name of a directory that is to be written."""
    return tmp_path / "cache" / "thing[1]"


@pytest.fixture
def old(target):
    """The target, with other content."""
    target.mkdir(parents=True)
    (target / "precious").touch()
    return target


def alone(target):
    """Whether nothing stands beside it."""
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


def test_a_file_in_its_place_is_damage_too(target):
    target.parent.mkdir()
    target.touch()
    assert ensure(target) is True
    assert alone(target)


def test_what_cannot_be_read_is_not_taken_for_damage(old):
    def unreadable(folder):
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        ensure(old, is_finished=unreadable)
    assert files(old) == {"precious"}


def test_what_another_computer_made_again_just_now_is_put_back(target):
    """It looked damaged twice, with the lock too; moved aside, it is found whole."""
    ensure(target)
    inode, looks = target.stat().st_ino, iter([False, False])
    assert ensure(target, fill=None, is_finished=lambda folder: next(looks, True) and is_finished(folder)) is False
    assert target.stat().st_ino == inode
    assert alone(target)


@pytest.mark.parametrize("replace", [False, True])
def test_what_another_computer_finished_first_is_taken(target, replace):
    def overtaken(folder):
        target.mkdir()
        fill(target)
        fill(folder)

    target.parent.mkdir()
    assert write_directory(target, overtaken, is_finished, replace=replace) is False
    assert alone(target)


def test_what_is_there_gives_way_only_if_asked(old):
    with pytest.raises(OSError, match="not empty"):
        write_directory(old, fill, is_finished)
    assert files(old) == {"precious"}
    assert write_directory(old, fill, is_finished, replace=True) is True
    assert is_finished(old)
    assert alone(old)


def test_it_gives_way_only_when_the_new_content_is_whole(old):
    def check(folder):
        assert files(old) == {"precious"}
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_directory(old, check, is_finished, replace=True)
    assert files(old) == {"precious"}
    assert alone(old)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_it_comes_back_if_the_new_content_cannot_take_its_place(old, monkeypatch, error):
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


def test_everything_is_on_the_disk_before_the_rename_and_the_rename_before_the_old_content_goes(old, monkeypatch):
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
