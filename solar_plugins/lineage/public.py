"""Names and recipes as they may be published: without paths of this machine, and without secrets. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

HUB_ID = re.compile(r"(?P<organisation>[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}")

SECRET_KEY = re.compile(
    r"(?:^|_)(?:hub|hf|auth|access|api|bearer|wandb|write|read)_?token$|^token$|api_?key|secret|passw|credential", re.I
)
"""Keys whose values are never published. ``special_tokens`` and ``eos_token`` are not among them."""
TOKENS: Mapping[str, str] = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "an API key that starts with sk-": r"\bsk-[A-Za-z0-9_-]{20,}",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "a Google API key": r"\bAIza[0-9A-Za-z_-]{35}",
    "a Slack token": r"\bxox[abeprs]-[0-9A-Za-z-]{10,}",
    "an NVIDIA API key": r"\bnvapi-[\w-]{30,}",
    "a Weights & Biases key": r"\bwandb_v\d_[\w-]{30,}|\blocal-[0-9a-f]{40}\b",
    "a token of a web service (JWT)": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{5,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a URL with a password": r"\b[a-z][a-z0-9+.-]*://[^\s/:@'\"${}]*:(?!\$\{)[^\s/@'\"]+@[\w.-]+",
    "a URL with a token": r"://[^\s'\"]*[?&](?:sig|token|access_token|api_key|X-Amz-Signature)=(?!\$)[\w%.-]{16,}",
    "an authorization header": r"\b(?:Bearer|Basic) (?!\$)[\w.~+/-]{20,}=*",
}
"""Regular expressions of tokens that their form gives away, by kind. Sources: the services' own secret scanners."""

TOKEN = re.compile("|".join(f"(?P<t{number}>{pattern})" for number, pattern in enumerate(TOKENS.values())))
"""The group ``t0`` is of the first kind of `TOKENS`, and so on."""
USER_IN_URL = re.compile(r"(?<=://)[^\s/@]+@")
ABSOLUTE = re.compile(r"(?<![\w./:~\\-])(?:~[\w.-]*|[A-Za-z]:|)[/\\](?:[\w.+@=,-]+[/\\])+([\w.+@=,-]*)")
"""An absolute path of at least two parts inside a text; group 1 is the last part."""

MERGED = "merged"
"""The folder in an adapter's that ``axolotl merge-lora`` writes."""

MAX_RECIPE_CHARACTERS = 100_000

NOT_PUBLISHED = frozenset({"axolotl_config_path", "strict", "inference", "merge_lora"})
"""What Axolotl's commands write into a recipe."""


def is_hub_id(name: str, *, organisation: bool = True) -> bool:
    """Whether a text has the form of a hub id.

    Args:
        name: The text.
        organisation: Whether it must have one; without one it is more likely the name of a folder.

    Example:
        >>> is_hub_id("org/name"), is_hub_id("outputs/run/merged"), is_hub_id("./name"), is_hub_id("name")
        (True, False, False, False)
    """
    found = HUB_ID.fullmatch(name)
    has_form = found is not None and "--" not in name and ".." not in name
    return has_form and not (organisation and found is not None and found["organisation"] is None)


def public_name(name: str) -> str:
    """A local path without what only this machine has: relative below the working directory, or its last part.

    >>> public_name("./outputs/sft/"), public_name("/data/me/base"), public_name("~/base"), public_name("../x/base")
    ('outputs/sft', 'base', 'base', 'base')
    """
    text = "".join(character if character.isprintable() else "?" for character in name.strip()).replace("\\", "/")
    path = PurePosixPath(text)
    if path.is_absolute() or text.startswith("~") or ".." in path.parts or re.match(r"[A-Za-z]:", text):
        parts = path.parts[-2:] if path.name == MERGED and len(path.parts) > 2 else path.parts[-1:]
        return ("/".join(parts) if path.name not in ("..", "~", "") else "model")[-300:]
    return str(path)[:300] if str(path) != "." else "model"


def public_text(text: str) -> str:
    """A text with absolute paths reduced to their last part, and without tokens and passwords.

    >>> public_text("--ds /home/me/zero3.json https://me:pw@host/a/b/c hf_0123456789abcdef0123")
    '--ds zero3.json https://host/a/b/c (removed)'
    """
    if "\n" not in text and re.match(r"~/|/[^/\s]+/|[A-Za-z]:[/\\]|\.\./", text) and len(text) < 1000:
        return public_name(text)
    text = TOKEN.sub("(removed)", USER_IN_URL.sub("", text))
    return ABSOLUTE.sub(lambda found: found[1] or "folder", text)


def public_recipe(content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a recipe as plain data that may be published. Keys with secrets and without a value are left out.

    >>> public_recipe({"output_dir": "/data/me/out", "hub_token": "x", "sequence_len": 512, "bf16": None})
    {'output_dir': 'out', 'sequence_len': 512}
    """
    kept = {str(key): value for key, value in content.items() if key not in NOT_PUBLISHED and value is not None}
    return {key: _public(value) for key, value in kept.items() if not SECRET_KEY.search(key)}


def recipe_text(content: Mapping[str, Any]) -> str | None:
    """A recipe as YAML that may be published; None if it is empty or too long for a lineage.

    Comments are not in it, and values are those of the run: command-line overrides count.
    """
    import yaml  # Imported late, as in `storage.untrusted`.

    text = yaml.safe_dump(public_recipe(content), sort_keys=False, allow_unicode=True, width=110) if content else ""
    return text if 0 < len(text) <= MAX_RECIPE_CHARACTERS else None


def _public(value: Any) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return public_text(value)
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, Mapping):
        return public_recipe(value)
    if isinstance(value, Sequence | set | frozenset):
        return [_public(part) for part in value]
    return public_text(str(value))
