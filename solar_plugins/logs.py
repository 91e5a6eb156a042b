"""Loggers, which rank logs, and tracebacks for debugging."""

from __future__ import annotations

import logging
import os
import traceback

DEBUG = "SOLAR_PLUGINS_DEBUG"
"""With this environment variable set, errors come with their Python traceback."""


def logger(subject: str) -> logging.Logger:
    """The logger of a subject. Its name starts with ``axolotl``: Axolotl shows INFO only for such loggers."""
    return logging.getLogger(f"axolotl.solar_plugins.{subject}")


def speaks_for_node() -> bool:
    """Whether this rank logs what is the same on all ranks of its node."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def may_speak_while_waiting() -> bool:
    """Whether this rank logs what it waits for: local rank 0 or 1, because rank 0 may be the writer."""
    return os.environ.get("LOCAL_RANK", "0") in ("0", "1")


def debugging() -> bool:
    """Whether ``SOLAR_PLUGINS_DEBUG`` is set, to anything but 0."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


def debug_trace(error: BaseException) -> str:
    """The traceback of an error and of those that led to it, if `debugging`; else an empty string.

    Errors raised ``from None`` are included: they are hidden from users, not from developers.
    """
    traces = list[str]()
    cause: BaseException | None = error
    while cause is not None and debugging():
        traces.insert(0, "".join(traceback.format_exception(cause, chain=False)))
        cause = cause.__cause__ or cause.__context__
    return "\n".join(traces)
