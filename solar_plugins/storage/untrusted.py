"""Files that somebody else wrote: opened only if they are files of this folder, parsed in bounded time and memory."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

from solar_plugins.errors import CheckpointError, SolarError

MAX_JSON_BYTES = 25_000_000
"""Four times the largest safetensors header or index that is known: 150,000 tensors of a mixture of 384 experts."""

MAX_JSON_VALUES = 1_000_000
"""A parsed value takes up to 150 bytes, so this bounds the memory; a header has about 8 for each tensor."""

MAX_NAME_LENGTH = 500


LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MAX_LFS_POINTER_BYTES = 1024
"""A pointer is smaller than this, by git-lfs's own specification (docs/spec.md)."""

RESTORE = "restore or download it again"


def read_json_object(
    path: Path, *, strict: bool = False, error: Callable[[str], SolarError] = CheckpointError, fix: str = RESTORE
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: The file.
        strict: As for `parse_json_object`.
        error: The class of errors that the caller's user expects.
        fix: What that user can do about a file that is refused.

    Raises:
        SolarError: An ``error``: it is no regular file, too large, not JSON, or not an object.
        OSError: It cannot be read.
    """
    num_bytes = require_file(path, error=error, fix=fix)
    if num_bytes > MAX_JSON_BYTES:
        raise error(f"{path}: {num_bytes:,} bytes; a file of this kind has at most {MAX_JSON_BYTES:,}; {fix}")
    return parse_json_object(path, path.read_bytes(), strict=strict, error=error, fix=fix)


def parse_json_object(
    path: Path,
    text: bytes,
    *,
    strict: bool = False,
    error: Callable[[str], SolarError] = CheckpointError,
    fix: str = RESTORE,
) -> dict[str, Any]:
    """The JSON object ``text`` that was read from ``path``.

    Args:
        path: For the error.
        text: At most `MAX_JSON_BYTES`.
        strict: Refuse what the reference reader of safetensors refuses: a name twice in one object, ``NaN`` and
            ``Infinity``. The configs of state-space models really hold ``Infinity``.
        error: As for `read_json_object`.
        fix: As for `read_json_object`.

    Raises:
        SolarError: An ``error``: not UTF-8, not JSON, too many values, or not an object.
    """
    # Counted before it is parsed: 25 MB of "{},{},..." would become more than a gigabyte of objects.
    values = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if values > MAX_JSON_VALUES:
        raise error(f"{path}: about {values:,} JSON values, expected at most {MAX_JSON_VALUES:,}; {fix}")
    checks: dict[str, Any] = (
        {"object_pairs_hook": _refuse_duplicates, "parse_constant": _refuse_constant} if strict else {}
    )
    try:
        data = json.loads(text.decode(), **checks)
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: not valid JSON ({problem!s:.200}); {fix}") from None
    if not isinstance(data, dict):
        raise error(f"{path}: holds a {type(data).__name__}, expected a JSON object; {fix}")
    return data


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def is_plain_file_name(name: object) -> bool:
    """Whether ``name`` is the name of a file in a folder: no path, no control characters."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "/" not in name
        and name.isprintable()
        and len(name) <= MAX_NAME_LENGTH
    )


def is_plain_relative_path(name: object) -> bool:
    r"""Whether ``name`` is a path of a file below a folder, with slashes: it cannot lead out, on any system.

    Example:
        >>> [is_plain_relative_path(name) for name in ("a/b.json", "/a", "a/../b", "a\\b", "C:/a", "a//b", "a/")]
        [True, False, False, False, False, False, False]
    """
    return (
        isinstance(name, str)
        and len(name) <= MAX_NAME_LENGTH
        and all(is_plain_file_name(part) for part in name.split("/"))
        and "\\" not in name
        and not PureWindowsPath(name).drive
    )


def how_to_download(directory: Path) -> str:
    """The command that fetches what a model's folder lacks; for a folder of the hub's cache with the model's name.

    Example:
        >>> how_to_download(Path("hub/models--org--name/snapshots/0a1b"))
        'hf download org/name --revision 0a1b'
        >>> how_to_download(Path("models/name"))
        'hf download REPO --local-dir models/name (REPO: its name on the hub)'
    """
    cached = directory.parent.parent.name
    if directory.parent.name == "snapshots" and cached.startswith("models--"):
        return f"hf download {cached.removeprefix('models--').replace('--', '/')} --revision {directory.name}"
    return f"hf download REPO --local-dir {directory} (REPO: its name on the hub)"


def require_file(path: Path, *, error: Callable[[str], SolarError] = CheckpointError, fix: str = RESTORE) -> int:
    """The size of a regular file. Opening a FIFO would wait for ever, and reading a device might never end.

    Raises:
        SolarError: An ``error``: it is something else, or the pointer that git leaves where git-lfs is not installed.
        OSError: It is not there.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "directory" if stat.S_ISDIR(status.st_mode) else "pipe, socket or device"
        raise error(f"{path}: a {kind}, expected a file; {fix}")
    if status.st_size < MAX_LFS_POINTER_BYTES:
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
        if is_pointer:
            download = f", or download it: {how_to_download(path.parent)}" if error is CheckpointError else ""
            raise error(
                f"{path}: a git-lfs pointer of {status.st_size} bytes, expected the file itself, which git did not "
                f"fetch; run `git lfs pull` in that folder (`git lfs install` first if git-lfs is new there){download}"
            )
    return status.st_size


def leads_out(path: Path, directory: Path) -> bool:
    """Whether a path is, or goes through, a link that leads out of a model's folder.

    The hub cache's own links, ``snapshots/<commit>/<file>`` to ``blobs/<hash>`` of the same model, do not.
    """
    target, top = path.resolve(), directory.resolve()
    if target.is_relative_to(top):
        return False
    snapshots = next((parent for parent in top.parents if parent.name == "snapshots"), None)
    return not (snapshots and target.parent == (snapshots.parent / "blobs").resolve())


def require_inside(path: Path, directory: Path) -> None:
    """Refuse what `leads_out`: a downloaded folder could so publish a private file.

    Raises:
        CheckpointError: It leads out.
    """
    if leads_out(path, directory):
        raise CheckpointError(
            f"{path}: a link that leads out of the model's folder, to {path.resolve()}; refused, because whoever made "
            "the folder could so have any file of yours copied into the new model. If you made it, give a folder that "
            f"holds the files themselves: cp -rL {directory} NEW (with -rlL it takes no space on the same disk)"
        )
