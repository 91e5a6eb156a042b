"""Text for people: sizes, names, and what a terminal may be given."""

from __future__ import annotations

from collections.abc import Iterable


def format_bytes(num_bytes: float) -> str:
    """A size in decimal units with three figures, such as ``21.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def span(start: int, end: int) -> str:
    """The whole numbers of the half-open range ``[start, end)``.

    >>> span(3, 7), span(3, 4)
    ('3..6', '3')
    """
    return f"{start}..{end - 1}" if end - start > 1 else str(start)


def close_match(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that ``name`` is most likely a misspelling of; None where none is as similar as ``cutoff``.

    >>> close_match("drop_layer", ["drop_layers", "times"])
    'drop_layers'
    """
    import difflib  # Late: only errors need it.

    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def printable(text: str) -> str:
    r"""The text without control characters, which could move the cursor or recolour the terminal; line ends stay.

    Example:
        >>> printable("plain\x1b[31m red")
        'plain�[31m red'
    """
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)


def half_character(text: str) -> str | None:
    r"""The half of a character that a text holds, in words, or None.

    UTF-16 writes an emoji as a pair; programs that cut texts by UTF-16 units leave one of the two. No tokenizer reads
    such a text, and no file can hold it but as an escape in JSON.

    Example:
        >>> half_character("yes \ud83d")
        "'\\ud83d', half of a UTF-16 pair"
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{text[error.start]!r}, half of a UTF-16 pair"
    return None
