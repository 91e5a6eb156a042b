"""Parts of a mixture's filtering, so that several machines can share it.

The files of all datasets, one after another, are divided into W ranges of equally many bytes. Part R filters the
blocks of rows that start in range R. The parts' results in order are therefore those of one machine.

A part's folder is named by R and W. Its report records the mixture and the content of every file that the part read,
and which rows it read of each, so that parts which do not belong together are rejected instead of joined.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any, NamedTuple

from solar_plugins.data.mixture_args import MixtureArgs
from solar_plugins.data.mixture_report import DROPPED, FORMAT_VERSION, REPORT, InputState
from solar_plugins.data.row_checks import BlockResult, Dropped, Reason
from solar_plugins.data.row_files import Block
from solar_plugins.errors import ArgsError, DataError
from solar_plugins.storage.atomic import remove
from solar_plugins.storage.untrusted import read_json_object

KEPT = "kept.bin"
COPY_BYTES = 1_000_000


class Stretch(NamedTuple):
    """Consecutive lines of a file that were filtered."""

    path: str
    first_row: int
    """From 1."""
    lines: int


@dataclass(slots=True)
class Filtered:
    """The result of filtering a dataset, or a part of it."""

    kept: bytearray = field(default_factory=bytearray)
    """For each line of the dataset's files, in order: 1 if the row passed."""
    rows: int = 0
    dropped: Counter[Reason] = field(default_factory=Counter)
    matches: Counter[str] = field(default_factory=Counter)
    """Rows dropped for overlap, by benchmark file."""
    rows_with_task: int = 0
    columns: tuple[str, ...] = ()
    """The columns of the first row, for messages."""
    first_unreadable: Dropped | None = None
    stretches: list[Stretch] = field(default_factory=list)

    def add_block(self, block: Block, result: BlockResult) -> None:
        """Add the result of the next block."""
        last = self.stretches[-1] if self.stretches else None
        if last and last.path == block.path and block.first_row == last.first_row + last.lines:
            self.stretches[-1] = last._replace(lines=last.lines + len(block.lines))
        else:
            self.stretches.append(Stretch(block.path, block.first_row, len(block.lines)))
        unreadable = (one for one in result.dropped if one.reason is Reason.UNREADABLE)
        self.kept += result.kept
        self.rows += result.rows
        self.dropped.update(one.reason for one in result.dropped)
        self.matches.update(one.match.benchmark.file for one in result.dropped if one.match)
        self.rows_with_task += result.rows_with_task
        self.columns = self.columns or result.columns
        self.first_unreadable = self.first_unreadable or next(unreadable, None)

    def add_part(self, later: Filtered) -> None:
        """Add the result of the next part."""
        self.kept += later.kept
        self.rows += later.rows
        self.dropped.update(later.dropped)
        self.matches.update(later.matches)
        self.rows_with_task += later.rows_with_task
        self.columns = self.columns or later.columns
        self.first_unreadable = self.first_unreadable or later.first_unreadable
        self.stretches += later.stretches


class Part(NamedTuple):
    """Part ``rank`` of ``parts``; the default is everything."""

    rank: int = 0
    parts: int = 1

    @classmethod
    def of(cls, text: str) -> Part:
        """The part that ``R/W`` names.

        Raises:
            ArgsError: It names none.

        Example:
            >>> Part.of("2/16")
            Part(rank=2, parts=16)
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        part = cls(int(found[1]), int(found[2])) if found else None
        if part is None or part.rank >= part.parts:
            raise ArgsError(
                f"--part: {text!r:.50} is not a part; expected R/W, with R from 0 to W - 1. For example, --part 0/4 "
                "is the first of 4 parts, and --part 3/4 the last"
            )
        return part

    def folder(self, output: Path) -> Path:
        """Where the result is written, next to the mixture's folder."""
        return parts_folder(output) / f"{self.rank}-of-{self.parts}"

    def spans(self, args: MixtureArgs, sizes: Mapping[str, int]) -> dict[str, list[tuple[str, range]]]:
        """For each dataset the files to read, and in which bytes of each a block must start.

        Args:
            args: The mixture.
            sizes: Bytes of every file.
        """
        # An empty file counts as one byte, so that some part opens it.
        length = {path: max(size, 1) for path, size in sizes.items()}
        total = sum(length[path] for one in args.sets.values() for path in one.path)
        start, stop = total * self.rank // self.parts, total * (self.rank + 1) // self.parts
        found: dict[str, list[tuple[str, range]]] = {name: [] for name in args.sets}
        at = 0
        for name, one in args.sets.items():
            for path in one.path:
                end = at + length[path]
                if start < end and stop > at:
                    # The last block of a compressed file may start at its end: it was read ahead.
                    found[name].append((path, range(max(0, start - at), sys.maxsize if stop >= end else stop - at)))
                at = end
        return found


class PartReport(NamedTuple):
    """The report of a part, except for the bytes in `KEPT`."""

    folder: Path
    inputs: InputState
    """Of the files that it read."""
    kept_bytes: int
    sets: dict[str, Any]

    @property
    def rows(self) -> int:
        """Rows that were filtered."""
        return sum(one["rows"] for one in self.sets.values())

    @property
    def num_dropped(self) -> int:
        """Rows that were dropped."""
        return sum(sum(one["dropped"].values()) for one in self.sets.values())


def parts_folder(output: Path) -> Path:
    """Where the parts of a mixture are collected."""
    return output.with_name(f"{output.name}.parts")


def parts_in(output: Path) -> list[Part]:
    """The parts that exist, complete or not, in order."""
    folder = parts_folder(output)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = (re.fullmatch(r"(\d+)-of-(\d+)", name) for name in names)
    return sorted(Part(int(one[1]), int(one[2])) for one in found if one)


def remove_parts(output: Path) -> None:
    """Remove the parts of a finished mixture, partial ones too, and their folder unless it contains something else."""
    folder = parts_folder(output)
    if folder.is_dir():
        for path in [*folder.iterdir()]:
            if re.fullmatch(r"\d+-of-\d+|\.\d+-of-\d+\.(lock|partial-.*)", path.name):
                remove(path)
        if not any(folder.iterdir()):
            folder.rmdir()


def write_part(folder: Path, part: Part, args: MixtureArgs, inputs: InputState, sets: Mapping[str, Filtered]) -> None:
    """Write the report of a part, which marks its folder as complete, and the bytes of its rows."""
    with (folder / KEPT).open("wb") as file:
        for one in sets.values():
            file.write(one.kept)
    content = {
        **_identity(part, args),
        "inputs": inputs,
        "kept_bytes": sum(len(one.kept) for one in sets.values()),
        "sets": {name: _as_json(one) for name, one in sets.items()},
    }
    (folder / REPORT).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _as_json(one: Filtered) -> dict[str, Any]:
    values = {item.name: getattr(one, item.name) for item in fields(one)}
    return values | {"kept": len(one.kept)}


def _identity(part: Part, args: MixtureArgs) -> dict[str, Any]:
    """What must be equal in the parts of a mixture, and the part's number."""
    # Similar rows are found after the parts are joined.
    mixture = args.model_dump(mode="json", exclude={"decontaminate": {"similar"}})
    return {"format_version": FORMAT_VERSION, **part._asdict(), "mixture": mixture}


def finished_part(folder: Path, part: Part, args: MixtureArgs, inputs: InputState) -> PartReport | None:
    """The report of a complete part of this mixture and these inputs, else None."""
    try:
        found = _read_part(folder, part, args)
    except (OSError, DataError):
        return None
    return found if found.inputs == inputs else None


def _read_part(folder: Path, part: Part, args: MixtureArgs) -> PartReport:
    fix = f"run solar mix with --part {part.rank}/{part.parts} again"
    found = read_json_object(folder / REPORT, error=DataError, fix=fix)
    for key, expected in _identity(part, args).items():
        if found.pop(key, None) != expected:
            raise DataError(
                f"{folder}: {key} differs; expected a part of this mixture file, written by this version of "
                f"solar_plugins. To fix it, {fix}"
            )
    try:
        inputs = {path: (int(size), str(content)) for path, (size, content) in found["inputs"].items()}
        report = PartReport(folder, inputs, int(found["kept_bytes"]), found["sets"])
        complete = (folder / KEPT).stat().st_size == report.kept_bytes and (folder / DROPPED).is_file()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / REPORT}: damaged ({type(error).__name__}: {error}); {fix}") from None
    if not complete:
        raise DataError(f"{folder}: {KEPT} or {DROPPED} is damaged or missing; {fix}")
    return report


def other_widths(output: Path, part: Part) -> list[Part]:
    """Existing parts of a mixture that was divided into another number of parts."""
    return [one for one in parts_in(output) if one.parts != part.parts]


def joined_parts(output: Path, args: MixtureArgs, state: InputState, log: IO[bytes]) -> dict[str, Filtered] | None:
    """The result of all parts in order; None if there are no parts.

    Args:
        output: The folder of the mixture.
        args: The mixture.
        state: All inputs as they are now.
        log: Gets the lines of the dropped rows.

    Raises:
        DataError: A part is missing or damaged, belongs to another mixture, or read a file that was changed.
        OSError: A part cannot be read.
    """
    found = parts_in(output)
    if not found:
        return None
    folder, parts = parts_folder(output), found[0].parts
    otherwise = f"or remove {folder} to filter all rows on this machine"
    if others := other_widths(output, found[0]):
        raise DataError(
            f"{folder}: contains parts of {parts} and of {others[0].parts}; expected all parts of one number. Remove "
            f"those that you do not want, {otherwise}"
        )
    if missing := sorted({*range(parts)} - {one.rank for one in found}):
        names = ", ".join(map(str, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise DataError(
            f"{folder}: {len(missing)} of {parts} parts are missing: {names}; expected all of them. Run solar mix with "
            f"--part {missing[0]}/{parts} (and so on), {otherwise}"
        )
    sets = {name: Filtered() for name in args.sets}
    for part in found:
        report = _read_part(part.folder(output), part, args)
        for path, content in report.inputs.items():
            if state.get(path) != content:
                raise DataError(
                    f"{path}: changed since part {part.rank} of {parts} read it; expected the same content. Run solar "
                    f"mix with --part {part.rank}/{parts} again, {otherwise}"
                )
        for name, later in _filtered(report).items():
            sets[name].add_part(later)
        with (report.folder / DROPPED).open("rb") as file:
            while chunk := file.read(COPY_BYTES):
                log.write(chunk)
    for name, one in sets.items():
        _require_consecutive(folder, args.sets[name].path, one.stretches)
    return sets


def _filtered(report: PartReport) -> dict[str, Filtered]:
    kept = memoryview((report.folder / KEPT).read_bytes())
    found, at = dict[str, Filtered](), 0
    for name, one in report.sets.items():
        unreadable = one["first_unreadable"]
        found[name] = Filtered(
            bytearray(kept[at : at + one["kept"]]),
            one["rows"],
            Counter({Reason(reason): count for reason, count in one["dropped"].items()}),
            Counter(one["matches"]),
            one["rows_with_task"],
            tuple(one["columns"]),
            Dropped(*unreadable) if unreadable else None,
            [Stretch(*stretch) for stretch in one["stretches"]],
        )
        at += one["kept"]
    return found


def _require_consecutive(folder: Path, paths: Sequence[str], stretches: Iterable[Stretch]) -> None:
    """Check that no row was filtered twice or skipped, as machines with different software might divide a file."""
    remaining: Iterator[str] = iter(paths)
    path, row = "", 1
    for one in stretches:
        if one.first_row == 1:
            path, row = next((name for name in remaining if name == one.path), ""), 1
        if (one.path, one.first_row) != (path, row):
            raise DataError(
                f"{folder}: the parts of {one.path} do not fit together: a part starts at row {one.first_row}, "
                f"expected row {row}. Use the same versions of Python, pyarrow and solar_plugins for all parts; remove "
                "the folder and run all parts again"
            )
        row += one.lines


def part_as_text(part: Part, report: PartReport, *, made: bool) -> str:
    """The summary for a terminal."""
    what = f"{report.rows:,} rows filtered, {report.num_dropped:,} dropped" if made else "already filtered"
    return (
        f"{report.folder}: part {part.rank} of {part.parts}, {what}\n"
        f"when parts 0 to {part.parts - 1} exist, solar mix without --part joins them and writes the mixture"
    )
