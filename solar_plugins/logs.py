"""Where log messages go, and which process of a run says them."""

from __future__ import annotations

import logging
import os


def logger(subject: str) -> logging.Logger:
    """The logger of a subject, under ``axolotl``: Axolotl shows INFO only from loggers whose name starts so."""
    return logging.getLogger(f"axolotl.solar_plugins.{subject}")


def speaks_for_node() -> bool:
    """Whether this rank says what all ranks of its node have to say."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def may_speak_while_waiting() -> bool:
    """Whether this rank says what it waits for: the first of its node, or the second, because the first may write."""
    return os.environ.get("LOCAL_RANK", "0") in ("0", "1")
