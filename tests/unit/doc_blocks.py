"""The fenced examples of a Markdown page, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MARKS = {"gpu", "hub", "network"}
SEPARATORS = {"&&", "||", "|", ";"}


class Block(NamedTuple):
    """A fenced example."""

    page: Path
    line: int
    language: str
    text: str
    needs: frozenset[str]
    """What the comment before it says, such as ``<!-- needs: gpu -->``."""

    def __str__(self) -> str:
        return f"{self.page.parent.name}/{self.page.name}:{self.line}"


class Command(NamedTuple):
    """A command of an example."""

    words: tuple[str, ...]
    output: str | None
    """The file that ``>`` names."""
    expected: tuple[str, ...] = ()
    """Of a console session: the lines after it."""


def blocks_of(page: Path) -> list[Block]:
    """Every fenced example of a page. Directives of the site, ``{name}``, are none."""
    found, opened, before, body = [], None, "", []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if opened is None and (match := re.match(r"(```+|~~~+|:::+)(.*)$", line)):
            opened, body = (number, match[1], match[2].strip()), []
        elif opened is not None and line == opened[1]:
            if not opened[2].startswith("{"):
                mark = re.fullmatch(r"<!-- needs: (.+) -->", before)
                needs = frozenset(mark[1].split(", ")) if mark else frozenset()
                found.append(Block(page, opened[0], opened[2], "\n".join(body), needs))
            opened, before = None, ""
        elif opened is not None:
            body.append(line)
        elif line.strip():
            before = line.strip()
    assert opened is None, f"{page}: a fence is not closed"
    return found


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a ``bash`` example, or of a ``console`` session with what it printed."""
    if block.language == "console":
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            line, *printed = part.rstrip().splitlines()
            (command,) = _commands(shlex.split(line, comments=True))
            yield command._replace(expected=tuple(printed))
        return
    waiting = ""
    for line in block.text.splitlines():
        waiting += line
        try:
            words = shlex.split(waiting, comments=True)
        except ValueError:  # A quotation continues in the next line.
            waiting += "\n"
            continue
        waiting = ""
        yield from _commands(words)
    assert not waiting, f"{block}: a quotation is not closed"


def _commands(words: list[str]) -> Iterator[Command]:
    while words:
        end = next((at for at, word in enumerate(words) if word in SEPARATORS), len(words))
        part, words = words[:end], words[end + 1 :]
        output = part[part.index(">") + 1] if ">" in part else None
        part = part[: part.index(">")] if output else part
        while part and re.match(r"[A-Z_]+=", part[0]):
            part = part[1:]
        if part:
            yield Command(tuple(part), output)
