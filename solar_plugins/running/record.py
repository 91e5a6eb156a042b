"""What a pipeline knows of a stage that was started, and what it therefore does with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from solar_plugins.errors import ArgsError
from solar_plugins.lineage import LINEAGE_FILE
from solar_plugins.running.identity import Listing
from solar_plugins.storage.atomic import write_file
from solar_plugins.storage.cards import CARD
from solar_plugins.storage.untrusted import read_json_object

FORMAT = 1
CARDS = (CARD, LINEAGE_FILE)
"""Files that describe an output; authors edit the card before they publish the model."""


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A stage that was started.

    Args:
        status: ``done``, or ``started``: then it runs, or it failed or was killed.
        content: The keys of its file, with overrides.
        inputs: The digest of each input.
        outputs: Of each output, once it is done, the hash of each file.
        versions: Of the packages that decide what a run does.
        seconds: How long it took.
        format: Of this record.
    """

    status: Literal["started", "done"]
    content: Mapping[str, Any]
    inputs: Mapping[str, str]
    outputs: Mapping[str, Listing] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    format: int = FORMAT


def read_record(path: Path) -> StageRecord | None:
    """The record of a stage; None if it was never started.

    Raises:
        ArgsError: The file is not such a record.
    """
    if not path.exists():
        return None
    content = read_json_object(path)
    if content.get("format") != FORMAT or content.get("status") not in ("started", "done"):
        raise ArgsError(
            f"{path}: not a record of this version of solar run (format {content.get('format')!r}, expected {FORMAT}); "
            "remove it, and run the stage again with --rerun"
        )
    return StageRecord(**{key: content[key] for key in StageRecord.__dataclass_fields__ if key in content})


def write_record(path: Path, record: StageRecord) -> None:
    """Replace the record of a stage."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, (json.dumps(asdict(record), indent=1, default=str) + "\n").encode())


class Verdict(NamedTuple):
    """What to do with a stage, and why.

    ``skip`` it; ``start`` it; ``continue`` it, because it was started with the same settings and did not finish; or
    ``refuse``: it would overwrite what is there.
    """

    action: Literal["skip", "start", "continue", "refuse"]
    reason: str


def verdict(
    record: StageRecord | None, content: Mapping[str, Any], inputs: Mapping[str, str], found: Mapping[str, Listing]
) -> Verdict:
    """What to do with a stage.

    Args:
        record: What is known of it.
        content: The keys of its file now, as JSON has them.
        inputs: The digest of each input now.
        found: The files of each output now.
    """
    there = [output for output, files in found.items() if files]
    if record is None:
        if there:
            return Verdict("refuse", f"{there[0]} exists, and this pipeline did not write it")
        return Verdict("start", "never run")
    changes = differences(record, content, inputs)
    if changes:
        return Verdict("refuse" if there else "start", changes[0])
    if record.status == "started":
        return Verdict("continue", "was started and did not finish") if there else Verdict("start", "did not finish")
    missing = [output for output in record.outputs if not found.get(output)]
    if len(missing) == len(record.outputs):
        return Verdict("start", f"{missing[0]} is gone")
    for output, files in record.outputs.items():
        now = found.get(output, {})
        changed = next((name for name, hash_ in files.items() if name not in CARDS and now.get(name) != hash_), None)
        if changed is not None:
            place = f"{output}/{changed}" if changed else output
            return Verdict("refuse", f"{place} was changed or removed after the stage was done")
    return Verdict("skip", "done")


def differences(record: StageRecord, content: Mapping[str, Any], inputs: Mapping[str, str]) -> list[str]:
    """In what a stage differs from the one that was started, in words; empty if in nothing."""
    said = [
        f"{key}: {record.content.get(key)!r:.60} is now {content.get(key)!r:.60}"
        for key in dict.fromkeys([*record.content, *content])
        if record.content.get(key) != content.get(key)
    ]
    said += [f"{path} has changed" for path in inputs if path in record.inputs and record.inputs[path] != inputs[path]]
    said += [f"{path} is a new input" for path in inputs if path not in record.inputs]
    said += [f"{path} is not an input any more" for path in record.inputs if path not in inputs]
    return said
