"""Model cards: README.md with YAML metadata between two lines of ``---``. A card of others is not trusted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from solar_plugins.storage.untrusted import bounded_loader, leads_out
from solar_plugins.text import printable

CARD = "README.md"
MAX_CARD_CHARACTERS = 1_000_000

FENCE = re.compile(r"^---[ \t]*\r?\n", re.M)


def read_card(folder: Path) -> str:
    """The text of a model's card; empty if it has none, or if the card is a link out of its folder.

    Raises:
        OSError: It cannot be read.
    """
    path = folder / CARD
    if not path.is_file() or leads_out(path, folder):
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(MAX_CARD_CHARACTERS)


def split_card(card: str) -> tuple[dict[str, Any], str]:
    r"""The metadata of a card, and its text. Broken metadata counts as none.

    Args:
        card: What is longer than `MAX_CARD_CHARACTERS` is not looked at for metadata.

    Example:
        >>> split_card("---\nlicense: mit\nlanguage: no\n---\n# Name\n")
        ({'license': 'mit', 'language': 'no'}, '# Name\n')
    """
    import yaml  # Imported late, as in `untrusted`.

    parts = FENCE.split(card[:MAX_CARD_CHARACTERS], maxsplit=2)
    if len(parts) < 3 or parts[0].strip():
        return {}, card
    rest = parts[2] + card[MAX_CARD_CHARACTERS:]
    try:
        front = yaml.load(parts[1], Loader=_loader())
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, rest
    return ({str(key): value for key, value in front.items()} if isinstance(front, Mapping) else {}), rest


@cache
def _loader() -> Any:
    """A YAML loader without aliases, which could expand to any size, and for which the language ``no`` is a text."""
    import yaml

    class Loader(bounded_loader()):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("an alias")
            return super().compose_node(parent, index)

    left_out = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in forms if tag not in left_out]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(left_out[0], re.compile("true|false|True|False"), [*"tfTF"])
    return Loader


def plain(text: object) -> str:
    """A text in one line without what Markdown or HTML would act on.

    >>> plain("a|b <script> [x](y)"), plain("datasets[0].path")
    ('a b  script  [x] (y)', 'datasets[0].path')
    """
    return re.sub(r"[<>`*|\n]", " ", printable(str(text))).replace("](", "] (").strip()


def code(text: object) -> str:
    """A text as a code span, also in a table."""
    return "`" + printable(str(text)).replace("`", "'").replace("|", "/").replace("\n", " ") + "`"


def details(title: str, language: str, text: str) -> str:
    """A text that a reader opens with a click."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"<details><summary>{plain(title)}</summary>\n\n{fence}{language}\n{text.strip()}\n{fence}\n\n</details>\n"
