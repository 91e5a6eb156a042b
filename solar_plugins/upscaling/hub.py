"""Models on the hub, and in its local cache."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from solar_plugins.errors import CheckpointError


def fetch(name: str, revision: str | None, files: Iterable[str]) -> Path:
    """Download files of a model that are not cached, and return the directory in the hub cache.

    Args:
        name: A hub id.
        revision: Default: the main branch.
        files: Their paths in the repository. Files that do not exist are skipped.

    Raises:
        CheckpointError: The download failed; or the hub is offline and the cache does not have the model.
    """
    import glob

    from huggingface_hub import constants, errors, snapshot_download

    try:
        # Passed explicitly: for a full commit hash the library accesses the network even with HF_HUB_OFFLINE=1.
        offline = constants.HF_HUB_OFFLINE
        patterns = [glob.escape(file) for file in files]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=offline))
    except errors.HFValidationError as error:
        raise CheckpointError(
            f"base_model: {name!r} is neither a local directory nor a valid hub id ({error}); check the spelling"
        ) from None
    except (
        errors.LocalEntryNotFoundError,
        errors.HfHubHTTPError,
        errors.HTTPError,  # type: ignore[attr-defined]  # the transport's own: httpx's, or httpx2's since version 2
        OSError,
    ) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"base_model: {name!r}{at} is not a local directory and cannot be downloaded from the hub "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}). Check the spelling and the network "
            "(gated models need HF_TOKEN; HF_HUB_OFFLINE=1 allows cached models only), or give a local path"
        ) from None


def repository_files(name: str, revision: str) -> dict[str, int | None] | None:
    """Path and size in bytes of every file of a model on the hub; None if the hub is offline or unreachable."""
    from huggingface_hub import HfApi, RepoFile, constants, errors

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        entries = list(HfApi().list_repo_tree(name, recursive=True, revision=revision))
    except (errors.HfHubHTTPError, errors.HTTPError, OSError):  # type: ignore[attr-defined]  # as above
        return None
    return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
