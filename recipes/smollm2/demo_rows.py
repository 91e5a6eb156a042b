"""Splits LLaMA-Factory's sample data into the rows that the recipes in this folder train on and those they hold out.

Every split is by position, so it is the same on every machine. The samples hold some rows twice; one whose prompt is
trained on is not held out. ``prepare.py`` fetches the files and calls this.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SOURCE = "llamafactory==0.9.5"

ARTICLE_FILES = ("wiki_train.jsonl", "wiki_held_out.jsonl", "README.md")
ALIGNMENT_FILES = (
    "instructions_train.jsonl",
    "instructions_held_out.jsonl",
    "pairs_orca.jsonl",
    "pairs_other.jsonl",
    "pairs_held_out.jsonl",
    "README.md",
)

HELD_OUT_ARTICLES = 5
"""Articles 0, 5, 10, .. of the 30 are held out: Anarchism, Achilles, Academy Awards, Alice O'Connor (Ayn Rand),
Anthropology, ASCII. All are long, so none is a page of links or a stub."""

HELD_OUT_CHARACTERS = 2_100
"""A held-out row is the opening of its article, up to here and back to the end of a sentence: at most 493 tokens, so
one row is one sequence of 512, and the six are read in seconds on a CPU."""

HELD_OUT_INSTRUCTIONS = 50
"""Of 999 rows 18 are held out; 13 of them fit the 256 tokens of the recipe and are read in seconds on a CPU."""

HELD_OUT_PAIRS = 6
"""Of 80 and 220 pairs 49 are held out; 13 of them fit the 384 tokens of the recipes."""

ARTICLES_README = f"""# Wikipedia articles

From `data/wiki_demo.txt` in the source package `{SOURCE}` (Apache-2.0): 30 English Wikipedia articles, whose text
is under CC BY-SA. Split by article: every fifth is held out, and its opening is a row of `wiki_held_out.jsonl`; all the
others are whole rows of `wiki_train.jsonl`.
"""

ALIGNMENT_README = f"""# Instructions and preference pairs

From the source package `{SOURCE}`, whose repository is under Apache-2.0. It does not name the origin of these two
samples; by their texts, and by the datasets that its README lists, they come from:

- `data/alpaca_en_demo.json`, 999 rows: Alpaca's instructions with answers by GPT-4 (Alpaca-GPT4), which its authors
  published under CC BY-NC 4.0: **for research, not for commercial use**, nor are the models trained on it.
- `data/dpo_en_demo.json`, 300 pairs: DPO-En-Zh-20k, a selection of Orca, Capybara and UltraFeedback pairs. Several
  models wrote their answers, GPT-4 among them, whose makers' terms may forbid training competing models.

Use what is trained here to see the method, and look at the licences upstream before using it for more.

| file | rows | read by |
|---|---|---|
| `instructions_train.jsonl` | 979 | `solar_plugins.alpaca` |
| `instructions_held_out.jsonl` | 18: every 50th, but for 2 whose prompt is trained on | `solar_plugins.alpaca` |
| `pairs_orca.jsonl` | 66 with Orca's system prompts | `solar_plugins.orca_dpo_pairs` |
| `pairs_other.jsonl` | 183 others, 85 of several turns | `solar_plugins.sharegpt_pairs` |
| `pairs_held_out.jsonl` | 49: every 6th of both kinds, but for 2 likewise | `solar_plugins.sharegpt_pairs` |
"""

Row = Mapping[str, Any]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes one JSON object a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def split_every[T](rows: list[T], step: int) -> tuple[list[T], list[T]]:
    """The rows to train on, and those held out: the first, and every ``step`` after it.

    Example:
        >>> split_every(["a", "b", "c", "d", "e"], 2)
        (['b', 'd'], ['a', 'c', 'e'])
    """
    return [row for index, row in enumerate(rows) if index % step], rows[::step]


def prompt(row: Row) -> Row:
    """What an instruction or a preference pair asks: all but its answers.

    Example:
        >>> prompt({"instruction": "I", "input": "", "output": "O"})
        {'instruction': 'I', 'input': ''}
    """
    return {key: value for key, value in row.items() if key not in ("output", "chosen", "rejected")}


def not_trained_on(held_out: list[Row], train: list[Row]) -> list[Row]:
    """The held-out rows whose prompt no row to train on has.

    Example:
        >>> not_trained_on([{"input": "a"}, {"input": "b", "output": "2"}], [{"input": "b", "output": "3"}])
        [{'input': 'a'}]
    """
    trained = [prompt(row) for row in train]
    return [row for row in held_out if prompt(row) not in trained]


def opening(article: str) -> str:
    """The first sentences of an article, at most ``HELD_OUT_CHARACTERS`` long.

    Example:
        >>> opening("One. Two. Thr")
        'One. Two.'
    """
    start = article[:HELD_OUT_CHARACTERS]
    return start[: start.rfind(". ") + 1]


def write_articles(articles: Path, folder: Path) -> None:
    """Writes ``ARTICLE_FILES`` from ``wiki_demo.txt``. No article gives text to both sets."""
    train, held_out = split_every(articles.read_text(encoding="utf-8").splitlines(), HELD_OUT_ARTICLES)
    write_rows(folder / "wiki_train.jsonl", ({"text": article} for article in train))
    write_rows(folder / "wiki_held_out.jsonl", ({"text": opening(article)} for article in held_out))
    (folder / "README.md").write_text(ARTICLES_README, encoding="utf-8")


def has_system_prompt(pair: Row) -> bool:
    """Whether the prompt starts with a system text. In this sample only Orca's do."""
    return bool(pair["conversations"][0]["from"] == "system")


def orca_columns(pair: Row) -> Row:
    """A pair with a system text and one question, in the columns of Orca's set.

    Example:
        >>> orca_columns(
        ...     {
        ...         "conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}],
        ...         "chosen": {"from": "gpt", "value": "C"},
        ...         "rejected": {"from": "gpt", "value": "R"},
        ...     }
        ... )
        {'system': 'S', 'question': 'Q', 'chosen': 'C', 'rejected': 'R'}
    """
    system, question = pair["conversations"]
    return {
        "system": system["value"],
        "question": question["value"],
        "chosen": pair["chosen"]["value"],
        "rejected": pair["rejected"]["value"],
    }


def write_alignment(instructions: Path, pairs: Path, folder: Path) -> None:
    """Writes ``ALIGNMENT_FILES`` from ``alpaca_en_demo.json`` and ``dpo_en_demo.json``."""
    train, held_out = split_every(json.loads(instructions.read_text(encoding="utf-8")), HELD_OUT_INSTRUCTIONS)
    write_rows(folder / "instructions_train.jsonl", train)
    write_rows(folder / "instructions_held_out.jsonl", not_trained_on(held_out, train))

    all_pairs = json.loads(pairs.read_text(encoding="utf-8"))
    orca, orca_held_out = split_every([pair for pair in all_pairs if has_system_prompt(pair)], HELD_OUT_PAIRS)
    other, other_held_out = split_every([pair for pair in all_pairs if not has_system_prompt(pair)], HELD_OUT_PAIRS)
    write_rows(folder / "pairs_orca.jsonl", map(orca_columns, orca))
    write_rows(folder / "pairs_other.jsonl", other)
    write_rows(folder / "pairs_held_out.jsonl", not_trained_on(orca_held_out + other_held_out, orca + other))
    (folder / "README.md").write_text(ALIGNMENT_README, encoding="utf-8")
