"""Repositories on the Hub: describe, list, download and upload. Every failure becomes a message with a fix.

What a server sends is checked: paths, sizes and hashes of files; `hub_session` bounds bytes, requests and time.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from solar_plugins.errors import HubError
from solar_plugins.logs import logger
from solar_plugins.sharing.hub_session import (
    COMMIT,
    HostileError,
    Kind,
    MissingError,
    Session,
    commit_id,
    endpoint,
    hub_session,
)
from solar_plugins.storage.atomic import write_file
from solar_plugins.storage.untrusted import is_plain_relative_path, leads_out
from solar_plugins.text import format_bytes, printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from tqdm import tqdm

LOG = logger("hub")

MAX_FILES = 10_000
"""Files in a listing. The largest model repositories have some thousands."""


class Remote(NamedTuple):
    """A revision of a repository."""

    repo: str
    revision: str | None
    """The branch, tag or commit that was asked for; None: the main branch."""
    commit: str
    """40 hexadecimal digits."""
    private: bool | None = None
    """None: unknown, because the Hub is offline or the repository is new."""
    gated: bool = False
    card: Mapping[str, Any] = MappingProxyType({})
    """The metadata of its card."""


class RemoteFile(NamedTuple):
    """A file in a listing."""

    path: str
    num_bytes: int
    sha256: str | None = None
    """Of the content, for files in large-file storage."""
    git_hash: str | None = None
    """Git's blob hash of the content, for all other files."""


class Listing(NamedTuple):
    """The files of a revision."""

    remote: Remote
    files: tuple[RemoteFile, ...]
    refused: tuple[str, ...] = ()
    """Paths that no file can have, such as ``../x``, made printable. They cannot be downloaded."""
    from_cache: bool = False
    """Whether these are only the files in the local cache, because the Hub is offline."""


class Uploaded(NamedTuple):
    """The result of an upload."""

    url: str
    commit: str
    private: bool | None


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE`` forbids network access."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def describe(repo: str, revision: str | None = None, kind: Kind = "model") -> Remote:
    """The commit that a revision names, and the metadata of its card. Asks the Hub even if it is offline.

    Args:
        repo: ``ORG/NAME``.
        revision: A branch, tag or commit; default: the main branch.
        kind: The kind of repository.

    Raises:
        MissingError: It does not exist, or may not be read.
        RevisionError: It has no such revision.
        GatedError: Its conditions were not accepted.
        HubError: The Hub cannot be reached.
    """
    with hub_session(repo, kind, revision) as session:
        return _described(session)


def list_files(repo: str, revision: str | None = None) -> Listing:
    """The files of a model repository; offline, those of them that are cached.

    Raises:
        HubError: As for `describe`; or it is not in the offline cache; or the listing is not one.
    """
    if is_offline():
        remote, folder = _cached(repo, revision)
        return Listing(remote, tuple(_cached_files(folder)), from_cache=True)
    with hub_session(repo, "model", revision) as session:
        remote = _described(session)
        entries = session.call("list its files", lambda api: _tree(api, remote))
    safe, refused = dict[str, RemoteFile](), list[str]()
    for entry in entries:
        if entry.path in safe or not is_plain_relative_path(entry.path):
            refused.append(printable(str(entry.path)).replace("\n", "�")[:200])
        else:
            safe[entry.path] = entry
    return Listing(remote, tuple(safe.values()), tuple(refused))


def download(listing: Listing, paths: Iterable[str], max_bytes: int) -> dict[str, Path]:
    """Download files that are not cached, and return where each one is in the Hub cache.

    Sizes and hashes are compared with the listing.

    Args:
        listing: Of the repository.
        paths: Files of ``listing.files``.
        max_bytes: Of all files together.

    Raises:
        HubError: They are larger; a download failed; or a file is not the one that the listing describes.
    """
    remote, known = listing.remote, {file.path: file for file in listing.files}
    files = [known[path] for path in dict.fromkeys(paths)]
    total = sum(file.num_bytes for file in files)
    if total > max_bytes:
        raise HubError(
            f"{remote.repo}: {len(files)} files of {format_bytes(total)} together, expected at most "
            f"{format_bytes(max_bytes)}; download them with `hf download {remote.repo} --revision {remote.commit}`"
        )
    if is_offline():
        folder = _cached(remote.repo, remote.commit)[1]
        return {file.path: folder / file.path for file in files}
    found = {}
    with hub_session(remote.repo, "model", remote.commit) as session, _progress(remote.repo, total) as bar:
        for file in files:
            found[file.path] = _download(session, remote, file)
            bar.update(file.num_bytes)
    _remember_revision(remote)
    return found


def upload(
    repo: str,
    folder: Path,
    files: Iterable[str],
    message: str,
    *,
    private: bool = True,
    parent_commit: str | None = None,
    delete: Iterable[str] = (),
) -> Uploaded:
    """Upload files in one commit: all of them, or none. The repository is created if it does not exist.

    A second call with the same files finds them there and commits nothing.

    Args:
        repo: ``ORG/NAME`` of a model repository.
        folder: The folder of the files.
        files: Their paths in ``folder``, and in the repository.
        message: The title of the commit.
        private: Whether a new repository is private. An existing one stays what it is.
        parent_commit: The commit that the caller has seen; default: the newest one when the upload starts. If another
            commit arrives in between, nothing is committed.
        delete: Files of the repository to delete in the same commit.

    Raises:
        HubError: Nothing was committed, unless the message says that this is unknown.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    contents = {path: _own_file(folder, path) for path in sorted(set(files))}
    if is_offline():
        raise HubError(
            f"{repo}: nothing was uploaded, because HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set; expected access "
            f"to {endpoint()}. Unset it and run the same command again"
        )
    removed = tuple(delete)
    with hub_session(repo) as session:
        remote, created = _found_or_created(session, private)

        def commit(api: HfApi) -> str:
            # New ones for each attempt: they remember what the attempt before did.
            operations = [CommitOperationAdd(path, content) for path, content in contents.items()]
            removals = [CommitOperationDelete(path, is_folder=False) for path in removed]
            parent = parent_commit or remote.commit
            info = api.create_commit(repo, [*operations, *removals], commit_message=message, parent_commit=parent)
            return commit_id(info.oid)

        size = format_bytes(sum(map(len, contents.values())))
        LOG.info("uploading %d files, %s, to %s", len(contents), size, repo)
        start = time.monotonic()
        try:
            committed = session.call("commit to it", commit)
        except HubError as error:
            empty = f" {repo} was created and has no file of yours." if created else ""
            raise HubError(f"{error}.{empty} Then run the same command again: it uploads what is missing") from None
    LOG.info("uploaded %s in %.1f s", size, time.monotonic() - start)
    return Uploaded(f"{endpoint()}/{repo}", committed, remote.private)


def _own_file(folder: Path, path: str) -> bytes:
    file = folder / path
    if not is_plain_relative_path(path) or not file.is_file() or leads_out(file, folder):
        raise HubError(
            f"{printable(path)}: cannot be uploaded; expected the relative path of a regular file in {folder}. Nothing "
            "was uploaded; remove the file or the link"
        )
    return file.read_bytes()


def _described(session: Session) -> Remote:
    def ask(api: HfApi) -> Remote:
        fields: Any = ["sha", "private", "gated", "cardData"]
        info: Any = api.repo_info(session.repo, revision=session.revision, repo_type=session.kind, expand=fields)
        card = info.card_data.to_dict() if info.card_data else {}
        return Remote(session.repo, session.revision, commit_id(info.sha), bool(info.private), bool(info.gated), card)

    return session.call("look it up", ask)


def _tree(api: HfApi, remote: Remote) -> list[RemoteFile]:
    from huggingface_hub import RepoFile

    files: list[RemoteFile] = []
    for entry in api.list_repo_tree(remote.repo, recursive=True, revision=remote.commit):
        if not isinstance(entry, RepoFile):
            continue
        lfs = entry.lfs
        size = lfs.size if lfs else entry.size
        if not isinstance(entry.path, str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise HostileError(f"a file of the listing has the path {entry.path!r:.100} and {size!r:.100} bytes")
        files.append(RemoteFile(entry.path, size, lfs.sha256 if lfs else None, None if lfs else entry.blob_id))
        if len(files) > MAX_FILES:
            raise HostileError(f"the listing has more than {MAX_FILES:,} files")
    return files


def _download(session: Session, remote: Remote, file: RemoteFile) -> Path:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(remote.repo, file.path, revision=remote.commit)
    if isinstance(cached, str) and _is_the_file(Path(cached), file):
        return Path(cached)
    again = isinstance(cached, str)  # A file that is damaged in the cache.

    def get(api: HfApi) -> Path:
        with session.expecting(remote.commit, max(file.num_bytes, 1)):
            return Path(api.hf_hub_download(remote.repo, file.path, revision=remote.commit, force_download=again))

    path = session.call(f"download {file.path}", get)
    if not _is_the_file(path, file):
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise session.error(f"{file.path} is not the file that the listing describes ({file.num_bytes:,} bytes)")
    return path


def _found_or_created(session: Session, private: bool) -> tuple[Remote, bool]:
    from huggingface_hub.errors import HfHubHTTPError

    def create(api: HfApi) -> bool:
        try:
            api.create_repo(session.repo, private=private)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            return False  # Somebody, or the attempt before this one, has created it.
        return True

    try:
        return _described(session), False
    except MissingError:
        created = session.call("create it", create)
        return _described(session)._replace(private=private if created else None), created


@contextmanager
def _progress(repo: str, total: int) -> Iterator[tqdm[Any]]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from tqdm import tqdm

    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()  # One bar for all files instead of one for each.
    try:
        with tqdm(total=total, desc=repo, unit="B", unit_scale=True, disable=were_disabled or None, leave=False) as bar:
            yield bar
    finally:
        if not were_disabled:
            enable_progress_bars()


def _cached(repo: str, revision: str | None) -> tuple[Remote, Path]:
    """The folder of a repository in the Hub cache, complete or not."""
    from huggingface_hub import constants, errors, snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[]))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        at = f"@{revision}" if revision else ""
        raise HubError(
            f"{printable(f'{repo}{at}')}: HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, and the Hub cache "
            f"{constants.HF_HUB_CACHE} does not have it; expected a repository that was downloaded before. Unset "
            "it, or give a local folder"
        ) from None
    return Remote(repo, revision, folder.name), folder


def _remember_revision(remote: Remote) -> None:
    """Note in the cache which commit a branch or tag names, so that it is found there offline."""
    from huggingface_hub import constants

    revision = remote.revision or "main"
    if revision == remote.commit or not is_plain_relative_path(revision):
        return
    repo = Path(constants.HF_HUB_CACHE, f"models--{remote.repo.replace('/', '--')}")
    with suppress(OSError):
        if (repo / "snapshots" / remote.commit).is_dir():
            note = repo / "refs" / revision
            note.parent.mkdir(parents=True, exist_ok=True)
            write_file(note, remote.commit.encode())


def _cached_files(folder: Path) -> Iterator[RemoteFile]:
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if is_plain_relative_path(relative) and path.is_file() and not leads_out(path, folder):
                yield RemoteFile(relative, path.stat().st_size)


def _is_the_file(path: Path, file: RemoteFile) -> bool:
    try:
        content = path.read_bytes() if path.stat().st_size == file.num_bytes else None
    except OSError:
        return False
    if content is None:
        return False
    if file.sha256:
        return hashlib.sha256(content).hexdigest() == file.sha256
    if file.git_hash and COMMIT.fullmatch(file.git_hash):
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == file.git_hash
    return True
