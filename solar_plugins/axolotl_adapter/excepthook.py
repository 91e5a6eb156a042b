"""A run that ends with an error of this package prints its message, without a traceback unless that is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from solar_plugins.errors import SolarError
from solar_plugins.logs import debug_trace

type ExceptHook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


class ParagraphHook:
    """A `sys.excepthook` that prints the message of a `SolarError` and passes on every other error.

    Args:
        previous: The hook that was installed before.
    """

    def __init__(self, previous: ExceptHook) -> None:
        self.previous = previous

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Called by Python with the error that ends the process."""
        if isinstance(error, SolarError):
            print(f"{debug_trace(error)}\nsolar_plugins: {error}\n", file=sys.stderr)
        else:
            self.previous(kind, error, trace)


@contextmanager
def errors_as_paragraphs() -> Iterator[None]:
    """Install `ParagraphHook` in front of the current hook, once, and only if the block raises a `SolarError`."""
    try:
        yield
    except SolarError:
        if not isinstance(sys.excepthook, ParagraphHook):
            sys.excepthook = ParagraphHook(sys.excepthook)
        raise
