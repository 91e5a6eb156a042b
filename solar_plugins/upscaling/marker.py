"""The marker of a finished checkpoint: the file `MARKER` with the plan, the base's identity, and all file sizes.

It is written last. Like any other file it may be damaged or foreign, so it is validated.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.errors import CheckpointError, SolarError
from solar_plugins.storage.reflink import LARGEST_BLOCK
from solar_plugins.storage.untrusted import is_plain_relative_path, read_json_object
from solar_plugins.upscaling.base_model import CONFIG
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.provenance import PROVENANCE_KEY

MARKER = "solar_plan.json"
FORMAT_VERSION = 2
"""Increase it when the same base and plan give other bytes, so that existing checkpoints are not reused."""


class Marker(NamedTuple):
    """The content of a marker file."""

    base_name: str
    """A hub id, or the last part of a local path; full local paths stay private."""
    base_revision: str | None
    """The commit of a hub model, else None."""
    base_identity: str
    plan: LayerPlan
    files: Mapping[str, int]
    """Relative path, with slashes, and size of every other file."""
    hub_was_asked: bool = True
    """False if the base is a hub model that was read from the offline cache, so that files may be missing."""
    shared_block: int = 0
    """The block size that the shards are laid out for, so that they can share blocks with the base; 0: for none."""

    def to_dict(self) -> dict[str, Any]:
        """The marker as JSON-ready values."""
        return {
            "format_version": FORMAT_VERSION,
            "base": {"name": self.base_name, "revision": self.base_revision, "identity": self.base_identity},
            "plan": self.plan.to_dict(),
            "files": dict(self.files),
            "hub_was_asked": self.hub_was_asked,
            **({"shared_block": self.shared_block} if self.shared_block else {}),
        }


def read_marker(directory: Path) -> Marker:
    """Read the marker of a finished checkpoint.

    Raises:
        CheckpointError: It does not exist, is damaged, or was written by another version of this package.
    """
    path = directory / MARKER
    try:
        data = read_json_object(path)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(_why_unmarked(directory)) from None
    if data.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version is {data.get('format_version')!r:.50}, expected {FORMAT_VERSION}; this checkpoint "
            "was written by another version of solar_plugins. Write it again, or use that version"
        )
    try:
        base, files, asked = data["base"], data["files"], data["hub_was_asked"]
        name, revision, identity = base["name"], base["revision"], base["identity"]
        _require(isinstance(name, str) and isinstance(revision, str | None) and isinstance(identity, str))
        _require(isinstance(files, dict) and CONFIG in files and MARKER not in files)
        _require(all(is_plain_relative_path(name) for name in files))
        _require(all(type(size) is int and size >= 0 for size in files.values()))
        _require(isinstance(asked, bool))
        block = data.get("shared_block", 0)
        _require(type(block) is int and 0 <= block <= LARGEST_BLOCK)
        return Marker(name, revision, identity, LayerPlan.from_dict(data["plan"]), files, asked, block)
    except (KeyError, TypeError, ValueError, SolarError) as error:
        raise CheckpointError(
            f"{path}: damaged ({type(error).__name__}: {error}); expected the base's name, revision and identity, the "
            "plan, and the size of every file. Write the checkpoint again"
        ) from None


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError("a value of the wrong type")


def _why_unmarked(directory: Path) -> str:
    if not directory.is_dir():
        return f"{directory}: does not exist or is not a directory; give the directory of an upscaled checkpoint"
    try:
        trained = PROVENANCE_KEY in read_json_object(directory / CONFIG)
    except (CheckpointError, OSError):
        trained = False
    if trained:
        return (
            f"{directory}: has no {MARKER}, but its config.json says that it was upscaled. It has since been trained, "
            "merged or saved again, so its weights differ from the base's as expected. Only an untrained upscaled "
            "checkpoint can be compared with its base"
        )
    return (
        f"{directory}: has no {MARKER}, so it is not a finished checkpoint of solar_plugins; write one with `solar "
        "upscale`, or with a recipe's `solar:` block"
    )
