"""Split LLaMA-Factory's sample data into the training and held-out rows of the recipes in this folder.

Splits are by position, so they are the same on every machine. The samples have some duplicates; a row whose prompt is
in the training set is not held out. ``prepare.py`` downloads the files and calls this module.
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
Anthropology, ASCII. All are long articles, not stubs or lists of links."""

HELD_OUT_CHARACTERS = 2_100
"""A held-out row is the opening of its article up to this length, cut at the end of a sentence: at most 493 tokens, so
one row fits one sequence of 512, and evaluating all six takes seconds on a CPU."""

HELD_OUT_INSTRUCTIONS = 50
"""18 of 999 rows are held out; 13 of them fit into the recipe's 256 tokens. Evaluation takes seconds on a CPU."""

HELD_OUT_PAIRS = 6
"""49 of 80 + 220 pairs are held out; 13 of them fit into the recipes' 384 tokens."""

ARTICLES_README = f"""# Wikipedia articles

From `data/wiki_demo.txt` in the source package `{SOURCE}` (Apache-2.0): 30 English Wikipedia articles, whose text
is under CC BY-SA. Every fifth article is held out, and its opening is a row of `wiki_held_out.jsonl`; the others are
rows of `wiki_train.jsonl`, in full.
"""

ALIGNMENT_README = f"""# Instructions and preference pairs

From the source package `{SOURCE}`, whose repository is under Apache-2.0. It does not name the origin of these two
samples; judging by their texts and the datasets that its README lists, they come from:

- `data/alpaca_en_demo.json`, 999 rows: Alpaca's instructions with answers by GPT-4 (Alpaca-GPT4), which its authors
  published under CC BY-NC 4.0: **for research, not for commercial use**; this also holds for models trained on it.
- `data/dpo_en_demo.json`, 300 pairs: DPO-En-Zh-20k, a selection of Orca, Capybara and UltraFeedback pairs. Several
  models wrote their answers, including GPT-4, and their providers' terms may forbid training competing models.

Use the models trained here only to study the method, and check the upstream licenses before you use them for more.

| file | rows | read by |
|---|---|---|
| `instructions_train.jsonl` | 979 | `solar_plugins.alpaca` |
| `instructions_held_out.jsonl` | 18: every 50th, except 2 whose prompt is trained on | `solar_plugins.alpaca` |
| `pairs_orca.jsonl` | 66 with Orca's system prompts | `solar_plugins.orca_dpo_pairs` |
| `pairs_other.jsonl` | 183 others, 85 of them multi-turn | `solar_plugins.sharegpt_pairs` |
| `pairs_held_out.jsonl` | 49: every 6th of both kinds, except 2 for the same reason | `solar_plugins.sharegpt_pairs` |
"""

Row = Mapping[str, Any]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write one JSON object per line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def split_every[T](rows: list[T], step: int) -> tuple[list[T], list[T]]:
    """The training rows, and the held-out rows: the first, and every ``step``-th after it.

    Example:
        >>> split_every(["a", "b", "c", "d", "e"], 2)
        (['b', 'd'], ['a', 'c', 'e'])
    """
    return [row for index, row in enumerate(rows) if index % step], rows[::step]


def prompt(row: Row) -> Row:
    """An instruction or preference pair without its answers.

    Example:
        >>> prompt({"instruction": "I", "input": "", "output": "O"})
        {'instruction': 'I', 'input': ''}
    """
    return {key: value for key, value in row.items() if key not in ("output", "chosen", "rejected")}


def not_trained_on(held_out: list[Row], train: list[Row]) -> list[Row]:
    """The held-out rows whose prompt is not in the training rows.

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
    """Write ``ARTICLE_FILES`` from ``wiki_demo.txt``. No article is in both sets."""
    train, held_out = split_every(articles.read_text(encoding="utf-8").splitlines(), HELD_OUT_ARTICLES)
    write_rows(folder / "wiki_train.jsonl", ({"text": article} for article in train))
    write_rows(folder / "wiki_held_out.jsonl", ({"text": opening(article)} for article in held_out))
    (folder / "README.md").write_text(ARTICLES_README, encoding="utf-8")


def has_system_prompt(pair: Row) -> bool:
    """Whether the prompt starts with a system text. In this sample, only Orca pairs do."""
    return bool(pair["conversations"][0]["from"] == "system")


def orca_columns(pair: Row) -> Row:
    """A pair with a system text and one question, in the columns of Orca DPO pairs.

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
    """Write ``ALIGNMENT_FILES`` from ``alpaca_en_demo.json`` and ``dpo_en_demo.json``."""
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
