"""The easy-to-hard order of preference sets for stepwise DPO.

Kim et al. 2024, "sDPO", arXiv:2403.19270: the sets are taken in the order of how many of their pairs the reference
model prefers as the labels do already; the first step's reference is the model that DPO starts from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import batched, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solar_plugins.errors import CheckpointError, DataError
from solar_plugins.evaluation.log_probabilities import AnswerScore, pair_scores, share_standard_error
from solar_plugins.evaluation.preference_files import PairReader, PreferenceFile, RowCounts, drawn_rows, find_file
from solar_plugins.extras import require
from solar_plugins.text import aligned, printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAIRS_AT_ONCE = 16
"""Pairs that are sorted by length together, so that batches hold texts of like length; the bar moves as often."""


@dataclass
class SetShare:
    """How a model judges the pairs of one set.

    Args:
        file: The set.
        rows: How many of its rows were looked at.
        pairs: How many pairs of them were judged.
        preferred: Pairs whose chosen answer has the higher log-probability.
        preferred_per_token: The same by the mean log-probability of a token.
        ties: Pairs whose answers have the same log-probability; they count as not preferred.
        cut: Pairs with an answer that lost its end.
        left_out: Rows without a pair.
    """

    file: PreferenceFile
    rows: int
    pairs: int = 0
    preferred: int = 0
    preferred_per_token: int = 0
    ties: int = 0
    cut: int = 0
    left_out: RowCounts = field(default_factory=RowCounts)

    @property
    def share(self) -> float:
        """Of the judged pairs, those that the model prefers as the labels do."""
        return self.preferred / self.pairs

    @property
    def standard_error(self) -> float:
        """Of the share: how far another draw of as many pairs may lie away."""
        return share_standard_error(self.preferred, self.pairs)

    def add(self, chosen: AnswerScore, rejected: AnswerScore, *, cut: bool) -> None:
        """Count a pair."""
        self.pairs += 1
        self.preferred += chosen.total > rejected.total
        self.preferred_per_token += chosen.per_token > rejected.per_token
        self.ties += chosen.total == rejected.total
        self.cut += cut


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
    seed: int = 42,
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
        seed: Of the drawing, and of the chance that a formatter may use.
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
    reader = PairReader(make_encoder(tokenizer, str(model)), max_length, seed)
    loaded = load_model(model)
    _check_positions(loaded, model, max_length)
    sets = [_judged(loaded, reader, file, drawn_rows(file.num_rows, limit, seed), batch_tokens) for file in found]
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
    model: PreTrainedModel, reader: PairReader, file: PreferenceFile, places: frozenset[int], batch_tokens: int
) -> SetShare:
    from tqdm import tqdm

    result = SetShare(file, len(places))
    rows = reader.read(file, places, result.left_out)
    with tqdm(total=len(places), desc=file.path.name, unit="pair", mininterval=0.5) as bar:
        for chunk in batched(rows, PAIRS_AT_ONCE):
            for pair, chosen, rejected in pair_scores(model, [pair for pair in chunk if pair], batch_tokens):
                if not (math.isfinite(chosen.total) and math.isfinite(rejected.total)):
                    raise CheckpointError(
                        f"{file.path}: row {pair.row}: the model's log-probability is not a number; expected a trained "
                        "model with finite weights"
                    )
                result.add(chosen, rejected, cut=pair.cut)
            bar.update(len(chunk))
    return result


def _check_rows(result: SetShare, max_bad_share: float) -> None:
    bad, path = result.left_out, result.file.path
    if bad.bad > max_bad_share * result.rows:
        raise DataError(
            f"{path}: {bad.bad} of {result.rows} rows cannot be read as {result.file.formatter.name} ({bad.words()}); "
            f"expected at most the share {max_bad_share:g}. Mend the rows, name another formatter with --type, or "
            "allow more with --max-bad-share"
        )
    if not result.pairs:
        raise DataError(
            f"{path}: none of {result.rows} rows is left: {bad.too_long} have a prompt that fills --max-length, "
            f"{bad.bad} cannot be read; expected at least one pair. Give a larger --max-length, or another set"
        )


def as_text(ordered: OrderedSets) -> str:
    """The order as a table, then what has to be known to read it."""
    head = ["easy to hard", "prefers chosen", "per token", "pairs", "ties", "cut", "too long", "bad"]
    rows = [
        [
            f"{place}. {_name(one)}",
            f"{100 * one.share:.1f} % ± {100 * one.standard_error:.1f}",
            f"{100 * one.preferred_per_token / one.pairs:.1f} %",
            *(f"{count:,}" for count in (one.pairs, one.ties, one.cut, one.left_out.too_long, one.left_out.bad)),
        ]
        for place, one in enumerate(ordered.sets, 1)
    ]
    return "\n".join([*aligned([head, *rows]), "", *_notes(ordered)])


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
        yield f"{_name(one)}: read as {one.file.formatter.name}, {one.rows:,} of {one.file.num_rows:,} rows"
        if one.left_out.bad:
            yield f"  left out as bad: {printable(one.left_out.words())}"


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
                "rows": one.rows,
                "pairs": one.pairs,
                "preferred": one.preferred,
                "ties": one.ties,
                "cut": one.cut,
                "too_long": one.left_out.too_long,
                "bad": one.left_out.bad,
                "bad_rows": [{"row": row, "problem": problem} for row, problem in one.left_out.named],
            }
            for one in ordered.sets
        ],
    }
