"""The easy-to-hard order of preference sets for stepwise DPO.

Kim et al. 2024, "sDPO", arXiv:2403.19270: the sets are taken in the order of how many of their pairs the reference
model prefers as the labels do already; the first step's reference is the model that DPO starts from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import batched, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solar_plugins.data.row_encoder import DEFAULT_SEED, RowEncoder
from solar_plugins.data.row_tally import RowTally
from solar_plugins.errors import CheckpointError, DataError
from solar_plugins.evaluation.log_probabilities import AnswerScore, pair_scores, share_standard_error
from solar_plugins.evaluation.preference_files import PreferenceFile, drawn_rows, encoded_pairs, find_file
from solar_plugins.extras import require
from solar_plugins.tables import lines, table
from solar_plugins.text import printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAIRS_AT_ONCE = 16
"""Pairs that are sorted by length together, so that batches hold texts of like length; the bar moves as often."""


@dataclass
class SetShare:
    """How a model judges the pairs of one set.

    Args:
        file: The set.
        tally: What became of its rows.
        preferred: Pairs whose chosen answer has the higher log-probability.
        preferred_per_token: The same by the mean log-probability of a token.
        ties: Pairs whose answers have the same log-probability; they count as not preferred.
    """

    file: PreferenceFile
    tally: RowTally
    preferred: int = 0
    preferred_per_token: int = 0
    ties: int = 0

    @property
    def pairs(self) -> int:
        """How many pairs were judged."""
        return self.tally.examples

    @property
    def share(self) -> float:
        """Of the judged pairs, those that the model prefers as the labels do."""
        return self.preferred / self.pairs

    @property
    def standard_error(self) -> float:
        """Of the share: how far another draw of as many pairs may lie away."""
        return share_standard_error(self.preferred, self.pairs)

    def add(self, chosen: AnswerScore, rejected: AnswerScore) -> None:
        """Count what the model prefers of a pair, which `tally` has counted."""
        self.preferred += chosen.total > rejected.total
        self.preferred_per_token += chosen.per_token > rejected.per_token
        self.ties += chosen.total == rejected.total


@dataclass(frozen=True)
class OrderedSets:
    """Sets from easy to hard, and what was asked.

    Args:
        model: The model's folder.
        device: Where it ran.
        dtype: In which number format.
        max_length: Of prompt and answer, in tokens.
        own_template: Whether the tokenizer carries SOLAR's chat template, with which the texts were written.
        sets: The easiest first; of equals the one that was given first.
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
    """Judge every set by a model, and order them.

    Args:
        model: A folder with model and tokenizer.
        files: The sets.
        formatter: How to read all of them; by default found by their columns.
        max_length: Longer texts lose their end; sDPO trains on 1024 tokens.
        batch_tokens: How many tokens the model is given at once.
        limit: Judge so many rows of each file, drawn at random.
        seed: Random seed for subsampling and for the formatter's choices. With the seed of a recipe, each row gives the
            pair on which that recipe trains.
        max_bad_share: A set of which more rows are bad is an error.

    Raises:
        DataError: A file cannot be used.
        CheckpointError: The model cannot be used.
        SolarError: torch or transformers is not installed.
    """
    require("solar sdpo-order")
    places = [path.resolve() for path in files]
    twice = [path for number, path in enumerate(files) if places[number] in places[:number]]
    if twice:
        raise DataError(f"{twice[0]}: given twice; expected each set once")
    found = [find_file(path, formatter) for path in files]
    from solar_plugins.data.encoder import make_encoder
    from solar_plugins.data.template import renders_as_solar
    from solar_plugins.evaluation.models import hardware, load_model, load_tokenizer

    if not (model / "config.json").is_file():
        raise CheckpointError(
            f"{model}: no config.json is in it; expected the folder of the model that stepwise DPO starts from, "
            "such as a recipe's output_dir"
        )
    tokenizer = load_tokenizer(model)
    encoder = make_encoder(tokenizer, str(model))
    loaded = load_model(model)
    _check_positions(loaded, model, max_length)
    sets = []
    for file in found:
        rows = RowEncoder(file.formatter, encoder, max_length, truncate=True, seed=seed)
        sets.append(_judged(loaded, rows, file, drawn_rows(file.num_rows, limit, seed), batch_tokens))
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


def _judged(
    model: PreTrainedModel, encoder: RowEncoder, file: PreferenceFile, places: frozenset[int], batch_tokens: int
) -> SetShare:
    from tqdm import tqdm

    result = SetShare(file, RowTally(str(file.path), file.formatter.name))
    rows = encoded_pairs(file, places, encoder, result.tally)
    with tqdm(total=len(places), desc=file.path.name, unit="pair", mininterval=0.5) as bar:
        for chunk in batched(rows, PAIRS_AT_ONCE):
            for pair, chosen, rejected in pair_scores(model, [pair for pair in chunk if pair], batch_tokens):
                if not (math.isfinite(chosen.total) and math.isfinite(rejected.total)):
                    raise CheckpointError(
                        f"{file.path}: row {pair.row}: the model's log-probability is not a number; expected a trained "
                        "model with finite weights"
                    )
                result.add(chosen, rejected)
            bar.update(len(chunk))
    return result


def _check_rows(result: SetShare, max_bad_share: float) -> None:
    tally, path = result.tally, result.file.path
    if tally.num_bad > max_bad_share * tally.rows_read:
        raise DataError(
            f"{path}: {tally.num_bad} of {tally.rows_read} rows cannot be read as {tally.formatter} "
            f"({'; '.join(tally.bad_reasons())}); expected at most the share {max_bad_share:g}. Fix the rows, name "
            "another formatter with --type, or allow more with --max-bad-share"
        )
    if not result.pairs:
        raise DataError(
            f"{path}: none of {tally.rows_read} rows is left: {tally.too_long} have a prompt that fills --max-length, "
            f"{tally.num_bad} cannot be read; expected at least one pair. Give a larger --max-length, or another set"
        )


def as_text(ordered: OrderedSets) -> str:
    """The order as a table, then what has to be known to read it."""
    head = ["easy to hard", "prefers chosen", "per token", "pairs", "ties", "cut", "too long", "bad"]
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
        f"prefers chosen: share of pairs whose chosen answer has the higher sum of log-probabilities by "
        f"{ordered.model} ({ordered.dtype} on {ordered.device}), as in DPO's reference; ± one standard error. "
        "The order follows it"
    )
    yield "per token: the same with the mean over an answer's tokens, which does not favour short answers"
    yield f"cut: an answer lost what is beyond {ordered.max_length} tokens; too long: the prompt alone fills them"
    if not ordered.own_template:
        yield (
            "the texts were written in SOLAR's chat template, as our formatters do for training; the model's tokenizer "
            "carries another one or none"
        )
    for easier, harder in pairwise(ordered.sets):
        if easier.share - harder.share < 2 * math.hypot(easier.standard_error, harder.standard_error):
            yield f"{_name(easier)} and {_name(harder)} differ by less than two standard errors: either may be easier"
    for one in ordered.sets:
        yield f"{_name(one)}: read as {one.file.formatter.name}, {one.tally.rows_read:,} of {one.file.num_rows:,} rows"
        if one.tally.bad:
            yield f"  left out as bad: {printable('; '.join(one.tally.bad_reasons()))}"


def as_json(ordered: OrderedSets) -> dict[str, Any]:
    """The same for programs."""
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
