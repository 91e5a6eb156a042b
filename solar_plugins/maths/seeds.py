"""The problems to start from: read from local files or from a dataset on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from solar_plugins.data.formatters.base import RowError
from solar_plugins.data.mixture import choose_rows
from solar_plugins.data.row_files import parsed_rows, require_readable
from solar_plugins.endpoints.store import SeenTexts, key_of
from solar_plugins.errors import DataError
from solar_plugins.maths.checks import Drop, Reason, check_template
from solar_plugins.maths.final_answers import final_answer
from solar_plugins.maths.recipe import SeedsArgs


class Seed(NamedTuple):
    """A problem with its solution.

    Args:
        id: Depends on the texts only, not on where they are.
        place: File and row number, from 1.
        question: The problem.
        answer: The worked solution.
        final: The final answer.
    """

    id: str
    place: str
    question: str
    answer: str
    final: str


class DroppedSeed(NamedTuple):
    """A row that is no usable problem."""

    place: str
    problem: Drop


def seed_files(args: SeedsArgs) -> list[str]:
    """The files with the problems; those of a dataset on the hub are downloaded if they are not cached.

    Raises:
        DataError: There are none, or one cannot be read or downloaded.
    """
    files = _hub_files(args) if args.hub_id else list(args.path)
    for file in files:
        require_readable(file)
    return files


def _hub_files(args: SeedsArgs) -> list[str]:
    from huggingface_hub import constants, errors, snapshot_download

    assert args.hub_id is not None
    assert args.files is not None
    try:
        folder = Path(
            snapshot_download(
                args.hub_id,
                repo_type="dataset",
                revision=args.revision,
                allow_patterns=args.files,
                local_files_only=constants.HF_HUB_OFFLINE,
            )
        )
    except (
        errors.HFValidationError,
        errors.LocalEntryNotFoundError,
        errors.HfHubHTTPError,
        errors.HTTPError,  # type: ignore[attr-defined]  # the transport's own, as in upscaling/hub.py
        OSError,
    ) as error:
        at = f" at revision {args.revision!r}" if args.revision else ""
        raise DataError(
            f"seeds.path: {args.hub_id!r}{at} cannot be downloaded from the hub ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}). Check the spelling and the network (gated datasets need HF_TOKEN; "
            "HF_HUB_OFFLINE=1 allows cached ones only), or give local files"
        ) from None
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [
        str(path) for pattern in args.files for path in found if fnmatch(path.relative_to(folder).as_posix(), pattern)
    ]
    if not files:
        raise DataError(
            f"seeds.files: {', '.join(args.files)}: no file of {args.hub_id!r} has such a name; expected a pattern "
            "such as '*/train-*.parquet'"
        )
    return list(dict.fromkeys(files))


class Seeds:
    """The problems of a recipe, streamed as often as they are needed.

    Args:
        args: The recipe's.
        files: From `seed_files`.
        random_seed: For sampling.
    """

    def __init__(self, args: SeedsArgs, files: list[str], random_seed: int) -> None:
        self._args, self._files = args, files
        usable = bytearray(not isinstance(row, DroppedSeed) for row in self._all())
        self.rows, self.usable = len(usable), sum(usable)
        self._chosen = choose_rows(usable, args.rows, random_seed)
        self.count = sum(self._chosen)

    def check(self) -> None:
        """Stop if no problem can be used.

        Raises:
            DataError: None can; names the reason of the first.
        """
        if self.count:
            return
        first = next((row for row in self._all() if isinstance(row, DroppedSeed)), None)
        why = (
            f"{first.place}: {first.problem.reason} {first.problem.detail}".strip() if first else "the files are empty"
        )
        raise DataError(
            f"seeds: none of {self.rows:,} rows can be used; {why}. Expected the problem in the column "
            f"{self._args.question} and its solution in {self._args.answer}, with a final answer "
            "in it (\\boxed{...}, 'The answer is: ...' or '#### ...'). Set seeds.question, seeds.answer and "
            "seeds.final_answer"
        )

    def __iter__(self) -> Iterator[Seed]:
        """The problems that are used."""
        for chosen, row in zip(self._chosen, self._all(), strict=True):
            if chosen and isinstance(row, Seed):
                yield row

    def dropped(self) -> Iterator[DroppedSeed]:
        """The rows that are not usable."""
        return (row for row in self._all() if isinstance(row, DroppedSeed))

    def _all(self) -> Iterator[Seed | DroppedSeed]:
        seen = SeenTexts()
        names = short_names(self._files)
        for file, name in zip(self._files, names, strict=True):
            for numbered in parsed_rows(file):
                place = f"{name}:{numbered.row_index + 1}"
                try:
                    yield self._seed(place, numbered.row, seen)
                except Drop as problem:
                    yield DroppedSeed(place, problem)

    def _seed(self, place: str, row: object, seen: SeenTexts) -> Seed:
        if isinstance(row, RowError) or not isinstance(row, dict):
            raise Drop(Reason.UNREADABLE, str(row))
        question, answer = (self._text(row, column) for column in (self._args.question, self._args.answer))
        column = self._args.final_answer
        final = self._text(row, column) if column else final_answer(answer)
        if not final:
            raise Drop(Reason.NO_SEED_ANSWER, "", answer)
        for text in (question, answer):
            check_template(text)
        if not seen.is_new(question):
            raise Drop(Reason.DUPLICATE, "", question)
        return Seed(key_of([question, answer, final]).hex()[:16], place, question, answer, final)

    def _text(self, row: dict[str, object], column: str) -> str:
        value = row.get(column)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise Drop(Reason.MISSING_TEXT, f"column {column} of {', '.join(row) or 'none'}")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise Drop(Reason.UNREADABLE, f"column {column} has half of a UTF-16 pair")
        return value.strip()


def short_names(files: list[str]) -> list[str]:
    """Short names for places: the last parts of the paths, as many as tell the files apart."""
    for parts in range(1, 20):
        names = ["/".join(Path(file).parts[-parts:]) for file in files]
        if len(set(names)) == len(files):
            return names
    return files
