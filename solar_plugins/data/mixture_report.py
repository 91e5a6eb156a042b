"""What happened to every row of a mixture: as text, and as the JSON file that marks its folder as complete."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from solar_plugins.data.mixture_args import MixtureArgs
from solar_plugins.data.ngrams import SHORTEST
from solar_plugins.data.row_checks import Reason
from solar_plugins.errors import DataError
from solar_plugins.storage.untrusted import read_json_object
from solar_plugins.tables import lines, table
from solar_plugins.text import printable

REPORT = "report.json"
DROPPED = "dropped.jsonl"
FORMAT_VERSION = 2
"""Raise it when the same mixture file and inputs would give different rows, so that existing folders are rebuilt."""
HEADINGS = {
    Reason.UNREADABLE: "unreadable",
    Reason.MISSING_TEXT: "no text",
    Reason.EXCLUDED_TASK: "excluded task",
    Reason.BENCHMARK_OVERLAP: "in a benchmark",
    Reason.SIMILAR: "similar to one",
}
NUM_EXAMPLES = 3

type InputState = dict[str, tuple[int, str]]
"""Size and SHA-256 of every input. Size and time alone do not identify the content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReport:
    """The rows of one dataset. ``rows_read`` is the sum of ``dropped``, ``not_drawn`` and ``rows_kept``."""

    rows_read: int
    dropped: dict[str, int]
    not_drawn: int
    """Rows that passed the filters but were not sampled."""
    rows_kept: int
    rows_asked: int | None
    rows_without_task: int | None
    """Rows without a task, which therefore could not be excluded; None if there is no task_column."""
    benchmark_matches: dict[str, int]
    file_bytes: int


@dataclass(frozen=True, slots=True)
class MixtureReport:
    """The inputs and the output of a mixture."""

    mixture: dict[str, Any]
    inputs: InputState
    sets: dict[str, SetReport]
    num_ngrams: int
    benchmark_rows: dict[str, dict[str, int]]
    """For each benchmark file, the number of rows by the lower-case name of `Searched`."""
    seconds: float
    similar: dict[str, Any] | None = None
    """The model that texts were compared with, and how many rows; None without ``decontaminate.similar``."""


def write_report(path: Path, report: MixtureReport) -> None:
    """Write the report, which marks the folder as complete."""
    content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(report)}
    if report.similar is None:
        del content["similar"]
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_report(output: Path) -> MixtureReport:
    """The report of a mixture's folder.

    Raises:
        DataError: It is damaged, or another version of this package wrote it.
        OSError: It cannot be read.
    """
    path, fix = output / REPORT, "delete the file and run solar mix again"
    found = read_json_object(path, error=DataError, fix=fix)
    version = found.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise DataError(f"{path}: format_version is {version!r:.50}, expected {FORMAT_VERSION}; {fix}")
    try:
        found["inputs"] = {path: tuple(state) for path, state in found["inputs"].items()}
        found["sets"] = {name: SetReport(**one) for name, one in found["sets"].items()}
        return MixtureReport(**found)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); {fix}") from None


def finished_report(
    output: Path, args: MixtureArgs, inputs: InputState, model: Mapping[str, Any] | None = None
) -> MixtureReport | None:
    """The report of a complete folder that was built from the same options, inputs and embedding model, else None."""
    try:
        report = read_report(output)
        complete = all((output / f"{name}.jsonl").stat().st_size == one.file_bytes for name, one in report.sets.items())
    except (OSError, DataError):
        return None
    same = report.mixture == args.model_dump(mode="json") and report.inputs == inputs
    same = same and (report.similar or {}).get("model") == model
    return report if same and complete and (output / DROPPED).is_file() else None


def foreign_files(output: Path) -> list[str]:
    """Names in a folder that `solar mix` did not write; its own name if it is not a folder."""
    if not output.exists():
        return []
    if not output.is_dir():
        return [output.name]
    try:
        ours = {REPORT, DROPPED, *(f"{name}.jsonl" for name in read_json_object(output / REPORT)["sets"])}
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    return sorted(path.name for path in output.iterdir() if path.name not in ours)


def as_text(report: MixtureReport, output: Path, *, made: bool) -> str:
    """The summary for a terminal: for each dataset the rows read, dropped (with reasons) and kept."""
    rows = sum(one.rows_read for one in report.sets.values())
    kept = sum(one.rows_kept for one in report.sets.values())
    rate = f"{rows:,} rows in {report.seconds:,.1f} s, {rows / max(report.seconds, 1e-3):,.0f} rows/s"
    text = [f"{output}: {f'built from {rate}' if made else 'up to date (same inputs and options)'}"]
    text += ["", *_table(report, kept), ""]
    for name, one in report.sets.items():
        if not one.rows_kept:
            text.append(f"{name}: NO ROWS LEFT, {name}.jsonl is empty")
        elif one.rows_asked is not None and one.rows_kept < one.rows_asked:
            why = "lowered by keep_shares" if one.not_drawn else "no more are left"
            text.append(f"{name}: {one.rows_kept:,} of the requested {one.rows_asked:,} rows ({why})")
        if one.rows_without_task:
            text.append(f"{name}: {one.rows_without_task:,} rows have no task, so exclude_tasks did not apply to them")
    text += _benchmarks(report, output)
    dropped = sum(sum(one.dropped.values()) for one in report.sets.values())
    text.append(f"all dropped rows with reasons: {output / DROPPED} ({dropped:,} rows)")
    return "\n".join(text)


def _table(report: MixtureReport, kept: int) -> list[str]:
    reasons = [reason for reason in HEADINGS if reason is not Reason.SIMILAR or report.similar]
    headings = ["dataset", "read", *(HEADINGS[reason] for reason in reasons), "not sampled", "kept", "share"]
    rows = []
    for name, one in report.sets.items():
        counts = [one.rows_read, *(one.dropped[reason] for reason in reasons), one.not_drawn, one.rows_kept]
        rows.append([name, *(f"{count:,}" for count in counts), f"{one.rows_kept / max(kept, 1):.1%}"])
    return lines(table(headings, rows))


def _benchmarks(report: MixtureReport, output: Path) -> list[str]:
    decontaminate = report.mixture["decontaminate"]
    if decontaminate is None:
        return ["not decontaminated: no decontaminate: in the mixture file"]
    matches = sum((Counter(one.benchmark_matches) for one in report.sets.values()), Counter[str]())
    ngram = decontaminate["ngram"]
    text = [f"compared with {report.num_ngrams:,} n-grams of {ngram} words; rows dropped by benchmark file:"]
    text += [f"  {matches[one['path']]:,}  {one['path']}" for one in decontaminate["against"]]
    text += [f"  e.g. {example}" for example in _examples(output / DROPPED, Reason.BENCHMARK_OVERLAP)]
    text += _similar(report, output)
    return text + [line for path, rows in report.benchmark_rows.items() for line in _short_rows(path, rows, ngram)]


def _similar(report: MixtureReport, output: Path) -> Iterator[str]:
    """The rows that were compared by embeddings."""
    if (found := report.similar) is None:
        return
    yield f"compared {found['rows_compared']:,} sampled rows by embeddings of {found['model']['model']}; rows dropped:"
    for one in report.mixture["decontaminate"]["against"]:
        yield f"  {found['matches'].get(one['path'], 0):,}  {one['path']}"
    yield from (f"  e.g. {example}" for example in _examples(output / DROPPED, Reason.SIMILAR))
    if (judged := found["judged"]) is not None:
        counts = ", ".join(f"{judged.get(verdict, 0):,} {verdict}" for verdict in ("yes", "no", "undecided"))
        yield f"the judge's verdicts: {counts} (undecided pairs are dropped)"
    if found["short_benchmark_texts"]:
        yield (
            f"{found['short_benchmark_texts']:,} benchmark texts with fewer than {SHORTEST} words were not compared by "
            "embeddings"
        )


def _short_rows(path: str, rows: Mapping[str, int], ngram: int) -> Iterator[str]:
    """Notes on benchmark rows that are too short for an n-gram."""
    inside, equal = rows["inside"], rows["equal"]
    if inside or equal:
        total, shortest = sum(rows.values()), min(ngram, SHORTEST)
        yield f"{path}: {inside + equal:,} of {total:,} rows are shorter than {ngram} words and have no n-gram:"
    if inside:
        yield f"  {inside:,} with {shortest} words or more: match every text that contains the entire row"
    if equal:
        yield f"  {equal:,} with fewer than {shortest} words: match only texts that equal the row"


def _examples(path: Path, reason: Reason) -> list[str]:
    with path.open(encoding="utf-8") as file:
        records = (json.loads(line) for line in file)
        matched = (one for one in records if one["reason"] == reason)
        return [
            f"{one['file']} row {one['row']} ({one['column']}) and {one['benchmark_file']} row {one['benchmark_row']}: "
            f"{'score {score}: '.format(**one) if 'score' in one else ''}{printable(one['value']):.120}"
            for one in islice(matched, NUM_EXAMPLES)
        ]
