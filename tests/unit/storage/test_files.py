import errno
import os
from pathlib import Path

import pytest

from solar_plugins.errors import DataError
from solar_plugins.storage.atomic import write_errors_explained, write_file


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


def test_what_a_killed_writer_left_is_removed(tmp_path):
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
def test_what_went_wrong_in_words(error, text):
    with (
        pytest.raises(DataError) as found,
        write_errors_explained(Path("out/x"), "thing", "name another folder", DataError),
    ):
        raise error
    assert text in str(found.value)
    assert "\n" not in str(found.value)
