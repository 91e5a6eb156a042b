"""Builds a data mixture: filters every dataset, caps it with a seed, and writes it. The folder appears when complete.

How rows are sampled: every row draws a random number from a generator that starts at the seed, in file order, whether
or not the row is kept. Of the rows that passed the filters, the N with the smallest numbers stay, in file order.
Reservoir sampling would need only one pass, but its choice depends on how many rows came before. Here a row's number
depends only on the seed and its position, so that

* chunks, worker processes and the order in which they finish do not matter;
* a filter that drops k more rows replaces only those that were sampled, and leaves the others as they are;
* a smaller N samples a subset of a larger N, and two mixtures with the same seed sample the same rows.
"""

from __future__ import annotations

import heapq
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from solar_plugins.data.formatters.columns import PROMPT_COLUMNS
from solar_plugins.data.mixture_args import DecontaminateArgs, MixtureArgs, SetArgs, read_mixture
from solar_plugins.data.mixture_parts import (
    Filtered,
    Part,
    PartReport,
    finished_part,
    joined_parts,
    other_widths,
    parts_folder,
    remove_parts,
    write_part,
)
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
from solar_plugins.data.ngrams import NgramIndex
from solar_plugins.data.row_checks import (
    BlockResult,
    Dropped,
    Reason,
    RowRules,
    Scanner,
    benchmark_index,
    default_processes,
    rows_by_search,
)
from solar_plugins.data.row_files import EVERYTHING, Block, left_out_columns, read_blocks, require_readable
from solar_plugins.errors import DataError
from solar_plugins.logs import logger
from solar_plugins.storage.atomic import remove_left_overs, sole_writer, write_directory, write_errors_explained
from solar_plugins.storage.content import FileStamp, content_hashes, stamps


def choose_rows(kept: bytes | bytearray, rows: int | None, seed: int) -> bytearray:
    """Sample rows of a dataset.

    Args:
        kept: A byte for each row, not 0 if the row passed the filters.
        rows: The maximum number of rows; None for all.
        seed: Random seed.

    Returns:
        A byte for each row: 1 if it is sampled.

    Example:
        >>> sum(choose_rows(bytes([1, 1, 0, 1]), 2, seed=1))
        2
    """
    candidates = len(kept) - kept.count(0)
    if rows is None or rows >= candidates:
        return bytearray(1 if keep else 0 for keep in kept)
    draw = random.Random(seed).getrandbits
    numbers = ((draw(64), row) for row in range(len(kept)))
    chosen = bytearray(len(kept))
    for _, row in heapq.nsmallest(rows, (pair for pair in numbers if kept[pair[1]])):
        chosen[row] = 1
    return chosen


def rows_with_shares(wanted: Mapping[str, int], available: Mapping[str, int]) -> dict[str, int]:
    """The largest numbers of rows that are available and keep the proportions of ``wanted``, rounded down.

    Args:
        wanted: Rows of each dataset by name.
        available: Rows of each dataset that passed the filters.

    Example:
        >>> rows_with_shares({"a": 100, "b": 50}, {"a": 80, "b": 200})
        {'a': 80, 'b': 40}
    """
    scale = min(Fraction(min(available[name], rows), rows) for name, rows in wanted.items())
    return {name: int(rows * scale) for name, rows in wanted.items()}


LOG = logger("mixture")


def make_mixture(mixture: Path, processes: int | None = None) -> tuple[MixtureReport, bool]:
    """Build the folder that a mixture file describes, unless it is up to date.

    Args:
        mixture: The mixture file.
        processes: Worker processes; None chooses by file size and CPUs. The output does not depend on it.

    Returns:
        The report, and whether the folder was built now.

    Raises:
        DataError: The mixture or its data cannot be used. The folder is left unchanged.
    """
    args = read_mixture(mixture)
    with _read_errors_explained(mixture):
        before = _input_stamps(args)
        state = _state_of(before)
    model = _embedding_model(args)
    named, output = Path(args.output), Path(args.output).resolve()  # A symlink to a folder is kept.
    if (found := finished_report(output, args, state, model)) is not None:
        remove_left_overs(output)
        remove_parts(output)
        return found, False

    def fill(folder: Path) -> None:
        report = _make(folder, output, args, state, processes)
        if _input_stamps(args) != before:
            raise DataError(f"{mixture}: an input changed while being read; nothing was written. Run the command again")
        write_report(folder / REPORT, report)

    def is_finished(folder: Path) -> bool:
        return finished_report(folder, args, state, model) is not None

    with write_errors_explained(named, "mixture", "set output to another folder", DataError), sole_writer(output):
        _check_output(named, state)
        made = not is_finished(output) and write_directory(output, fill, is_finished, replace=True)
        report = read_report(output)
        remove_parts(output)
    return report, made


def make_part(mixture: Path, part: Part, processes: int | None = None) -> tuple[PartReport, bool]:
    """Filter a part of a mixture's rows, unless that is done. `make_mixture` joins the parts when all exist.

    Args:
        mixture: The mixture file, the same for all parts.
        part: Which part.
        processes: As in `make_mixture`.

    Returns:
        The part's report, and whether it was written now.

    Raises:
        DataError: The mixture or its data cannot be used.
    """
    args = read_mixture(mixture)
    with _read_errors_explained(mixture):
        spans = part.spans(args, {path: one[2] for path, one in _input_stamps(args).items()})
        paths = sorted({path for pieces in spans.values() for path, _ in pieces} | {*_benchmark_paths(args)})
        before = stamps(paths)
        state = _state_of(paths)
    named, output = Path(args.output), Path(args.output).resolve()
    _check_output(named, _input_paths(args))
    folder = part.folder(output)
    if others := other_widths(output, part):
        raise DataError(
            f"{folder.parent}: contains parts of {others[0].parts}, and --part is {part.rank}/{part.parts}; expected "
            "all parts of one number. Use the same W for all parts, or remove that folder first"
        )

    def fill(partial: Path) -> None:
        index = benchmark_index(args.decontaminate) if args.decontaminate else None
        filtered = dict[str, Filtered]()
        total = sum(min(span.stop, state[path][0]) - span.start for one in spans.values() for path, span in one)
        with (partial / DROPPED).open("wb") as log, Scanner(index, processes or default_processes(total)) as scanner:
            for name, one in args.sets.items():
                filtered[name] = _filter_set(name, one, spans[name], state, scanner, log)
        if stamps(paths) != before:
            raise DataError(f"{mixture}: an input changed while being read; nothing was written. Run the command again")
        write_part(partial, part, args, state, filtered)

    def is_finished(partial: Path) -> bool:
        return finished_part(partial, part, args, state) is not None

    other_folder = "set output to another folder"
    with write_errors_explained(folder, "part of the mixture", other_folder, DataError), sole_writer(folder):
        made = not is_finished(folder) and write_directory(folder, fill, is_finished, replace=True)
        report = finished_part(folder, part, args, state)
    if report is None:
        raise DataError(f"{folder}: replaced by another process; run the command again")
    return report, made


@contextmanager
def _read_errors_explained(mixture: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or mixture}: the input cannot be read ({error.strerror or error}); nothing was written. "
            "Check the disk and the permissions, and run the command again"
        ) from None


def _input_paths(args: MixtureArgs) -> list[str]:
    paths = [path for one in args.sets.values() for path in one.path]
    return paths + _benchmark_paths(args)


def _benchmark_paths(args: MixtureArgs) -> list[str]:
    return [one.path for one in args.decontaminate.against] if args.decontaminate else []


def _input_stamps(args: MixtureArgs) -> dict[str, FileStamp]:
    for path in _input_paths(args):
        require_readable(path)
    return stamps(_input_paths(args))


def _state_of(paths: Iterable[str]) -> InputState:
    sizes = {path: Path(path).stat().st_size for path in paths}
    return {path: (sizes[path], content) for path, content in content_hashes(sizes).items()}


def _embedding_model(args: MixtureArgs) -> dict[str, Any] | None:
    """What identifies the model of ``decontaminate.similar``; also finds problems before anything is read."""
    if args.decontaminate is None or args.decontaminate.similar is None:
        return None
    from solar_plugins.data.similar import checked_model

    return checked_model(args.decontaminate.similar)


def _make(partial: Path, output: Path, args: MixtureArgs, state: InputState, processes: int | None) -> MixtureReport:
    began = time.monotonic()
    index = benchmark_index(args.decontaminate) if args.decontaminate else None
    with (partial / DROPPED).open("wb") as log:
        joined = joined_parts(output, args, state, log)
        filtered = joined or _filter_all(args, state, index, processes, log)
    for name, one in args.sets.items():
        _require_usable(name, one, filtered[name])
    if args.decontaminate and args.decontaminate.similar:
        chosen, similar = _without_similar_rows(partial / DROPPED, args, args.decontaminate, filtered)
    else:
        chosen, similar = _sampled(args, filtered), None
    for name, one in args.sets.items():
        lines = _write_set(partial / f"{name}.jsonl", name, one, state, chosen[name])
        if joined and lines != len(chosen[name]):
            raise DataError(
                f"sets.{name}: the parts filtered {len(chosen[name]):,} lines, and its files have {lines:,}; expected "
                f"the same. Remove {parts_folder(output)}, and run all parts again with the same version of "
                "solar_plugins"
            )
    sets = {
        name: SetReport(
            rows_read=found.rows,
            dropped={reason.value: found.dropped[reason] for reason in Reason if similar or reason != Reason.SIMILAR},
            not_drawn=sum(found.kept) - sum(chosen[name]),
            rows_kept=sum(chosen[name]),
            rows_asked=args.sets[name].rows,
            rows_without_task=found.rows - found.rows_with_task if args.sets[name].task_column else None,
            benchmark_matches=dict(found.matches),
            file_bytes=(partial / f"{name}.jsonl").stat().st_size,
        )
        for name, found in filtered.items()
    }
    return MixtureReport(
        mixture=args.model_dump(mode="json"),
        inputs=state,
        sets=sets,
        num_ngrams=len(index or ()),
        benchmark_rows=rows_by_search(args.decontaminate, index) if args.decontaminate and index else {},
        seconds=time.monotonic() - began,
        similar=similar,
    )


def _sampled(args: MixtureArgs, filtered: dict[str, Filtered]) -> dict[str, bytearray]:
    rows = _rows_of_sets(args, filtered)
    return {name: choose_rows(filtered[name].kept, rows[name], one.seed) for name, one in args.sets.items()}


def _without_similar_rows(
    log: Path, args: MixtureArgs, decontaminate: DecontaminateArgs, filtered: dict[str, Filtered]
) -> tuple[dict[str, bytearray], dict[str, Any]]:
    """Sample until no sampled row is similar to a benchmark text.

    The next rows in the order of the sample replace those that are dropped, and are compared too. The result is that of
    a filter over all rows, but only the rows that could be written are embedded.
    """
    from solar_plugins.data.similar import SimilarRows

    with log.open("a", encoding="utf-8") as file, SimilarRows(decontaminate, Path(f"{args.output}.sqlite")) as similar:
        complete = False
        while not complete:
            chosen, complete = _sampled(args, filtered), True
            for name, one in args.sets.items():
                for row in similar.dropped(name, one, chosen[name]):
                    filtered[name].kept[row.at], complete = 0, False
                    filtered[name].dropped[Reason.SIMILAR] += 1
                    file.write(json.dumps(row.record) + "\n")
        return chosen, similar.report()


def _filter_all(
    args: MixtureArgs, state: InputState, index: NgramIndex | None, processes: int | None, log: IO[bytes]
) -> dict[str, Filtered]:
    sizes = {path: size for path, (size, _) in state.items()}
    spans, filtered = Part().spans(args, sizes), dict[str, Filtered]()
    total = sum(sizes[path] for one in args.sets.values() for path in one.path)
    with Scanner(index, processes or default_processes(total)) as scanner:
        for name, one in args.sets.items():
            filtered[name] = _filter_set(name, one, spans[name], state, scanner, log)
            _require_usable(name, one, filtered[name])
    return filtered


def _filter_set(
    name: str, args: SetArgs, pieces: list[tuple[str, range]], state: InputState, scanner: Scanner, log: IO[bytes]
) -> Filtered:
    """Filter the rows of a dataset: of each file the blocks that start in a range of bytes."""
    rules = RowRules(tuple(args.text_columns), args.task_column, frozenset(args.exclude_tasks or ()))
    found = Filtered()
    with _progress(f"{name}: filtering", pieces, state) as advance:
        blocks = (block for path, span in pieces for block in read_blocks(path, wanted=_wanted(args), span=span))
        for block, result in scanner.results(blocks, rules):
            found.add_block(block, result)
            log.writelines(_as_line(name, one) for one in result.dropped)
            advance(block, result)
    return found


def _wanted(args: SetArgs) -> list[str]:
    """Columns that are compared, and those that training must not ignore: a row must not lose its image silently."""
    return [*args.text_columns, *([args.task_column] if args.task_column else []), *PROMPT_COLUMNS]


def _require_usable(name: str, args: SetArgs, found: Filtered) -> None:
    where = f"sets.{name}: {', '.join(args.path)}"
    if not found.rows:
        raise DataError(f"{where}: no rows; expected a JSON object for each row. Download the file again")
    if (first := found.first_unreadable) and found.dropped[Reason.UNREADABLE] == found.rows:
        raise DataError(
            f"{where}: none of {found.rows:,} rows can be read; {first.path} row {first.row}: {first.value}. Expected "
            'an object for each row, such as {"instruction": "...", "output": "..."}. Fix or download the file again'
        )
    if args.task_column is not None and not found.rows_with_task:
        raise DataError(
            f"{where}: none of {found.rows:,} rows has a task in the column {args.task_column!r} (task_column); the "
            f"columns of the first row are {', '.join(found.columns)}. Set task_column to the right one, or remove it "
            "and exclude_tasks: then only the n-gram check removes benchmark data"
        )
    # A dataset that is entirely benchmark data is a result, not an error: the summary and `DROPPED` show it.
    if not any(found.kept) and not found.dropped[Reason.BENCHMARK_OVERLAP]:
        why = ", ".join(f"{count:,} {reason}" for reason, count in found.dropped.items())
        raise DataError(
            f"{where}: no row is left of {found.rows:,} ({why}); text_columns are {', '.join(args.text_columns)}, the "
            f"columns of the first row are {', '.join(found.columns)}. Fix text_columns, exclude_tasks or decontaminate"
        )


def _rows_of_sets(args: MixtureArgs, filtered: dict[str, Filtered]) -> dict[str, int]:
    available = {name: sum(found.kept) for name, found in filtered.items()}
    wanted = {name: one.rows or available[name] for name, one in args.sets.items()}
    if not args.keep_shares:
        return {name: min(wanted[name], available[name]) for name in wanted}
    rows = rows_with_shares(wanted, available)
    empty = [name for name, count in rows.items() if not count]
    if empty:
        raise DataError(
            f"keep_shares: {', '.join(empty)} would have no rows, because another dataset has too few "
            f"({', '.join(f'{name} {available[name]:,} of {wanted[name]:,}' for name in wanted)}). Lower rows: of that "
            "dataset, or set keep_shares: false"
        )
    return rows


def _write_set(target: Path, name: str, args: SetArgs, state: InputState, chosen: bytearray) -> int:
    """Write the chosen rows of a dataset; returns the number of lines of its files."""
    at, pieces = 0, [(path, EVERYTHING) for path in args.path]
    with target.open("wb") as file, _progress(f"{name}: writing", pieces, state) as advance:
        for path in args.path:
            if left_out := left_out_columns(path, _wanted(args)):
                LOG.info(
                    "%s: left out the columns %s, which hold bytes that JSON cannot represent",
                    path,
                    ", ".join(left_out),
                )
            for block in read_blocks(path, wanted=_wanted(args)):
                stay = chosen[at : at + len(block.lines)]
                file.writelines(line.strip() + b"\n" for line, stays in zip(block.lines, stay, strict=False) if stays)
                at += len(block.lines)
                advance(block, None)
    return at


def _as_line(name: str, dropped: Dropped) -> bytes:
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
    return json.dumps(record).encode() + b"\n"


@contextmanager
def _progress(
    title: str, pieces: Iterable[tuple[str, range]], state: InputState
) -> Iterator[Callable[[Block, BlockResult | None], None]]:
    """A progress bar over these bytes of the dataset's files, with the number of rows."""
    from tqdm import tqdm

    total = sum(min(span.stop, state[path][0]) - span.start for path, span in pieces)
    rows, began = 0, time.monotonic()
    with tqdm(total=total, desc=title, unit="B", unit_scale=True, unit_divisor=1000, mininterval=0.5) as bar:

        def advance(block: Block, result: BlockResult | None) -> None:
            nonlocal rows
            rows += len(block.lines) if result is None else result.rows
            rate = rows / max(time.monotonic() - began, 1e-3)
            bar.set_postfix_str(f"{rows:,} rows, {rate:,.0f} rows/s", refresh=False)
            bar.update(block.read_bytes)

        yield advance


def _check_output(output: Path, inputs: Iterable[str]) -> None:
    """Only replace folders that `solar mix` wrote itself."""
    for path in inputs:
        if Path(path).resolve().is_relative_to(output.resolve()):
            raise DataError(f"output: {output} contains the input {path}, which would be deleted; use another folder")
    others = foreign_files(output)
    if others:
        raise DataError(
            f"output: {output} exists and contains files that `solar mix` did not write ({', '.join(others[:3])}); "
            "expected a new folder, or one written by `solar mix`. Move it away, or use another folder"
        )
