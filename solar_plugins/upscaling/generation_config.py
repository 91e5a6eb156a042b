"""Fix a generation_config.json that transformers can load but not save: a run would fail at its first save.

transformers refuses to save keys that have no effect in the file's mode, such as a temperature without sampling.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.storage.untrusted import read_json_object

GENERATION_CONFIG = "generation_config.json"

SAMPLING: Mapping[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "top_k": 50,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""Keys that only ``do_sample: true`` uses, with the value that is always accepted."""
BEAMS: Mapping[str, Any] = {"early_stopping": False, "length_penalty": 1.0}
"""Keys that only ``num_beams`` above 1 uses, with the value that is always accepted."""
OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")
"""Keys that only ``return_dict_in_generate: true`` uses."""
CACHES = ("cache_implementation", "cache_config")


def unread_keys(config: Mapping[str, Any]) -> list[str]:
    """The keys without effect in a generation config, because of which transformers refuses to save it.

    Source: ``GenerationConfig.validate(strict=True)`` of transformers 5.20. Keys that it also refuses without
    ``strict`` are not listed: such a base cannot be loaded.

    Example:
        >>> unread_keys({"do_sample": False, "temperature": 0.9, "top_k": 50})
        ['temperature']
    """
    neutral: dict[str, Any] = {}
    if config.get("do_sample") is not True:
        neutral |= SAMPLING
    if config.get("num_beams") in (None, 1):
        neutral |= BEAMS
    unread = [
        key
        for key, value in neutral.items()
        if config.get(key) is not None and (config[key] is not value if value is False else config[key] != value)
    ]
    if config.get("return_dict_in_generate") is not True:
        unread += [key for key in OUTPUTS if config.get(key) is True]
    if config.get("use_cache") is False:
        unread += [key for key in CACHES if config.get(key) is not None]
    padding = config.get("pad_token_id")
    return [*unread, *(["pad_token_id"] if isinstance(padding, int) and padding < 0 else [])]


def savable_copy(path: Path) -> bytes | None:
    """The content of a generation_config.json without its `unread_keys`; None if it can be copied unchanged."""
    content = _content(path)
    unread = unread_keys(content)
    if not unread:
        return None
    return (json.dumps({key: value for key, value in content.items() if key not in unread}, indent=2) + "\n").encode()


def warning(path: Path, base_config: Mapping[str, Any]) -> str | None:
    """The warning about a base's generation config, if transformers would refuse to save it.

    Args:
        path: Its generation_config.json, which may not exist.
        base_config: Content of its config.json, which transformers uses if that file does not exist.
    """
    content = _content(path) if path.is_file() else base_config
    unread = ", ".join(f"{key} ({content[key]!r:.80})" for key in unread_keys(content))
    if not unread:
        return None
    why = "without effect (do_sample, num_beams or return_dict_in_generate is off)"
    if path.is_file():
        return (
            f"{GENERATION_CONFIG}: {unread}: {why}. transformers refuses to save such a file, so the first save of a "
            "training run would fail. The upscaled model's file omits them. If you need them, set do_sample: true (or "
            "num_beams, return_dict_in_generate) in the base's file and upscale again"
        )
    return (
        f"config.json: {unread}: {why}. The base has no {GENERATION_CONFIG}, so transformers reads them from here, and "
        "may refuse to save the model. Remove them, or move them to a generation_config.json with do_sample: true"
    )


def _content(path: Path) -> Mapping[str, Any]:
    try:
        return read_json_object(path)
    except CheckpointError:
        return {}  # transformers reports what is wrong with it.
