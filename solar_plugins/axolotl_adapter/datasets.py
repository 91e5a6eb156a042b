"""Replaces a recipe's datasets by prepared ones, just before Axolotl loads them.

Axolotl calls a plugin's ``load_datasets`` first. There each dataset with ``type: solar_plugins.<formatter>`` is read,
reported and written. Its entry is then changed to the prepared dataset, in a form that Axolotl uses as it is: token ids
and labels for SFT, rendered texts without a ``type`` for preference training. So our errors do not pass through
Axolotl's strategy loaders, some of which turn an exception into a warning.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from solar_plugins.axolotl_adapter.chosen_rows import PreparedSource, chosen_rows
from solar_plugins.axolotl_adapter.local_files import is_local, load_local
from solar_plugins.axolotl_adapter.recipe_checks import SFT_ENTRY_KEYS, FormattedDataset, formatted_datasets
from solar_plugins.data.encoder import Encoder, make_encoder
from solar_plugins.data.formatters import preference_formatters, sft_formatters, unpaired_formatters
from solar_plugins.data.formatters.base import Formatter, Messages
from solar_plugins.data.prepared_datasets import (
    TALLY_COLUMNS,
    PreparedSet,
    TrainingRecords,
    count_rows,
    prepared_set,
    read_set,
)
from solar_plugins.data.row_encoder import DEFAULT_SEED, RowEncoder
from solar_plugins.data.row_tables import columns_of
from solar_plugins.data.row_tally import RowTally
from solar_plugins.data.template import renders_as_solar, template_text
from solar_plugins.errors import DataError, SolarError
from solar_plugins.logs import logger
from solar_plugins.recipe import TEMPLATE_NAME, TYPE_PREFIX, Recipe, concerns_us, parse_recipe
from solar_plugins.solar_block import DataArgs

LOG = logger("formatters")

SOLAR_END_TOKEN = "</s>"

TRAINERS_WITH_ADDED_TOKENS = ("dpo", "ipo", "kto")
"""Values of ``rl`` whose trainers tokenize texts with the special tokens that the tokenizer adds."""

SAMPLE_ROWS = 100
"""Rows that a formatter must be able to read before an error message suggests it."""


def use_prepared_datasets(cfg: Any, tallies: list[RowTally] | None = None) -> list[str]:
    """Prepare every dataset with a formatter of ours, or find it in the cache, and change ``cfg`` to use it.

    Args:
        cfg: Axolotl's validated recipe. Its dataset entries are changed, and its chat template if it has none.
        tallies: The tally of each dataset is appended to it.

    Returns:
        A line for each dataset: rows read, kept, dropped and why.

    Raises:
        DataError: A dataset or the tokenizer cannot be used.
    """
    if not concerns_us(cfg):
        return []
    recipe = parse_recipe(cfg)
    sets = list(formatted_datasets(recipe))
    if not sets:
        return []
    encoder = make_encoder(_tokenizer(cfg, recipe), str(recipe.tokenizer_config or recipe.base_model))
    _check_boundary(recipe, encoder)
    if encoder.end_token != SOLAR_END_TOKEN:
        LOG.info("answers end with %r, this tokenizer's EOS token; SOLAR's is %r", encoder.end_token, SOLAR_END_TOKEN)
    sources, lines = list[PreparedSource](), list[str]()
    for source in (one for found in sets for one in expanded(found)):
        prepared, line = _prepared(recipe, source, encoder)
        sources.append(PreparedSource(source, prepared))
        lines.append(line)
        (tallies if tallies is not None else []).append(prepared.tally)
    replaced: dict[str, dict[int, list[Any]]] = {}
    for found in sets:
        replaced.setdefault(found.key, {})[found.number] = []
    sources, chosen = chosen_rows(sources, recipe.val_set_size, _seed(recipe))
    for line in chosen:
        _log(line)
    for source, prepared in sources:
        entry = {key: value for key, value in source.entry.items() if key not in SFT_ENTRY_KEYS}
        new = type(cfg)({**entry, "path": str(prepared.path)})
        replaced.setdefault(source.key, {}).setdefault(source.number, []).append(new)
    if recipe.val_set_size:
        cfg["test_datasets"] = [new for entries in replaced.pop("test_datasets").values() for new in entries]
        cfg["val_set_size"] = 0.0
    for key, entries in replaced.items():
        cfg[key] = [new for index, old in enumerate(cfg[key]) for new in entries.get(index, [old])]
    return lines + chosen


def read_in_memory(dataset: Any, tokenizer: Any, cfg: Any, entry: Mapping[str, Any], num_proc: int | None) -> Any:
    """The prepared rows of one dataset, for a command that loads datasets itself. Reported and checked as in training.

    Args:
        dataset: A `datasets.Dataset`, as Axolotl loaded it.
        tokenizer: Axolotl's.
        cfg: Its recipe.
        entry: The dataset's entry in it.
        num_proc: Worker processes; the result does not depend on it.

    Raises:
        DataError: The dataset or the tokenizer cannot be used.
    """
    recipe = parse_recipe(cfg)
    for key, value in (("val_set_size", recipe.val_set_size), ("shards", entry.get("shards"))):
        if value:
            raise DataError(
                f"{key}: {value:g}; this Axolotl command splits the rows itself, in another way than training, so it "
                "would evaluate on rows that were trained on. List the held-out rows under test_datasets"
            )
    found = next(found for found in formatted_datasets(recipe) if _same_dataset(found.entry, entry))
    source = found._replace(entry=entry)
    encoder = make_encoder(tokenizer, str(recipe.base_model))
    if is_local(source) and not entry.get("shards"):
        # The same rows and row numbers as in training; Axolotl's may come from a cache keyed by path and time.
        dataset = load_rows(recipe, source, encoder)
    else:
        _check_columns(recipe, source, dataset, encoder)
    rows = row_encoder(recipe, source, encoder)
    prepared, tally = read_set(dataset, _records(recipe, rows), source.where, num_proc)
    check_tally(recipe, tally, rows)
    return prepared


def _same_dataset(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(entry.get(key) == other.get(key) for key in ("type", "path", "split"))


def _tokenizer(cfg: Any, recipe: Recipe) -> Any:
    """Axolotl's tokenizer for this recipe, with SOLAR's chat template.

    Raises:
        DataError: The base's tokenizer has another template, and the recipe does not set one.
    """
    from axolotl.loaders import load_tokenizer

    tokenizer = load_tokenizer(cfg)

    def apply(messages: Messages) -> Any:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    if tokenizer.chat_template and not renders_as_solar(apply):
        start = " ".join(str(tokenizer.chat_template).split())
        raise DataError(
            f"chat_template: {recipe.chat_template or 'not set'}, and the tokenizer of "
            f"{recipe.tokenizer_config or recipe.base_model} has another template ({start:.60}...) than SOLAR's, which "
            f"type: solar_plugins.* uses. To train the model with SOLAR's template, set chat_template: {TEMPLATE_NAME}"
        )
    if not tokenizer.chat_template:
        cfg["chat_template"], cfg["chat_template_jinja"] = "jinja", template_text()
    return tokenizer


def _check_boundary(recipe: Recipe, encoder: Encoder) -> None:
    """Reject tokenizers with which TRL splits prompt and answer at the wrong token.

    TRL's trainers for DPO and KTO tokenize the prompt with all special tokens that the tokenizer adds, and count that
    many tokens as the prompt (``trl/trainer/dpo_trainer.py``, ``kto_trainer.py``).

    Raises:
        DataError: The tokenizer appends a token to every text.
    """
    if recipe.rl in TRAINERS_WITH_ADDED_TOKENS and encoder.added_end_ids:
        added = "".join(encoder.tokenizer.convert_ids_to_tokens(list(encoder.added_end_ids)))
        raise DataError(
            f"tokenizer_config: the tokenizer of {recipe.tokenizer_config or recipe.base_model} appends {added} to "
            f"every text. With rl: {recipe.rl}, {added} would stand between prompt and answer, and the answer's first "
            "token would not be trained on. Remove it from post_processor in tokenizer.json (for some tokenizers: "
            "add_eos_token: false in tokenizer_config.json); answers end with the EOS token anyway"
        )


def expanded(found: FormattedDataset) -> Iterator[FormattedDataset]:
    """A dataset with several configurations, one by one."""
    names = found.entry.get("name")
    for name in names if isinstance(names, list) else [names]:
        yield found._replace(entry={**found.entry, "name": name})


def _prepared(recipe: Recipe, source: FormattedDataset, encoder: Encoder) -> tuple[PreparedSet, str]:
    dataset = load_rows(recipe, source, encoder)
    directory = prepared_directory(recipe)
    rows = row_encoder(recipe, source, encoder)
    prepared = prepared_set(dataset, _records(recipe, rows), source.where, directory, recipe.dataset_num_proc)
    try:
        return prepared, check_tally(recipe, prepared.tally, rows)
    except DataError as error:
        others = _readers(recipe, source, dataset, encoder) if prepared.tally.num_bad else []
        if not others:
            raise
        raise DataError(f"{error}. {' or '.join(others)} could read it") from None


def _records(recipe: Recipe, rows: RowEncoder) -> TrainingRecords:
    return TrainingRecords(rows, unpaired=recipe.rl == "kto")


def row_encoder(recipe: Recipe, source: FormattedDataset, encoder: Encoder) -> RowEncoder:
    """The encoder for the rows of one of a recipe's datasets."""
    sequence_len = recipe.sequence_len
    if source.key == "test_datasets" and not recipe.rl:
        sequence_len = recipe.eval_sequence_len or sequence_len
    return RowEncoder(
        formatter=source.formatter,
        encoder=encoder,
        max_length=sequence_len,
        truncate=_excess_policy(recipe) == "truncate",
        seed=_seed(recipe),
        whole_conversations=_rules(recipe).examples_per == "conversation",
    )


def check_tally(recipe: Recipe, tally: RowTally, rows: RowEncoder) -> str:
    """Log the tally of a dataset in one line, and return the line.

    Raises:
        DataError: The recipe does not allow that many bad or long rows.
    """
    line = tally.summary(rows.max_length)
    _log(line, LOG.warning if tally.rows_kept < tally.rows_read else LOG.info)
    rules = _rules(recipe)
    tally.judge(rules.bad_rows, rules.max_bad_share, rows.max_length)
    if _excess_policy(recipe) == "raise" and (tally.too_long or tally.examples_too_long):
        raise DataError(
            f"excess_length_strategy: raise, and {line}. Raise sequence_len, or set excess_length_strategy: drop"
        )
    return line


def _seed(recipe: Recipe) -> int:
    return DEFAULT_SEED if recipe.seed is None else recipe.seed


def _rules(recipe: Recipe) -> DataArgs:
    return (recipe.solar.data if recipe.solar else None) or DataArgs()


def _log(line: str, say: Callable[[str, str], None] = LOG.info) -> None:
    if os.environ.get("RANK", "0") == "0":
        say("%s", line)


def _excess_policy(recipe: Recipe) -> str:
    return (recipe.excess_length_strategy or "drop").lower()


def prepared_directory(recipe: Recipe) -> Path:
    """The folder of the prepared datasets."""
    from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH

    return Path(recipe.dataset_prepared_path or DEFAULT_DATASET_PREPARED_PATH) / "solar_plugins"


def load_rows(recipe: Recipe, source: FormattedDataset, encoder: Encoder) -> Any:
    """The rows: of local files by our own reader, of hubs and cloud storage as Axolotl itself loads them.

    Args:
        recipe: The recipe.
        source: One dataset in one configuration.
        encoder: Used to try other formatters if columns are missing.

    Returns:
        A `datasets.Dataset`; `row_tables.numbered_rows` gives its rows, which have the columns that are needed.

    Raises:
        DataError: There are none, a column is missing, or the dataset has several splits and the recipe names none.
    """
    from axolotl.utils.data.shared import load_dataset_with_config
    from axolotl.utils.dict import DictDefault

    try:
        dataset = (
            load_local(source)
            if is_local(source)
            else load_dataset_with_config(DictDefault(dict(source.entry)), recipe.hf_use_auth_token)
        )
    except SolarError:
        raise
    except Exception as error:
        # The loaders of files, hubs and cloud storage raise errors of any type.
        cause = _innermost(error)
        raise DataError(
            f"{source.where}: cannot be loaded ({type(cause).__name__}: {' '.join(str(cause).split()):.300}); check "
            "path, split, data_files and ds_type, and that the rows are valid"
        ) from error
    if isinstance(dataset, Mapping):
        dataset = _split_of(dataset, source)
    _check_columns(recipe, source, dataset, encoder)
    return dataset


def _innermost(error: BaseException) -> BaseException:
    """The first cause: loaders wrap it in an error without information."""
    while (cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = cause
    return error


def _split_of(dataset: Mapping[str, Any], source: FormattedDataset) -> Any:
    split = source.entry.get("split") or ("train" if source.key == "datasets" else "test")
    if split not in dataset:
        raise DataError(
            f"{source.where}: has no split {split!r}; it has {', '.join(dataset)}. Set split: to one of them"
        )
    return dataset[split]


def _check_columns(recipe: Recipe, source: FormattedDataset, dataset: Any, encoder: Encoder) -> None:
    """Reject a dataset that its formatter cannot read, and suggest formatters that can.

    Raises:
        DataError: A column is missing.
    """
    columns = columns_of(dataset, source.formatter.columns)
    missing = _missing(source.formatter, columns)
    if not missing or not columns:
        return  # Without columns no row can be read; the tally has the reasons.
    others = _readers(recipe, source, dataset, encoder)
    hint = (
        f"{' or '.join(others)} could read it"
        if others
        else f"No registered formatter can read its first {SAMPLE_ROWS} rows; convert them, or write a formatter"
    )
    raise DataError(
        f"{source.where}: has no column {', '.join(missing)}, which type: {TYPE_PREFIX}{source.formatter.name} needs; "
        f"it has {', '.join(columns)}. {hint}"
    )


def _missing(formatter: Formatter, columns: list[str]) -> list[str]:
    return [column for column in formatter.columns if column not in columns]


def _readers(recipe: Recipe, source: FormattedDataset, dataset: Any, encoder: Encoder) -> list[str]:
    """The formatters that can read the first rows under this recipe's rules, each with its kind of training."""
    kinds: tuple[tuple[str, Mapping[str, Formatter]], ...] = (
        ("without rl:", sft_formatters()),
        (f"with rl: {recipe.rl or 'dpo'}", preference_formatters()),
        ("under rl: kto", unpaired_formatters()),
    )
    first = dataset.select(range(min(len(dataset), SAMPLE_ROWS)))
    columns = columns_of(first)
    return [
        f"{TYPE_PREFIX}{name} ({kind})"
        for kind, formatters in kinds
        for name, formatter in formatters.items()
        if not _missing(formatter, columns) and _accepts(recipe, source._replace(formatter=formatter), first, encoder)
    ]


def _accepts(recipe: Recipe, source: FormattedDataset, dataset: Any, encoder: Encoder) -> bool:
    rows = row_encoder(recipe, source, encoder)
    read = TrainingRecords(rows).read_batch(dataset[:], list(range(len(dataset))))
    tally = count_rows(RowTally(source.where, source.formatter.name), *(read[name] for name in TALLY_COLUMNS))
    rules = _rules(recipe)
    try:
        tally.judge(rules.bad_rows, rules.max_bad_share, rows.max_length)
    except DataError:
        return False
    return True
