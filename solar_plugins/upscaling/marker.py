"""What a finished checkpoint says of itself: the file `MARKER` with the plan, the base's identity, every file's size.

It is written last. Like every other file it may be damaged or somebody else's, so it is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.errors import CheckpointError, SolarError
from solar_plugins.storage.untrusted import is_plain_relative_path, read_json_object
from solar_plugins.upscaling.base_model import CONFIG
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.provenance import PROVENANCE_KEY

MARKER = "solar_plan.json"
FORMAT_VERSION = 2
"""Raise it when the same base and plan would give other bytes: checkpoints made before are then not reused."""


class Marker(NamedTuple):
    """The content of a marker file."""

    base_name: str
    """A hub id, or the last part of a local path: where the base lay is nobody else's business."""
    base_revision: str | None
    """The commit of a hub model, else None."""
    base_identity: str
    plan: LayerPlan
    files: Mapping[str, int]
    """Relative path, with slashes, and size of every other file."""
    hub_was_asked: bool = True
    """False if the base is a hub model of which no more than a cache was known, so that files may be missing."""

    def to_dict(self) -> dict[str, Any]:
        """The marker as JSON-ready values."""
        return {
            "format_version": FORMAT_VERSION,
            "base": {"name": self.base_name, "revision": self.base_revision, "identity": self.base_identity},
            "plan": self.plan.to_dict(),
            "files": dict(self.files),
            "hub_was_asked": self.hub_was_asked,
        }


def read_marker(directory: Path) -> Marker:
    """The marker of a finished checkpoint.

    Raises:
        CheckpointError: There is none, it is damaged, or another version of this package wrote it.
    """
    path = directory / MARKER
    try:
        data = read_json_object(path)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(_why_unmarked(directory)) from None
    if data.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version is {data.get('format_version')!r:.50}, expected {FORMAT_VERSION}; another version "
            "of solar_plugins wrote this checkpoint. Make it again, or use that version"
        )
    try:
        base, files, asked = data["base"], data["files"], data["hub_was_asked"]
        name, revision, identity = base["name"], base["revision"], base["identity"]
        _require(isinstance(name, str) and isinstance(revision, str | None) and isinstance(identity, str))
        _require(isinstance(files, dict) and CONFIG in files and MARKER not in files)
        _require(all(is_plain_relative_path(name) for name in files))
        _require(all(type(size) is int and size >= 0 for size in files.values()))
        _require(isinstance(asked, bool))
        return Marker(name, revision, identity, LayerPlan.from_dict(data["plan"]), files, asked)
    except (KeyError, TypeError, ValueError, SolarError) as error:
        raise CheckpointError(
            f"{path}: damaged ({type(error).__name__}: {error}); it should hold the base's name, revision and "
            "identity, the plan, and the size of every file. Make the checkpoint again"
        ) from None


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError("a value of the wrong kind")


def _why_unmarked(directory: Path) -> str:
    if not directory.is_dir():
        return f"{directory}: no such directory; give the directory of an upscaled checkpoint"
    try:
        trained = PROVENANCE_KEY in read_json_object(directory / CONFIG)
    except (CheckpointError, OSError):
        trained = False
    if trained:
        return (
            f"{directory}: has no {MARKER}, but its config.json says that it was upscaled: it was trained, merged or "
            "saved again since, so its bytes differ from the base's on purpose. Only a checkpoint as it was written, "
            "before training, can be compared with its base"
        )
    return (
        f"{directory}: has no {MARKER}, so it is no checkpoint that solar_plugins finished; make it with `solar "
        "upscale` or through a recipe's `solar:` block"
    )
