"""What a stage reads and writes, as hashes: a stage is done while its content and the identity of its inputs stay."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from solar_plugins.pipeline import Stage
from solar_plugins.storage.atomic import files_below
from solar_plugins.storage.content import content_hashes

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".distcp")
"""Large files of numbers, which training changes everywhere; they are sampled. Every other file is hashed entirely."""
SAMPLED_FROM_BYTES = 64_000_000
SAMPLES, SAMPLE_BYTES = 64, 1_000_000

NOT_INPUTS = (
    "output",
    "output_dir",
    "dataset_prepared_path",
    "cache_dir",
    "hub_model_id",
    "split",
    "type",
    "name",
    "logging_dir",
)
"""Keys whose text may be the name of a file or folder by chance, or of something that is written."""

type Listing = dict[str, str]
"""The hash of each file of an input or output, by its path relative to it; ``""`` where it is one file itself."""


def texts_of(value: Any) -> Iterator[str]:
    """Every text in the content of a YAML file but those of `NOT_INPUTS`; mergekit's ``model+lora`` gives two."""
    if isinstance(value, str):
        yield from value.split("+")
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key not in NOT_INPUTS:
                yield from texts_of(part)
    elif isinstance(value, Sequence):
        for part in value:
            yield from texts_of(part)


def inputs_of(stage: Stage, written: Sequence[str]) -> list[str]:
    """The local files and folders that a stage reads: whatever its content names and that exists, or will.

    Args:
        stage: The stage.
        written: Outputs of the stages before it.
    """
    if stage.kind == "command":
        return list(stage.inputs)
    named = dict.fromkeys(text for text in texts_of(stage.content) if text and "\n" not in text and len(text) < 1000)
    return [text for text in named if producer_of(text, written) is not None or _exists(text)]


def producer_of(path: str, written: Sequence[str]) -> str | None:
    """The output that a path is, or is inside of; the innermost one."""
    place = absolute(path)
    around = [output for output in written if place == absolute(output) or absolute(output) in place.parents]
    return max(around, key=lambda output: len(absolute(output).parts), default=None)


def absolute(path: str) -> Path:
    """A path without ``..`` and ``~``; links stay."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def _exists(text: str) -> bool:
    try:
        return Path(os.path.expanduser(text)).exists()
    except (OSError, ValueError, RuntimeError):
        return False


def listing(path: Path) -> Listing:
    """The hash of every file of an input or output; empty if it does not exist.

    Raises:
        OSError: A file cannot be read.
    """
    if not path.exists():
        return {}
    names = {"": path} if path.is_file() else {name: path / name for name in sorted(files_below(path))}
    sampled = {name: file for name, file in names.items() if _is_sampled(file)}
    entire = content_hashes(str(file) for name, file in names.items() if name not in sampled)
    return {name: _sample(file) if name in sampled else entire[str(file)] for name, file in names.items()}


def digest(value: Any) -> str:
    """The SHA-256 of anything that JSON can say; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _is_sampled(file: Path) -> bool:
    return file.suffix in WEIGHTS and file.stat().st_size >= SAMPLED_FROM_BYTES


def _sample(file: Path) -> str:
    size = file.stat().st_size
    found = hashlib.sha256(f"{size}".encode())
    with file.open("rb") as content:
        for number in range(SAMPLES):
            content.seek(number * (size - SAMPLE_BYTES) // (SAMPLES - 1))
            found.update(content.read(SAMPLE_BYTES))
    return found.hexdigest()
