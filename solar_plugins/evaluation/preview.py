"""`solar preview`: the first rows of a recipe's datasets as training sees them. Loads a tokenizer but no model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path

from solar_plugins.axolotl_adapter.datasets import expanded, load_rows, row_encoder
from solar_plugins.axolotl_adapter.recipe_checks import FormattedDataset, formatted_datasets
from solar_plugins.data.encoder import Encoder, make_encoder
from solar_plugins.data.formatters.base import PreferenceFormatter, RowError, SFTFormatter
from solar_plugins.data.row_encoder import RowEncoder
from solar_plugins.data.row_files import JSON_NAMES, PARQUET_NAMES, NumberedRow, parsed_rows
from solar_plugins.data.row_tables import numbered_rows
from solar_plugins.errors import ArgsError
from solar_plugins.evaluation.models import load_tokenizer
from solar_plugins.extras import require
from solar_plugins.recipe import Recipe, read_recipe, read_yaml
from solar_plugins.text import printable


def preview(path: Path, num_rows: int, tokenizer_name: str | None = None) -> Iterator[str]:
    """The first rows of each dataset with a formatter of ours: text, loss mask and token counts, or why it is dropped.

    Args:
        path: The recipe.
        num_rows: Rows per dataset.
        tokenizer_name: Directory or hub id; by default the recipe's ``tokenizer_config`` or ``base_model``.

    Raises:
        SolarError: The recipe, the tokenizer or a dataset cannot be used.
    """
    require("solar preview")
    recipe = read_recipe(path)
    sets = [one for found in formatted_datasets(recipe) for one in expanded(found)]
    if not sets:
        raise ArgsError(f"{path}: datasets: no entry has a type: solar_plugins.NAME; expected at least one. Set it")
    name = tokenizer_name or recipe.tokenizer_config or recipe.base.name
    tokenizer = load_tokenizer(name, trust_remote_code=recipe.trusts_code, local_files_only=False)
    tokenizer.add_special_tokens(read_yaml(path).get("special_tokens") or {})
    encoder = make_encoder(tokenizer, name)
    for source in sets:
        yield f"{source.where} as {source.formatter.name}; the loss covers the text in ⟦ ⟧"
        rows = row_encoder(recipe, source, encoder)
        for row in islice(_rows(recipe, source, encoder), num_rows):
            yield from (
                f"\n{row.file} row {row.row_index + 1}{text}".replace("\n ", "\n", 1) for text in _texts(rows, row)
            )


def _rows(recipe: Recipe, source: FormattedDataset, encoder: Encoder) -> Iterator[NumberedRow]:
    file = str(source.entry.get("path"))
    if (
        Path(file).is_file()
        and file.endswith(JSON_NAMES + PARQUET_NAMES)
        and source.entry.get("split") in (None, "train")
    ):
        return parsed_rows(file)  # Starts at once, however long the file is, and without Axolotl.
    return numbered_rows(load_rows(recipe, source, encoder))


def _texts(rows: RowEncoder, numbered: NumberedRow) -> Iterator[str]:
    try:
        if isinstance(numbered.row, RowError):
            raise numbered.row
        if isinstance(rows.formatter, SFTFormatter):
            answers = [("", answer) for answer in rows.conversation(numbered.row)]
        elif isinstance(rows.formatter, PreferenceFormatter):
            pair = rows.pair(numbered.row, numbered.row_index)
            answers = [(", chosen", pair.chosen), (", rejected", pair.rejected)]
        else:
            answer, label = rows.labeled(numbered.row)
            answers = [(", desirable" if label else ", undesirable", answer)]
    except RowError as error:
        yield f": dropped: {printable(str(error))}"
        return
    for kind, answer in answers:
        why = "dropped: longer than" if answer.too_long else "truncated at" if answer.cut else ""
        count = f"{answer.num_tokens} tokens, {sum(label >= 0 for label in answer.tokens.labels)} in the loss"
        notes = [f"{why} sequence_len {rows.max_length}"] * bool(why) + [*answer.notes]
        shown, end, before = "", 0, ""
        for in_loss, run in groupby(answer.tokens.labels, key=lambda label: label >= 0):
            end += len([*run])
            text = str(rows.encoder.tokenizer.decode(answer.tokens.input_ids[:end]))  # A span alone may lose a space.
            shown, before = shown + (f"⟦{text[len(before) :]}⟧" if in_loss else text[len(before) :]), text
        yield f"{kind}: {'; '.join([count, *notes])}\n{printable(shown)}"
