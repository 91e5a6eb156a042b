"""Models of the hub and of its cache on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from solar_plugins.errors import CheckpointError


def fetch(name: str, revision: str | None, files: Iterable[str]) -> Path:
    """The folder of the hub's cache that holds these files of a model, fetched now if they are not there.

    Args:
        name: A hub id.
        revision: Default: the main branch.
        files: Their paths in the repository. Those that it does not have are passed over.

    Raises:
        CheckpointError: It cannot be fetched; offline, nothing of it is in the cache.
    """
    import glob

    from huggingface_hub import constants, errors, snapshot_download

    try:
        # Said once more: for a whole commit hash the hub's library asks the network even with HF_HUB_OFFLINE=1.
        offline = constants.HF_HUB_OFFLINE
        patterns = [glob.escape(file) for file in files]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=offline))
    except errors.HFValidationError as error:
        raise CheckpointError(f"base_model: {name!r} is neither a directory here nor a hub id ({error})") from None
    except (
        errors.LocalEntryNotFoundError,
        errors.HfHubHTTPError,
        errors.HTTPError,  # type: ignore[attr-defined]  # the transport's own: httpx's, or httpx2's since version 2
        OSError,
    ) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"base_model: {name!r}{at} is no directory here and cannot be fetched from the hub "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}). Check the spelling and the network "
            "(HF_TOKEN for gated models; with HF_HUB_OFFLINE=1 only what is in the cache is used), or give a local "
            "path"
        ) from None


def repository_files(name: str, revision: str) -> dict[str, int | None] | None:
    """Path and size in bytes of every file of a model on the hub; None offline, or if the hub cannot be asked."""
    from huggingface_hub import HfApi, RepoFile, constants, errors

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        entries = list(HfApi().list_repo_tree(name, recursive=True, revision=revision))
    except (errors.HfHubHTTPError, errors.HTTPError, OSError):  # type: ignore[attr-defined]  # as above
        return None
    return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
