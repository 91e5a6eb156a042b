"""Making a mixture: every set is judged, then capped, then written; the folder appears when all of it is whole."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from solar_plugins.data.benchmarks import benchmark_index, rows_by_search
from solar_plugins.data.formatters.columns import PROMPT_COLUMNS
from solar_plugins.data.mixture_args import MixtureArgs, SetArgs, read_mixture
from solar_plugins.data.mixture_report import (
    DROPPED,
    REPORT,
    InputState,
    MixtureReport,
    SetReport,
    finished_report,
    foreign_files,
    read_report,
    write_report,
)
from solar_plugins.data.row_checks import BlockVerdict, Dropped, Reason, RowRules
from solar_plugins.data.row_files import Block, left_out_columns, read_blocks, require_readable
from solar_plugins.data.sampling import choose_rows, rows_with_shares
from solar_plugins.data.scan import Scanner, default_processes
from solar_plugins.errors import DataError
from solar_plugins.logs import logger
from solar_plugins.storage.atomic import remove_left_overs, sole_writer, write_directory, write_errors_explained
from solar_plugins.storage.content import FileStamp, content_hashes, stamps

LOG = logger("mixture")


class Judged(NamedTuple):
    """What the first reading of a set found."""

    kept: bytearray
    """For each line of the set's files, one after another: 1 if it may stay."""
    rows: int
    dropped: Counter[Reason]
    matches: Counter[str]
    """Rows dropped for sharing words, by benchmark file."""
    rows_with_task: int
    first_unreadable: Dropped | None


def make_mixture(mixture: Path, processes: int | None = None) -> tuple[MixtureReport, bool]:
    """Make the folder that a mixture file describes, or find it unchanged.

    Args:
        mixture: The file.
        processes: How many judge rows; None for as many as suit the files and the machine. The result is the same.

    Returns:
        The report, and whether anything was made.

    Raises:
        DataError: The mixture or its data cannot be used. The folder is then as it was before.
    """
    args = read_mixture(mixture)
    try:
        before, state = _input_stamps(args), _input_state(args)
    except OSError as error:
        raise DataError(
            f"{error.filename or mixture}: an input cannot be read ({error.strerror or error}); nothing was written. "
            "Check the disk and the permissions, and run again"
        ) from None
    named, output = Path(args.output), Path(args.output).resolve()  # a link to a folder stays a link
    if (found := finished_report(output, args, state)) is not None:
        remove_left_overs(output)
        return found, False
    if processes is None:
        processes = default_processes(sum(state[path][0] for one in args.sets.values() for path in one.path))

    def fill(folder: Path) -> None:
        report = _make(folder, args, state, processes)
        if _input_stamps(args) != before:
            raise DataError(f"{mixture}: an input changed while it was read; nothing was written. Run again")
        write_report(folder / REPORT, report)

    def is_finished(folder: Path) -> bool:
        return finished_report(folder, args, state) is not None

    with write_errors_explained(named, "mixture", "name another folder as output", DataError), sole_writer(output):
        _refuse_foreign(named, state)
        made = not is_finished(output) and write_directory(output, fill, is_finished, replace=True)
        report = read_report(output)
    return report, made


def _input_paths(args: MixtureArgs) -> list[str]:
    paths = [path for one in args.sets.values() for path in one.path]
    return paths + ([one.path for one in args.decontaminate.against] if args.decontaminate else [])


def _input_stamps(args: MixtureArgs) -> dict[str, FileStamp]:
    for path in _input_paths(args):
        require_readable(path)
    return stamps(_input_paths(args))


def _input_state(args: MixtureArgs) -> InputState:
    sizes = {path: Path(path).stat().st_size for path in _input_paths(args)}
    return {path: (sizes[path], content) for path, content in content_hashes(sizes).items()}


def _make(partial: Path, args: MixtureArgs, state: InputState, processes: int) -> MixtureReport:
    began = time.monotonic()
    index = benchmark_index(args.decontaminate) if args.decontaminate else None
    judged: dict[str, Judged] = {}
    with (partial / DROPPED).open("w", encoding="utf-8") as log, Scanner(index, processes) as scanner:
        for name, one in args.sets.items():
            judged[name] = _judge_set(name, one, state, scanner, log)
    rows = _rows_of_sets(args, judged)
    for name, one in args.sets.items():
        chosen = choose_rows(judged[name].kept, rows[name], one.seed)
        _write_set(partial / f"{name}.jsonl", name, one, state, chosen)
    sets = {
        name: SetReport(
            rows_read=found.rows,
            dropped={reason.value: found.dropped[reason] for reason in Reason},
            not_drawn=sum(found.kept) - rows[name],
            rows_kept=rows[name],
            rows_asked=args.sets[name].rows,
            rows_without_task=found.rows - found.rows_with_task if args.sets[name].task_column else None,
            benchmark_matches=dict(found.matches),
            file_bytes=(partial / f"{name}.jsonl").stat().st_size,
        )
        for name, found in judged.items()
    }
    return MixtureReport(
        mixture=args.model_dump(mode="json"),
        inputs=state,
        sets=sets,
        num_ngrams=len(index or ()),
        benchmark_rows=rows_by_search(args.decontaminate, index) if args.decontaminate and index else {},
        seconds=time.monotonic() - began,
    )


def _judge_set(name: str, args: SetArgs, state: InputState, scanner: Scanner, log: IO[str]) -> Judged:
    rules = RowRules(tuple(args.text_columns), args.task_column, frozenset(args.exclude_tasks or ()))
    kept, rows, rows_with_task = bytearray(), 0, 0
    dropped, matches, columns = Counter[Reason](), Counter[str](), tuple[str, ...]()
    unreadable: Dropped | None = None
    with _progress(f"{name}: judging", args, state) as advance:
        blocks = (block for path in args.path for block in read_blocks(path, wanted=_wanted(args)))
        for block, verdict in scanner.verdicts(blocks, rules):
            kept += verdict.kept
            rows += verdict.rows
            rows_with_task += verdict.rows_with_task
            columns = columns or verdict.columns
            dropped.update(one.reason for one in verdict.dropped)
            matches.update(one.match.benchmark.file for one in verdict.dropped if one.match)
            unreadable = unreadable or next((one for one in verdict.dropped if one.reason is Reason.UNREADABLE), None)
            log.writelines(_as_line(name, one) for one in verdict.dropped)
            advance(block, verdict)
    found = Judged(kept, rows, dropped, matches, rows_with_task, unreadable)
    _require_usable(name, args, found, columns)
    return found


def _wanted(args: SetArgs) -> list[str]:
    """What is compared, and what training refuses to ignore: a row with a picture shall not become one without."""
    return [*args.text_columns, *([args.task_column] if args.task_column else []), *PROMPT_COLUMNS]


def _require_usable(name: str, args: SetArgs, found: Judged, columns: tuple[str, ...]) -> None:
    where = f"sets.{name}: {', '.join(args.path)}"
    if not found.rows:
        raise DataError(f"{where}: holds no rows; expected an object for each row. Fetch the file again")
    if (first := found.first_unreadable) and found.dropped[Reason.UNREADABLE] == found.rows:
        raise DataError(
            f"{where}: none of {found.rows:,} rows can be read; {first.path} row {first.row}: {first.value}. Expected "
            'an object for each row, such as {"instruction": "...", "output": "..."}. Fix the file, or fetch it again'
        )
    if args.task_column is not None and not found.rows_with_task:
        raise DataError(
            f"{where}: none of {found.rows:,} rows names a task in the column {args.task_column!r} (task_column); the "
            f"columns of the first row are {', '.join(columns)}. Name the right one, or remove task_column and "
            "exclude_tasks: then only the n-grams keep benchmarks out"
        )
    # A set that stands in a benchmark as a whole is a finding, which the summary and `DROPPED` show.
    if not any(found.kept) and not found.dropped[Reason.BENCHMARK_OVERLAP]:
        why = ", ".join(f"{count:,} {reason}" for reason, count in found.dropped.items())
        raise DataError(
            f"{where}: no row is left of {found.rows:,} ({why}); text_columns are {', '.join(args.text_columns)}, the "
            f"columns of the first row are {', '.join(columns)}. Fix text_columns, exclude_tasks or decontaminate"
        )


def _rows_of_sets(args: MixtureArgs, judged: dict[str, Judged]) -> dict[str, int]:
    available = {name: sum(found.kept) for name, found in judged.items()}
    wanted = {name: one.rows or available[name] for name, one in args.sets.items()}
    if not args.keep_shares:
        return {name: min(wanted[name], available[name]) for name in wanted}
    rows = rows_with_shares(wanted, available)
    empty = [name for name, count in rows.items() if not count]
    if empty:
        raise DataError(
            f"keep_shares: {', '.join(empty)} would have no row, because another set has so few of those it should "
            f"have ({', '.join(f'{name} {available[name]:,} of {wanted[name]:,}' for name in wanted)}). Lower the rows "
            "of that set, or set keep_shares: false"
        )
    return rows


def _write_set(target: Path, name: str, args: SetArgs, state: InputState, chosen: bytearray) -> None:
    at = 0
    with target.open("wb") as file, _progress(f"{name}: writing", args, state) as advance:
        for path in args.path:
            if left_out := left_out_columns(path, _wanted(args)):
                LOG.info(
                    "%s: the columns %s hold bytes, for which JSON has no form; left out", path, ", ".join(left_out)
                )
            for block in read_blocks(path, wanted=_wanted(args)):
                stay = chosen[at : at + len(block.lines)]
                file.writelines(line.strip() + b"\n" for line, stays in zip(block.lines, stay, strict=False) if stays)
                at += len(block.lines)
                advance(block, None)


def _as_line(name: str, dropped: Dropped) -> str:
    record = {
        "set": name,
        "file": dropped.path,
        "row": dropped.row,
        "reason": dropped.reason,
        "column": dropped.column,
        "value": dropped.value,
    }
    if dropped.match:
        record |= {"benchmark_file": dropped.match.benchmark.file, "benchmark_row": dropped.match.benchmark.row}
    return json.dumps(record) + "\n"


@contextmanager
def _progress(title: str, args: SetArgs, state: InputState) -> Iterator[Callable[[Block, BlockVerdict | None], None]]:
    """A bar over the bytes of the set's files, with the number of rows beside it."""
    from tqdm import tqdm

    total, rows, began = sum(state[path][0] for path in args.path), 0, time.monotonic()
    with tqdm(total=total, desc=title, unit="B", unit_scale=True, unit_divisor=1000, mininterval=0.5) as bar:

        def advance(block: Block, verdict: BlockVerdict | None) -> None:
            nonlocal rows
            rows += len(block.lines) if verdict is None else verdict.rows
            rate = rows / max(time.monotonic() - began, 1e-3)
            bar.set_postfix_str(f"{rows:,} rows, {rate:,.0f} rows/s", refresh=False)
            bar.update(block.read_bytes)

        yield advance


def _refuse_foreign(output: Path, inputs: Iterable[str]) -> None:
    """Only what we made ourselves is ever replaced."""
    for path in inputs:
        if Path(path).resolve().is_relative_to(output.resolve()):
            raise DataError(f"output: {output} holds the input {path}, which would be lost; name another folder")
    others = foreign_files(output)
    if others:
        raise DataError(
            f"output: {output} is there and holds what no mixture of ours wrote ({', '.join(others[:3])}); expected a "
            "new folder or one that `solar mix` made. Move it away, or name another"
        )
