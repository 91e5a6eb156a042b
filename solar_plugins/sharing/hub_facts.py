"""What the Hub or its local cache says about a model or dataset: whether it exists, and its license."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.errors import HubError
from solar_plugins.sharing.hub import describe
from solar_plugins.sharing.hub_session import GatedError, Kind, MissingError, RevisionError
from solar_plugins.storage.cards import CARD, read_card, split_card
from solar_plugins.upscaling.base_model import CONFIG

NON_COMMERCIAL = re.compile(r"(?:^|[-_ ])nc(?:[-_ ]|$)|non-?commercial|research[- ]only", re.IGNORECASE)
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
    license: str | None = None
    """As its card says; empty if its card names none; None if the card is not known."""
    commit: str | None = None


class Hub:
    """Asks about each repository once. After the first failure of the network it asks no more.

    Args:
        offline: Only look into the cache.
    """

    def __init__(self, *, offline: bool) -> None:
        self.offline = offline
        self._why_offline = "the Hub is not asked (offline)" if offline else ""
        self._facts: dict[tuple[str, str | None, Kind], HubFacts] = {}

    def facts(self, name: str, revision: str | None, kind: Kind) -> HubFacts:
        """What is known of a repository at a revision. Never raises for what a user or the network did."""
        key = name, revision, kind
        if key not in self._facts:
            cached = _cached(name, revision, kind)
            is_name = cached is None or cached.exists is not False
            asked = None if self._why_offline or not is_name else self._ask(name, revision, kind)
            self._facts[key] = asked or cached or HubFacts(None, f"not in the Hub cache, and {self._why_offline}")
        return self._facts[key]

    def _ask(self, name: str, revision: str | None, kind: Kind) -> HubFacts | None:
        try:
            found = describe(name, revision, kind)
        except GatedError:
            return HubFacts(True, gated=True)
        except MissingError:
            return HubFacts(False, "the Hub has no such repository, or it is private and not yours")
        except RevisionError:
            return HubFacts(False, f"the repository has no revision {revision!r}")
        except HubError as error:
            self._why_offline = f"the Hub cannot be reached ({error})"
            return None
        return HubFacts(True, gated=found.gated, license=_license(found.card), commit=found.commit)


def _cached(name: str, revision: str | None, kind: Kind) -> HubFacts | None:
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        files = [try_to_load_from_cache(name, file, revision=revision, repo_type=kind) for file in (CARD, CONFIG)]
    except errors.HFValidationError:
        return HubFacts(False, "is not a valid Hub id")
    found = next((Path(file) for file in files if isinstance(file, str)), None)
    return HubFacts(True, license=license_in(found.parent), commit=found.parent.name) if found else None


def license_in(folder: Path) -> str | None:
    """The license that the card in a folder states; empty if it states none, None without a card."""
    try:
        card = read_card(folder)
    except OSError:
        return None
    return _license(split_card(card)[0]) if card else None


def _license(card: Mapping[str, Any]) -> str:
    found = card.get("license")
    if isinstance(found, list):
        found = ", ".join(map(str, found))
    if found in ("other", None) and card.get("license_name"):
        found = card["license_name"]
    return str(found or "").strip()
