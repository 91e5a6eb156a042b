"""What `solar recipes check` finds: the type, the table and the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from textwrap import wrap
from typing import Any, Literal

from solar_plugins.tables import lines, table
from solar_plugins.text import printable

type Level = Literal["error", "warning", "unknown", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "unknown", "note")
"""Most severe first. An error means that the file cannot be used as it is, or must not be shared."""

STYLES = {"error": "bold red", "warning": "yellow", "unknown": "cyan", "note": "dim"}
TEXT_WIDTH = 76
KEY_WIDTH = 30
MAX_TEXT = 600


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Args:
        level: How severe it is. ``unknown``: it could not be checked here.
        file: The file, relative to the checked folder.
        key: The key in that file, such as ``datasets[0].path``; empty for the entire file.
        text: What was found, and what was expected. Never contains a secret.
        fix: What to do about it.
        kind: The check that found it, one of those in `solar_plugins.sharing.check.KINDS`.
    """

    level: Level
    file: str
    key: str
    text: str
    fix: str
    kind: str = ""


def has_errors(findings: Sequence[Finding]) -> bool:
    """Whether one of the findings is an error."""
    return any(one.level == "error" for one in findings)


def counted(findings: Sequence[Finding]) -> str:
    """The number of findings of each level.

    >>> counted([Finding("note", "a.yml", "", "text", "fix")])
    '0 errors, 0 warnings, 0 unknown, 1 note'
    """
    count = {level: sum(one.level == level for one in findings) for level in LEVELS}
    names = {level: level if level == "unknown" or count[level] == 1 else f"{level}s" for level in LEVELS}
    return ", ".join(f"{count[level]} {names[level]}" for level in LEVELS)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as JSON-ready values."""
    return {
        "passed": not has_errors(findings),
        "counts": {level: sum(one.level == level for one in findings) for level in LEVELS},
        "findings": [asdict(one) for one in findings],
    }


def as_text(findings: Sequence[Finding]) -> str:
    """One table: files in order, in each the most severe finding first, with its fix below it."""
    rows: list[list[str]] = []
    rules = list[int]()
    for file in dict.fromkeys(one.file for one in findings):
        rules += [len(rows)] if rows else []
        rows.append(["", printable(file), ""])
        of_file = [one for one in findings if one.file == file]
        for one in sorted(of_file, key=lambda one: LEVELS.index(one.level)):
            rows += _rows(one)
    drawn = lines(table(["level", "key", "finding, and what to do"], rows, left=(0, 1, 2), rules=rules)) if rows else []
    return "\n".join([*drawn, "", counted(findings)] if drawn else [counted(findings)])


def _rows(one: Finding) -> list[list[str]]:
    keys = wrap(_plain(one.key), KEY_WIDTH) or [""]
    texts = [*wrap(_plain(one.text), TEXT_WIDTH), *(wrap(f"-> {_plain(one.fix)}", TEXT_WIDTH) if one.fix else [])]
    number = max(len(keys), len(texts))
    cells = [column + [""] * (number - len(column)) for column in ([one.level], keys, texts)]
    return [list(row) for row in zip(*cells, strict=True)]


def _plain(text: str) -> str:
    text = " ".join(printable(text).split())
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ..."
