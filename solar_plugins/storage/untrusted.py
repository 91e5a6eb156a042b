"""Files from other sources: only regular files inside the given directory are opened, and parsing is bounded.

Every JSON or YAML file that this package reads as one value goes through here, and so does the message about a bad one.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import Any

from solar_plugins.errors import ArgsError, CheckpointError, SolarError
from solar_plugins.text import printable

MAX_JSON_BYTES = 25_000_000
"""Four times the largest known safetensors header or index: 150,000 tensors of a mixture of 384 experts."""

MAX_JSON_VALUES = 1_000_000
"""A parsed value takes up to 150 bytes, so this bounds the memory. A header has about 8 values per tensor."""

MAX_YAML_CHARACTERS = 1_000_000
"""A recipe has thousands, a merge of single layers some ten thousand."""

MAX_YAML_VALUES = 100_000
"""With aliases expanded: nine lines of nine aliases each stand for 400 million values."""

MAX_YAML_DEPTH = 100
MAX_NUMBER_LENGTH = 400
"""Digits of a YAML number. ``1:1:1:...``, a number to the base 60, takes quadratic time."""

MAX_NAME_LENGTH = 500

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MAX_LFS_POINTER_BYTES = 1024
"""Pointers are smaller than this (git-lfs, docs/spec.md)."""

RESTORE = "restore or download it again"
GIVE_YAML = "give the path of a YAML file"

type MakeError = Callable[[str], SolarError]
"""From a message to the error to raise: an error class, or a function that adds to the message."""


def read_json_object(
    path: Path, *, strict: bool = False, utf_16: bool = False, error: MakeError = CheckpointError, fix: str = RESTORE
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: The file.
        strict: As for `parse_json_object`.
        utf_16: Also accept a byte order mark and UTF-16, as editors and PowerShell write them.
        error: Makes the error, of the class that the caller's user expects.
        fix: What that user can do about a bad file.

    Raises:
        SolarError: An ``error``: not a regular file, too large, not JSON, or not an object.
        OSError: It cannot be read.
    """
    num_bytes = require_file(path, error=error, fix=fix)
    if num_bytes > MAX_JSON_BYTES:
        raise error(f"{path}: {num_bytes:,} bytes, expected at most {MAX_JSON_BYTES:,} in a file of this kind; {fix}")
    content = path.read_bytes()
    if utf_16:
        with suppress(UnicodeError):  # `parse_json_object` reports it.
            content = content.decode(json.detect_encoding(content)).encode()
    return parse_json_object(path, content, strict=strict, error=error, fix=fix)


def parse_json_object(
    path: Path, text: bytes, *, strict: bool = False, error: MakeError = CheckpointError, fix: str = RESTORE
) -> dict[str, Any]:
    """The JSON object ``text`` that was read from ``path``.

    Args:
        path: For the message.
        text: At most `MAX_JSON_BYTES`.
        strict: Reject what the reference reader of safetensors rejects: duplicate names in an object, ``NaN`` and
            ``Infinity``. Configs of state-space models do contain ``Infinity``.
        error: As for `read_json_object`.
        fix: As for `read_json_object`.

    Raises:
        SolarError: An ``error``: not UTF-8, not JSON, too many values, or not an object.
    """
    # Counted before parsing: 25 MB of "{},{},..." would become more than a gigabyte of objects.
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
        raise ValueError("duplicate name in an object")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def read_text(path: Path, *, error: MakeError = ArgsError, fix: str = GIVE_YAML) -> str:
    """The text of a file that the user named.

    Raises:
        SolarError: An ``error``: it cannot be read, is not UTF-8, or is too large for a file that people write.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_YAML_CHARACTERS + 1)
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror}); {fix}") from None
    except ValueError as problem:
        raise error(f"{path}: not UTF-8 ({problem}); save the file as UTF-8") from None
    if len(text) > MAX_YAML_CHARACTERS:
        raise error(f"{path}: more than {MAX_YAML_CHARACTERS:,} characters, too many for a file of this kind; {fix}")
    return text


def parse_yaml(text: str, where: str, error: MakeError = ArgsError) -> Any:
    """The value that a YAML text describes. Tags that build objects are errors; so is what would exhaust the machine.

    Args:
        text: The text.
        where: The file or key, for the message.
        error: As for `read_json_object`.

    Raises:
        SolarError: An ``error``: it is not YAML, or too large, too deep, or has an alias inside its own value. The
            message has the line and column.
    """
    import yaml  # Imported late: it takes longer to load than most plans take to compute.

    if len(text) > MAX_YAML_CHARACTERS:
        raise error(f"{where}: {len(text):,} characters of YAML, expected at most {MAX_YAML_CHARACTERS:,}; shorten it")
    try:
        return yaml.load(text, bounded_loader())
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as problem:
        raise error(f"{where}: not valid YAML; {printable(' '.join(str(problem).split()))}") from None


def duplicate_keys(text: str) -> list[str]:
    """The keys that a map of a YAML text has twice, with the line of the second. YAML's readers take the last value.

    Args:
        text: A text that `parse_yaml` accepts.
    """
    import yaml

    found: list[str] = []
    for event_map in _maps(yaml.compose(text, bounded_loader())):
        seen: set[str] = set()
        for key, _ in event_map.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                found.append(f"{printable(key.value):.100} (line {key.start_mark.line + 1})")
            seen.add(str(key.value))
    return found


def _maps(node: Any) -> Iterator[Any]:
    import yaml

    visited: set[int] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            waiting += [part for pair in node.value for part in pair]
        else:
            waiting += node.value


@cache
def bounded_loader() -> Any:
    """PyYAML's safe loader, which stops where a text would exhaust the machine: see `parse_yaml`."""
    import yaml

    class BoundedLoader(yaml.SafeLoader):
        """Counts values as they are read, with aliases expanded."""

        def __init__(self, text: str) -> None:
            super().__init__(text)
            self.num_values = self.depth = 0
            self.sizes: dict[int, int] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            mark, is_alias = event.start_mark, isinstance(event, yaml.AliasEvent)
            before = self.num_values
            self.depth += 1
            if self.depth > MAX_YAML_DEPTH:
                raise yaml.MarkedYAMLError(problem=f"nested more than {MAX_YAML_DEPTH} levels deep", problem_mark=mark)
            node: Any = super().compose_node(parent, index)
            self.depth -= 1
            if is_alias and id(node) not in self.sizes:
                raise yaml.MarkedYAMLError(problem="an alias stands inside the value it refers to", problem_mark=mark)
            if is_alias:
                self.num_values += self.sizes[id(node)]
            else:
                self.num_values += 1
                self.sizes[id(node)] = self.num_values - before
            if self.num_values > MAX_YAML_VALUES:
                problem = f"more than {MAX_YAML_VALUES:,} values, with aliases expanded"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
            is_number = isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float"))
            if is_number and len(node.value) > MAX_NUMBER_LENGTH:
                problem = f"a number of {len(node.value):,} characters"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
            return node

    return BoundedLoader


def is_plain_file_name(name: object) -> bool:
    """Whether ``name`` is a file name in a directory: not a path, no control characters."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "/" not in name
        and name.isprintable()
        and len(name) <= MAX_NAME_LENGTH
    )


def is_plain_relative_path(name: object) -> bool:
    r"""Whether ``name`` is the path of a file below a directory, with slashes, that cannot lead out on any system.

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


RESERVED_ON_WINDOWS = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def is_portable_path(name: object) -> bool:
    """Whether ``name`` is a plain relative path that every system can write: no device names, no final dots.

    Example:
        >>> [is_portable_path(name) for name in ("a/b.yml", "a/NUL.yml", "a./b", "what?.yml", "b.yml ")]
        [True, False, False, False, False]
    """
    return is_plain_relative_path(name) and not any(
        RESERVED_ON_WINDOWS.fullmatch(part) or part.endswith((".", " ")) or set(part) & set('<>:"|?*')
        for part in str(name).split("/")
    )


def how_to_download(directory: Path) -> str:
    """The command that downloads a model's missing files, with the model's name if it is in the hub cache.

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


def require_file(path: Path, *, error: MakeError = CheckpointError, fix: str = RESTORE) -> int:
    """The size of a regular file, in bytes. Opening a FIFO would block, and reading a device might never end.

    Raises:
        SolarError: An ``error``: it is not a regular file, or it is a git-lfs pointer.
        OSError: It does not exist.
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
                f"fetch; run `git lfs pull` in that directory (first `git lfs install` if you never did){download}"
            )
    return status.st_size


def leads_out(path: Path, directory: Path) -> bool:
    """Whether a path is, or goes through, a link that leads out of a model's directory.

    The hub cache's own links, from ``snapshots/<commit>/<file>`` to ``blobs/<hash>`` of the same model, do not count.
    """
    try:
        target, top = path.resolve(), directory.resolve()
    except (OSError, RuntimeError):
        return True  # A loop of links.
    if target.is_relative_to(top):
        return False
    snapshots = next((parent for parent in top.parents if parent.name == "snapshots"), None)
    return not (snapshots and target.parent == (snapshots.parent / "blobs").resolve())


def require_inside(path: Path, directory: Path) -> None:
    """Refuse a path that `leads_out`. Otherwise a downloaded model could make the user publish a private file.

    Raises:
        CheckpointError: It leads out.
    """
    if leads_out(path, directory):
        raise CheckpointError(
            f"{path}: a link out of the model's directory, to {path.resolve()}. Refused, because the author of the "
            "model could have any of your files copied into the new model this way. If you made the link, give a "
            f"directory that holds the files themselves: cp -rL {directory} NEW (cp -rlL takes no space on the same "
            "disk)"
        )
