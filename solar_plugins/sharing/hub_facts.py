"""What the hub or its local cache says about a model or dataset: whether it exists, and its licence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.errors import HubError, SolarError
from solar_plugins.sharing import hub
from solar_plugins.storage.untrusted import parse_yaml

type RepositoryType = hub.Kind

MAX_CARD_BYTES = 1_000_000

NON_COMMERCIAL = re.compile(r"(?:^|[-_ ])nc(?:[-_ ]|$)|non-?commercial|research[- ]only", re.IGNORECASE)
WITH_CONDITIONS = re.compile(r"^(?:llama[\d.]*|gemma|openrail.*|bigscience-.*|creativeml-.*|deepfloyd.*|other)$")
OPEN = re.compile(
    r"^(?:apache-2\.0|mit|bsd.*|cc0-1\.0|cc-by-[\d.]+|cc-by-sa-[\d.]+|odc-by|pddl|odbl|isc|unlicense|cdla-.*|[al]?gpl.*"
    r"|mpl-2\.0|zlib|artistic-2\.0|wtfpl|ecl-2\.0|afl-3\.0|c-uda|gfdl)$"
)


class HubFacts(NamedTuple):
    """What is known of a repository."""

    exists: bool | None
    """None: not known."""
    reason: str = ""
    """Why it does not exist, or why that is not known."""
    gated: bool = False
    licence: str | None = None
    """As its card says; empty if its card names none; None if the card is not known."""
    commit: str | None = None
    num_bytes: int | None = None
    """Of all its files."""


class Hub:
    """Asks about each repository once. After the first failure of the network it asks no more.

    Args:
        offline: Only look into the cache.
    """

    def __init__(self, *, offline: bool) -> None:
        self.offline = offline
        self._why_offline = "the hub is not asked (offline)" if offline else ""
        self._facts: dict[tuple[str, str | None, RepositoryType], HubFacts] = {}

    def facts(self, name: str, revision: str | None, kind: RepositoryType) -> HubFacts:
        """What is known of a repository at a revision. Never raises for what a user or the network did."""
        key = name, revision, kind
        if key not in self._facts:
            cached = _cached(name, revision, kind)
            is_name = cached is None or cached.exists is not False
            asked = None if self._why_offline or not is_name else self._ask(name, revision, kind)
            self._facts[key] = asked or cached or HubFacts(None, f"not in the hub cache, and {self._why_offline}")
        return self._facts[key]

    def _ask(self, name: str, revision: str | None, kind: RepositoryType) -> HubFacts | None:
        try:
            found = hub.describe(name, revision, kind)
        except hub.GatedError:
            return HubFacts(True, gated=True)
        except hub.MissingError:
            return HubFacts(False, "the hub has no such repository, or it is private and not yours")
        except hub.RevisionError:
            return HubFacts(False, f"the repository has no revision {revision!r}")
        except HubError as error:
            self._why_offline = f"the hub cannot be reached ({error})"
            return None
        remote = found.remote
        return HubFacts(True, "", bool(remote.gated), _licence(found.card), remote.commit, found.num_bytes)


def _cached(name: str, revision: str | None, kind: RepositoryType) -> HubFacts | None:
    from huggingface_hub import errors, try_to_load_from_cache

    def file(path: str) -> Path | None:
        found = try_to_load_from_cache(name, path, revision=revision, repo_type=kind)
        return Path(found) if isinstance(found, str) else None

    try:
        card, config = file("README.md"), file("config.json")
    except errors.HFValidationError:
        return HubFacts(False, "is no valid hub id")
    if card is None and config is None:
        return None
    commit = (card or config or Path()).parent.name
    return HubFacts(True, licence=licence_in_card(card) if card else None, commit=commit)


def licence_in_card(path: Path) -> str | None:
    """The licence in the front matter of a model or dataset card; empty if it has none, None without a card."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CARD_BYTES).decode(errors="replace")
    except OSError:
        return None
    matter = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\n---", text, re.DOTALL)
    if matter is None:
        return ""
    try:
        content = parse_yaml(matter[1], str(path))
    except SolarError:
        return ""
    return _licence(content) if isinstance(content, Mapping) else ""


def _licence(card: Mapping[str, Any]) -> str:
    found = card.get("license")
    if isinstance(found, list):
        found = ", ".join(map(str, found))
    if found in ("other", None) and card.get("license_name"):
        found = card["license_name"]
    return str(found or "").strip()
