"""The easy-to-hard order of preference datasets for stepwise DPO.

Kim et al. 2024, "sDPO", arXiv:2403.19270: datasets are ordered by the share of their pairs in which the reference model
already prefers the chosen answer. The reference of the first step is the model that DPO starts from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import batched, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solar_plugins.data.formatters import preference_formatters
from solar_plugins.data.formatters.base import NothingToLearn, PreferenceFormatter, Row, RowError
from solar_plugins.data.row_encoder import DEFAULT_SEED, EncodedPair, RowEncoder
from solar_plugins.data.row_files import parse_row, read_blocks, require_readable
from solar_plugins.data.row_tally import RowTally
from solar_plugins.errors import CheckpointError, DataError
from solar_plugins.evaluation.log_probabilities import AnswerScore, pair_scores, share_standard_error
from solar_plugins.extras import require
from solar_plugins.tables import lines, table
from solar_plugins.text import printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRIED_ROWS = 100
"""The number of rows from which the formatter is detected."""
OTHER_NAMES = {"prompt_and_answers": "preference"}
"""Former values of ``--type``."""


@dataclass(frozen=True)
class PreferenceFile:
    """A file, and how to read it.

    Args:
        path: JSON Lines or JSON, perhaps compressed, or Parquet.
        formatter: For all its rows.
        num_rows: Number of rows.
    """

    path: Path
    formatter: PreferenceFormatter
    num_rows: int


def find_file(path: Path, formatter_name: str | None) -> PreferenceFile:
    """Check that a file can be read, count its rows, and detect their formatter.

    Args:
        path: The file.
        formatter_name: The formatter to use; by default the one that reads most of the first rows, and of several the
            one with the most required columns.

    Raises:
        DataError: The file or the formatter cannot be used.
    """
    require_readable(str(path))
    first, num_rows = list[bytes](), 0
    for _, line in _rows(path):
        if len(first) < TRIED_ROWS:
            first.append(line)
        num_rows += 1
    if not first:
        raise DataError(f"{path}: no rows; expected preference pairs, one JSON object per line")
    return PreferenceFile(path, _formatter(path, formatter_name, first), num_rows)


def _rows(path: Path) -> Iterator[tuple[int, bytes]]:
    for block in read_blocks(str(path)):
        for offset, line in enumerate(block.lines):
            if line.strip():
                yield block.first_row + offset, line


def _formatter(path: Path, name: str | None, first: list[bytes]) -> PreferenceFormatter:
    known = preference_formatters()
    if name is not None:
        name = OTHER_NAMES.get(name, name)
        if name not in known:
            raise DataError(f"--type: {name!r} is not a preference formatter; known: {', '.join(sorted(known))}")
        return known[name]
    rows = [row for row in map(_row_or_none, first) if row is not None]
    if not rows:
        try:
            parse_row(first[0])
        except RowError as error:
            raise DataError(
                f"{path}: no row can be read (row 1: {error}); expected a JSON object for each row"
            ) from None
    columns = {column: None for row in rows for column, value in row.items() if value is not None}
    fitting = [formatter for formatter in known.values() if columns.keys() >= set(formatter.columns)]
    if not fitting:
        expected = "; ".join(f"{formatter.name}: {', '.join(formatter.columns)}" for formatter in known.values())
        raise DataError(
            f"{path}: the first rows have the columns {', '.join(columns) or 'none'}; expected those of a "
            f"preference formatter ({expected}). Set the formatter with --type, or use a preference dataset"
        )
    return max(fitting, key=lambda formatter: (sum(_reads(formatter, row) for row in rows), len(formatter.columns)))


def _row_or_none(line: bytes) -> Row | None:
    try:
        return parse_row(line)
    except RowError:
        return None


def _reads(formatter: PreferenceFormatter, row: Row) -> bool:
    try:
        formatter.to_pair(row, random.Random(0))
    except NothingToLearn:
        return True
    except Exception:  # A third-party formatter may raise anything.
        return False
    return True


def sampled_rows(num_rows: int, limit: int | None, seed: int) -> frozenset[int]:
    """The indices of the rows to evaluate: all, or a random sample of ``limit``."""
    if limit is None or limit >= num_rows:
        return frozenset(range(num_rows))
    return frozenset(random.Random(seed).sample(range(num_rows), limit))


def encoded_pairs(
    file: PreferenceFile, indices: frozenset[int], encoder: RowEncoder, tally: RowTally
) -> Iterator[EncodedPair | None]:
    """One item for each row in ``indices``: its pair, or None if it has none.

    Args:
        file: The file.
        indices: Indices of rows, blank lines not counted.
        encoder: Encodes a row.
        tally: Counts the rows.
    """
    for index, (number, line) in enumerate(_rows(file.path)):
        if index in indices:
            yield _pair(encoder, number - 1, line, tally)


def _pair(encoder: RowEncoder, index: int, line: bytes, tally: RowTally) -> EncodedPair | None:
    try:
        pair = encoder.pair(parse_row(line), index)
    except RowError as error:
        tally.add_error(index, error)
        return None
    tally.add(index, [pair])
    return None if pair.too_long else pair


PAIRS_AT_ONCE = 16
"""Pairs that are batched by length together, for each update of the progress bar."""


@dataclass
class SetShare:
    """How many pairs of a dataset a model prefers as labeled.

    Args:
        file: The dataset.
        tally: The counts of its rows.
        preferred: Pairs whose chosen answer has the higher log-probability.
        preferred_per_token: The same by mean log-probability per token.
        ties: Pairs whose answers have the same log-probability; they count as not preferred.
    """

    file: PreferenceFile
    tally: RowTally
    preferred: int = 0
    preferred_per_token: int = 0
    ties: int = 0

    @property
    def pairs(self) -> int:
        """The number of evaluated pairs."""
        return self.tally.examples

    @property
    def share(self) -> float:
        """The share of pairs in which the model prefers the chosen answer."""
        return self.preferred / self.pairs

    @property
    def standard_error(self) -> float:
        """The standard error of `share`."""
        return share_standard_error(self.preferred, self.pairs)

    def add(self, chosen: AnswerScore, rejected: AnswerScore) -> None:
        """Count the model's preference for a pair that is already in `tally`."""
        self.preferred += chosen.total > rejected.total
        self.preferred_per_token += chosen.per_token > rejected.per_token
        self.ties += chosen.total == rejected.total


@dataclass(frozen=True)
class OrderedSets:
    """Datasets from easy to hard, and the settings.

    Args:
        model: The folder of the model.
        device: Its device.
        dtype: Its dtype.
        max_length: Maximum tokens of prompt and answer together.
        own_template: Whether the tokenizer carries SOLAR's chat template, in which the texts are rendered.
        sets: The easiest first; ties keep the given order.
    """

    model: Path
    device: str
    dtype: str
    max_length: int
    own_template: bool
    sets: tuple[SetShare, ...]


def order_sets(
    model: Path,
    files: Sequence[Path],
    *,
    formatter: str | None = None,
    max_length: int = 1024,
    batch_tokens: int = 4096,
    limit: int | None = None,
    seed: int = DEFAULT_SEED,
    max_bad_share: float = 0.02,
) -> OrderedSets:
    """Evaluate the datasets with a model, and order them from easy to hard.

    Args:
        model: A folder with model and tokenizer.
        files: The datasets.
        formatter: The formatter for all of them; by default detected from their columns.
        max_length: Longer texts are truncated; sDPO trains on 1024 tokens.
        batch_tokens: Maximum tokens per batch.
        limit: Evaluate a random sample of so many rows per file.
        seed: Random seed for subsampling and for the formatter's choices. With the seed of a recipe, each row gives the
            pair that the recipe trains on.
        max_bad_share: A larger share of bad rows in a dataset is an error.

    Raises:
        DataError: A file cannot be used.
        CheckpointError: The model cannot be used.
        SolarError: torch or transformers is not installed.
    """
    require("solar sdpo-order")
    resolved = [path.resolve() for path in files]
    twice = [path for number, path in enumerate(files) if resolved[number] in resolved[:number]]
    if twice:
        raise DataError(f"{twice[0]}: given twice; expected each dataset once. Remove one of them")
    found = [find_file(path, formatter) for path in files]
    from solar_plugins.data.encoder import make_encoder
    from solar_plugins.data.template import renders_as_solar
    from solar_plugins.evaluation.models import hardware, load_model, load_tokenizer

    if not (model / "config.json").is_file():
        raise CheckpointError(
            f"{model}: contains no config.json; expected the folder of the model that stepwise DPO starts from, "
            "such as the output_dir of a recipe"
        )
    tokenizer = load_tokenizer(model)
    encoder = make_encoder(tokenizer, str(model))
    loaded = load_model(model)
    _check_positions(loaded, model, max_length)
    sets = []
    for file in found:
        rows = RowEncoder(file.formatter, encoder, max_length, truncate=True, seed=seed)
        sets.append(_evaluated(loaded, rows, file, sampled_rows(file.num_rows, limit, seed), batch_tokens))
    for one in sets:
        _check_rows(one, max_bad_share)
    device, dtype = hardware()
    ordered = tuple(sorted(sets, key=lambda one: -one.share))
    return OrderedSets(model, device, dtype, max_length, renders_as_solar(tokenizer), ordered)


def _check_positions(model: PreTrainedModel, directory: Path, max_length: int) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and max_length > positions:
        raise CheckpointError(
            f"--max-length: {max_length}; {directory} has {positions} positions (max_position_embeddings in its "
            f"config.json). Give --max-length {positions} or less"
        )


def _evaluated(
    model: PreTrainedModel, encoder: RowEncoder, file: PreferenceFile, indices: frozenset[int], batch_tokens: int
) -> SetShare:
    from tqdm import tqdm

    result = SetShare(file, RowTally(str(file.path), file.formatter.name))
    rows = encoded_pairs(file, indices, encoder, result.tally)
    with tqdm(total=len(indices), desc=file.path.name, unit="pair", mininterval=0.5) as bar:
        for chunk in batched(rows, PAIRS_AT_ONCE):
            for pair, chosen, rejected in pair_scores(model, [pair for pair in chunk if pair], batch_tokens):
                if not (math.isfinite(chosen.total) and math.isfinite(rejected.total)):
                    raise CheckpointError(
                        f"{file.path}: row {pair.row}: the log-probability is not finite; expected a model "
                        "with finite weights. Check the model, or use another one"
                    )
                result.add(chosen, rejected)
            bar.update(len(chunk))
    return result


def _check_rows(result: SetShare, max_bad_share: float) -> None:
    tally, path = result.tally, result.file.path
    if tally.num_bad > max_bad_share * tally.rows_read:
        raise DataError(
            f"{path}: {tally.num_bad} of {tally.rows_read} rows cannot be read as {tally.formatter} "
            f"({'; '.join(tally.bad_reasons())}); expected at most a share of {max_bad_share:g}. Fix the rows, set "
            "another formatter with --type, or allow more with --max-bad-share"
        )
    if not result.pairs:
        raise DataError(
            f"{path}: none of {tally.rows_read} rows is left: {tally.too_long} have a prompt that fills --max-length, "
            f"{tally.num_bad} cannot be read; expected at least one pair. Raise --max-length, or use another dataset"
        )


def as_text(ordered: OrderedSets) -> str:
    """The order as a table, and notes on how to read it."""
    head = ["easy to hard", "prefers chosen", "per token", "pairs", "ties", "truncated", "too long", "bad"]
    rows = [
        [
            f"{place}. {_name(one)}",
            f"{100 * one.share:.1f} % ± {100 * one.standard_error:.1f}",
            f"{100 * one.preferred_per_token / one.pairs:.1f} %",
            *(f"{count:,}" for count in (one.pairs, one.ties, one.tally.cut, one.tally.too_long, one.tally.num_bad)),
        ]
        for place, one in enumerate(ordered.sets, 1)
    ]
    return "\n".join([*lines(table(head, rows)), "", *_notes(ordered)])


def _name(one: SetShare) -> str:
    return printable(str(one.file.path)).replace("\n", " ")


def _notes(ordered: OrderedSets) -> Iterable[str]:
    yield (
        f"prefers chosen: share of pairs in which {ordered.model} ({ordered.dtype} on {ordered.device}) gives the "
        "chosen answer the higher log-probability (sum over tokens, as in DPO); ± one standard error. Sorted by it"
    )
    yield "per token: the same with the mean over tokens, which does not favor short answers"
    yield f"truncated: pairs with an answer cut at {ordered.max_length} tokens; too long: the prompt alone fills them"
    if not ordered.own_template:
        yield (
            "the texts are rendered in SOLAR's chat template, as in training; the model's tokenizer has another one or "
            "none"
        )
    for easier, harder in pairwise(ordered.sets):
        if easier.share - harder.share < 2 * math.hypot(easier.standard_error, harder.standard_error):
            yield f"{_name(easier)} and {_name(harder)} differ by less than two standard errors: the order is uncertain"
    for one in ordered.sets:
        yield f"{_name(one)}: read as {one.file.formatter.name}, {one.tally.rows_read:,} of {one.file.num_rows:,} rows"
        if one.tally.bad:
            yield f"  bad rows: {printable('; '.join(one.tally.bad_reasons()))}"


def as_json(ordered: OrderedSets) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "model": str(ordered.model),
        "device": ordered.device,
        "dtype": ordered.dtype,
        "max_length": ordered.max_length,
        "solar_template_in_tokenizer": ordered.own_template,
        "easy_to_hard": [
            {
                "file": str(one.file.path),
                "formatter": one.file.formatter.name,
                "share_preferred": one.share,
                "standard_error": one.standard_error,
                "share_preferred_per_token": one.preferred_per_token / one.pairs,
                "rows_in_file": one.file.num_rows,
                "rows": one.tally.rows_read,
                "pairs": one.pairs,
                "preferred": one.preferred,
                "ties": one.ties,
                "cut": one.tally.cut,
                "too_long": one.tally.too_long,
                "bad": one.tally.num_bad,
                "bad_rows": [{"row": row, "problem": problem} for row, problem in one.tally.first_bad],
            }
            for one in ordered.sets
        ],
    }
