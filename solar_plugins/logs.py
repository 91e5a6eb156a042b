"""Loggers, and which rank logs."""

from __future__ import annotations

import logging
import os


def logger(subject: str) -> logging.Logger:
    """The logger of a subject. Its name starts with ``axolotl``: Axolotl shows INFO only for such loggers."""
    return logging.getLogger(f"axolotl.solar_plugins.{subject}")


def speaks_for_node() -> bool:
    """Whether this rank logs what is the same on all ranks of its node."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def may_speak_while_waiting() -> bool:
    """Whether this rank logs what it waits for: local rank 0 or 1, because rank 0 may be the writer."""
    return os.environ.get("LOCAL_RANK", "0") in ("0", "1")
