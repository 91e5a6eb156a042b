"""Sharing blocks between files: on real disks, and with each answer of the kernel."""

import errno
import fcntl
import os

import pytest
from shared_disks import SHARING, disk

from solar_plugins.storage.reflink import CANNOT_SHARE, NONE, clone_range, find_sharing

CONTENT = os.urandom(5 * 4096 + 17)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARING)
def test_a_disk_that_can_share(kind, tmp_path):
    with disk(kind) as folder:
        inside, outside, short = folder / "a", tmp_path / "b", folder / "short"
        inside.write_bytes(CONTENT)
        outside.write_bytes(CONTENT)
        short.write_bytes(b"x")
        link = folder / "link"
        link.symlink_to("a")
        assert find_sharing([inside, outside, link], folder) == (4096, {inside, link})
        assert (
            find_sharing([outside], folder) == find_sharing([inside], tmp_path) == find_sharing([short], folder) == NONE
        )
        assert {path.name for path in folder.iterdir()} == {"a", "short", "link"}, "what was tried is gone"
        with inside.open("rb") as source, (folder / "c").open("xb", buffering=0) as target:
            assert clone_range(source.fileno(), 4096, target.fileno(), 8192, 2 * 4096)
            assert not clone_range(source.fileno(), 17, target.fileno(), 0, 4096), "not at a block"
        assert (folder / "c").read_bytes() == bytes(8192) + CONTENT[4096 : 3 * 4096]
        inside.write_bytes(bytes(len(CONTENT)))
        assert (folder / "c").read_bytes() == bytes(8192) + CONTENT[4096 : 3 * 4096], "the copy keeps its bytes"


@pytest.mark.parametrize("answer", sorted(CANNOT_SHARE), ids=errno.errorcode.get)
def test_a_file_system_without_reflinks_is_detected(answer, tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(CONTENT)
    monkeypatch.setattr(fcntl, "ioctl", _answers(answer))
    assert find_sharing([tmp_path / "a"], tmp_path) == NONE


@pytest.mark.parametrize("answer", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS], ids=errno.errorcode.get)
def test_a_disk_that_fails_is_an_error(answer, tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(CONTENT)
    monkeypatch.setattr(fcntl, "ioctl", _answers(answer))
    with pytest.raises(OSError, match=os.strerror(answer)):
        find_sharing([tmp_path / "a"], tmp_path)


def _answers(code):
    def ioctl(*_):
        raise OSError(code, os.strerror(code))

    return ioctl
