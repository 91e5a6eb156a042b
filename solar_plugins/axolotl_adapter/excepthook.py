"""Errors of this package end a run as their own paragraph; the stack trace would be Axolotl's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from solar_plugins.errors import SolarError

type ExceptHook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


class ParagraphHook:
    """A `sys.excepthook` that prints a `SolarError` as its text and hands every other error on.

    Args:
        previous: The hook that was installed before.
    """

    def __init__(self, previous: ExceptHook) -> None:
        self.previous = previous

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """What Python calls with the error that ends it."""
        if isinstance(error, SolarError):
            print(f"\nsolar_plugins: {error}\n", file=sys.stderr)
        else:
            self.previous(kind, error, trace)


@contextmanager
def errors_as_paragraphs() -> Iterator[None]:
    """Install `ParagraphHook` before the hook that is there, once and only if the block raises a `SolarError`."""
    try:
        yield
    except SolarError:
        if not isinstance(sys.excepthook, ParagraphHook):
            sys.excepthook = ParagraphHook(sys.excepthook)
        raise
