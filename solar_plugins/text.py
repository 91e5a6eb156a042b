"""Text for the terminal: sizes, names, and strings that are safe to print."""

from __future__ import annotations

from collections.abc import Iterable


def format_bytes(num_bytes: float) -> str:
    """A size in decimal units with three significant digits, such as ``21.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def span(start: int, end: int) -> str:
    """The integers of the half-open range ``[start, end)``, written inclusively.

    >>> span(3, 7), span(3, 4)
    ('3..6', '3')
    """
    return f"{start}..{end - 1}" if end - start > 1 else str(start)


def counted(count: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "step"), counted(2_000, "step")
    ('1 step', '2,000 steps')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def close_match(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name closest to ``name``, for "did you mean"; None if no similarity reaches ``cutoff``.

    >>> close_match("drop_layer", ["drop_layers", "times"])
    'drop_layers'
    """
    import difflib  # Imported late: only errors need it.

    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def printable(text: str) -> str:
    r"""Replace control characters, which could move the cursor or recolor the terminal. Line breaks are kept.

    Example:
        >>> printable("plain\x1b[31m red")
        'plain�[31m red'
    """
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)


def half_character(text: str) -> str | None:
    r"""Describe the first lone surrogate in a text; None if it has none.

    UTF-16 encodes an emoji as a surrogate pair, and programs that truncate by UTF-16 units leave one half. Tokenizers
    reject such a text, and only a JSON escape can store it in a file.

    Example:
        >>> half_character("yes \ud83d")
        "'\\ud83d', half of a UTF-16 pair"
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{text[error.start]!r}, half of a UTF-16 pair"
    return None
