"""Repositories on the Hub: find, list, download and upload. Every failure becomes a message with a fix.

huggingface_hub does the work, and its cache, token and environment variables apply. What it receives is bounded here:
bytes, requests and time per call, and the names that a server may have it write to.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from solar_plugins.errors import HubError, SolarError
from solar_plugins.logs import logger
from solar_plugins.storage.atomic import write_file
from solar_plugins.storage.untrusted import is_plain_relative_path, leads_out
from solar_plugins.text import format_bytes, printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from tqdm import tqdm

LOG = logger("hub")

type Kind = Literal["model", "dataset"]

RETRIES = 3
WAITS = (1.0, 2.0, 4.0)
"""Seconds before each retry, unless the Hub says how long to wait."""
MAX_WAIT = 60.0
"""The longest wait that a server's ``Retry-After`` can cause, in seconds."""
MAX_SECONDS = 120.0
"""No retry starts later than this after the first attempt."""
RETRIED = (408, 429, 500, 502, 503, 504)
CONNECT_SECONDS = 10.0
UPLOAD_SECONDS = 60.0
"""How long the Hub may take to answer an upload; a commit is checked before it is answered."""
MIN_RATE = 1000
"""Bytes per second on average, after `SLOW_SECONDS`; a body that comes more slowly is given up."""
SLOW_SECONDS = 30.0

MAX_FILES = 10_000
"""Files in a listing. The largest model repositories have some thousands."""
MAX_ANSWER_BYTES = 16_000_000
"""One page of a listing, or one answer of the API."""
MAX_REQUESTS = 60
"""Requests per call: pages of a listing, redirects, resumed downloads."""
COMMIT = re.compile(r"[0-9a-f]{40}")
SAFE_ETAG = re.compile(r'(W/)?"?[A-Za-z0-9][A-Za-z0-9._:+=-]{0,199}"?')
"""ETags become file names in the Hub cache. The Hub's own are hashes."""


class Remote(NamedTuple):
    """A revision of a repository."""

    repo: str
    kind: Kind
    revision: str | None
    """The branch, tag or commit that was asked for; None: the main branch."""
    commit: str
    """40 hexadecimal digits."""
    private: bool | None
    """None: unknown, because the Hub is offline."""
    gated: bool | None


class Description(NamedTuple):
    """What the Hub says about a revision of a repository."""

    remote: Remote
    card: dict[str, Any]
    """The metadata of its card."""
    num_bytes: int | None
    """Of all its files; None if unknown."""


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
    refused: tuple[str, ...]
    """Paths that no file can have, such as ``../x``, made printable. They cannot be downloaded."""
    from_cache: bool
    """Whether these are only the files in the local cache, because the Hub is offline."""


class LastChange(NamedTuple):
    """The commit that last changed a file."""

    commit: str
    date: datetime


class Uploaded(NamedTuple):
    """The result of an upload."""

    url: str
    commit: str
    created: bool
    """Whether the repository was created."""
    private: bool | None


def endpoint() -> str:
    """The Hub's address, without credentials: ``https://huggingface.co``, or what ``HF_ENDPOINT`` says."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE`` forbids network access."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def whoami() -> str:
    """The name of the token's user.

    Raises:
        HubError: There is no valid token, or the Hub cannot be reached.
    """
    with _session("your account") as session:
        return str(session.call("ask who you are", lambda api: api.whoami())["name"])


def find(repo: str, revision: str | None = None, kind: Kind = "model") -> Remote:
    """The commit that a revision names.

    Args:
        repo: ``ORG/NAME``.
        revision: A branch, tag or commit; default: the main branch.
        kind: The kind of repository.

    Raises:
        HubError: It does not exist, may not be read, is not in the offline cache, or the Hub cannot be reached.
    """
    if is_offline():
        return _cached(repo, revision, kind)[0]
    with _session(repo, kind, revision) as session:
        return session.find()


def describe(repo: str, revision: str | None = None, kind: Kind = "model") -> Description:
    """The commit that a revision names, the metadata of its card, and its size. Asks the Hub even if it is offline.

    Args:
        repo: As for `find`.
        revision: As for `find`.
        kind: As for `find`.

    Raises:
        MissingError: It does not exist, or may not be read.
        RevisionError: It has no such revision.
        GatedError: Its conditions were not accepted.
        HubError: The Hub cannot be reached.
    """

    def ask(api: HfApi) -> Description:
        info: Any = api.repo_info(repo, revision=revision, repo_type=kind, files_metadata=True)
        remote = Remote(repo, kind, revision, _commit_id(info.sha), bool(info.private), bool(info.gated))
        num_bytes = sum(file.size for file in info.siblings or [] if file.size)
        return Description(remote, info.card_data.to_dict() if info.card_data else {}, num_bytes or None)

    with _session(repo, kind, revision) as session:
        return session.call("look it up", ask)


def list_files(repo: str, revision: str | None = None, kind: Kind = "model") -> Listing:
    """The files of a repository; offline, those of them that are cached.

    Args:
        repo: As for `find`.
        revision: As for `find`.
        kind: As for `find`.

    Raises:
        HubError: As for `find`; or the listing is not one.
    """
    if is_offline():
        remote, folder = _cached(repo, revision, kind)
        return Listing(remote, tuple(_cached_files(folder)), (), from_cache=True)
    with _session(repo, kind, revision) as session:
        remote = session.find()
        entries = session.call("list its files", lambda api: session.tree(api, remote.commit))
    safe, refused = {}, []
    for entry in entries:
        if entry.path in safe or not is_plain_relative_path(entry.path):
            refused.append(printable(str(entry.path)).replace("\n", "�")[:200])
        else:
            safe[entry.path] = entry
    return Listing(remote, tuple(safe.values()), tuple(refused), from_cache=False)


def last_changes(remote: Remote, paths: Iterable[str]) -> dict[str, LastChange]:
    """The commit that last changed each file; empty if the Hub is offline.

    Raises:
        HubError: As for `find`.
    """
    wanted = sorted(set(paths))
    if is_offline() or not wanted:
        return {}

    def ask(api: HfApi) -> dict[str, LastChange]:
        infos = api.get_paths_info(remote.repo, wanted, revision=remote.commit, repo_type=remote.kind, expand=True)
        changes = ((info.path, getattr(info, "last_commit", None)) for info in infos)
        return {
            path: LastChange(_commit_id(change.oid), change.date)
            for path, change in changes
            if path in wanted and change is not None
        }

    with _session(remote.repo, remote.kind, remote.commit) as session:
        return session.call("ask when its files changed", ask)


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
        folder = _cached(remote.repo, remote.commit, remote.kind)[1]
        return {file.path: folder / file.path for file in files}
    found = {}
    with _session(remote.repo, remote.kind, remote.commit) as session, _progress(remote.repo, total) as bar:
        for file in files:
            found[file.path] = session.download(remote, file)
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
    contents = {path: _own_file(folder, path) for path in sorted(set(files))}
    if is_offline():
        raise HubError(
            f"{repo}: nothing was uploaded, because HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set; expected access "
            f"to {endpoint()}. Unset it and run the same command again"
        )
    num_bytes = sum(map(len, contents.values()))
    with _session(repo, "model", None) as session:
        remote, created = session.find_or_create(private)
        LOG.info("uploading %d files, %s, to %s", len(contents), format_bytes(num_bytes), repo)
        start = time.monotonic()
        commit = session.commit(contents, tuple(delete), message, parent_commit or remote.commit, created)
    seconds = max(time.monotonic() - start, 0.001)
    LOG.info("uploaded %s in %.1f s (%s/s)", format_bytes(num_bytes), seconds, format_bytes(num_bytes / seconds))
    return Uploaded(f"{endpoint()}/{repo}", commit, created, remote.private)


def _own_file(folder: Path, path: str) -> bytes:
    file = folder / path
    if not is_plain_relative_path(path) or not file.is_file() or leads_out(file, folder):
        raise HubError(
            f"{printable(path)}: cannot be uploaded; expected the relative path of a regular file in {folder}. Nothing "
            "was uploaded; remove the file or the link"
        )
    return file.read_bytes()


class MissingError(HubError):
    """The repository does not exist, or the token may not read it."""


class RevisionError(HubError):
    """The repository has no such branch, tag or commit."""


class GatedError(HubError):
    """The conditions of the repository were not accepted with the account of the token."""


class _Transient(Exception):
    """An answer after which the same request may succeed."""

    def __init__(self, status: int, headers: Any) -> None:
        self.status, self.headers = status, headers


class _Hostile(Exception):
    """An answer that no Hub gives."""


class _Session:
    """Calls of huggingface_hub about one repository, bounded and with messages."""

    def __init__(self, repo: str, kind: Kind, revision: str | None) -> None:
        self.repo, self.kind, self.revision = repo, kind, revision
        self.max_bytes = MAX_ANSWER_BYTES
        self.requests_left = 0
        self.expected_commit: str | None = None

    # -- what is asked

    def find(self) -> Remote:
        def ask(api: HfApi) -> Remote:
            fields: Any = ["sha", "private", "gated"]
            info = api.repo_info(self.repo, revision=self.revision, repo_type=self.kind, expand=fields)
            commit = _commit_id(info.sha)
            return Remote(self.repo, self.kind, self.revision, commit, bool(info.private), bool(info.gated))

        return self.call("look it up", ask)

    def tree(self, api: HfApi, commit: str) -> list[RemoteFile]:
        from huggingface_hub import RepoFile

        files: list[RemoteFile] = []
        for entry in api.list_repo_tree(self.repo, recursive=True, revision=commit, repo_type=self.kind):
            if not isinstance(entry, RepoFile):
                continue
            lfs = entry.lfs
            size = lfs.size if lfs else entry.size
            if not isinstance(entry.path, str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
                raise _Hostile(f"a file of the listing has the path {entry.path!r:.100} and {size!r:.100} bytes")
            files.append(RemoteFile(entry.path, size, lfs.sha256 if lfs else None, None if lfs else entry.blob_id))
            if len(files) > MAX_FILES:
                raise _Hostile(f"the listing has more than {MAX_FILES:,} files")
        return files

    def download(self, remote: Remote, file: RemoteFile) -> Path:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(remote.repo, file.path, revision=remote.commit, repo_type=remote.kind)
        if isinstance(cached, str) and _is_the_file(Path(cached), file):
            return Path(cached)
        broken = isinstance(cached, str)
        self.expected_commit = remote.commit

        def get(api: HfApi) -> Path:
            self.max_bytes = max(file.num_bytes, 1)
            try:
                return Path(
                    api.hf_hub_download(
                        remote.repo,
                        file.path,
                        revision=remote.commit,
                        repo_type=remote.kind,
                        force_download=broken,
                    )
                )
            finally:
                self.max_bytes = MAX_ANSWER_BYTES

        path = self.call(f"download {file.path}", get)
        if not _is_the_file(path, file):
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise self.error(f"{file.path} is not the file that the listing describes ({file.num_bytes:,} bytes)")
        return path

    def find_or_create(self, private: bool) -> tuple[Remote, bool]:
        from huggingface_hub.errors import HfHubHTTPError

        def create(api: HfApi) -> bool:
            try:
                api.create_repo(self.repo, private=private, repo_type=self.kind)
            except HfHubHTTPError as error:
                if error.response.status_code != 409:
                    raise
                return False  # Somebody, or the attempt before this one, has created it.
            return True

        try:
            return self.find(), False
        except MissingError:
            created = self.call("create it", create)
            return self.find()._replace(private=private if created else None), created

    def commit(
        self, contents: dict[str, bytes], delete: tuple[str, ...], message: str, parent: str, created: bool
    ) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        def send(api: HfApi) -> str:
            # New ones for each attempt: they remember what the attempt before did.
            operations = [CommitOperationAdd(path, content) for path, content in contents.items()]
            removals = [CommitOperationDelete(path, is_folder=False) for path in delete]
            info = api.create_commit(
                self.repo, [*operations, *removals], commit_message=message, parent_commit=parent, repo_type=self.kind
            )
            return _commit_id(info.oid)

        try:
            return self.call("commit to it", send)
        except HubError as error:
            empty = f" {self.repo} was created and has no file of yours." if created else ""
            raise HubError(f"{error}.{empty} Then run the same command again: it uploads what is missing") from None

    # -- how it is asked

    def call[T](self, doing: str, function: Callable[[HfApi], T]) -> T:
        """Call, and retry what may pass.

        Raises:
            HubError: It failed.
        """
        from huggingface_hub import HfApi

        start = time.monotonic()
        for attempt in range(RETRIES + 1):
            self.requests_left = MAX_REQUESTS
            try:
                return function(HfApi())
            except SolarError:
                raise
            except Exception as error:
                problem, asked = self.passing(doing, error)
            seconds = WAITS[min(attempt, len(WAITS) - 1)] if asked is None else asked
            too_late = time.monotonic() - start + seconds > MAX_SECONDS
            if attempt == RETRIES or seconds > MAX_WAIT or too_late:
                wait = f"; it asked to wait {asked:,.0f} s" if asked is not None else ""
                tries = f"{attempt + 1} attempts" if attempt else "1 attempt"
                raise self.error(f"cannot {doing}: {problem}{wait} (after {tries})")
            LOG.warning("%s: %s; waiting %.0f s (retry %d of %d)", self.name(), problem, seconds, attempt + 1, RETRIES)
            time.sleep(seconds)
        raise AssertionError("unreachable")

    def passing(self, doing: str, error: Exception) -> tuple[str, float | None]:
        """What went wrong, and for how many seconds the Hub asked to wait, if the same call may succeed later.

        Raises:
            HubError: It would fail again.
        """
        from huggingface_hub import errors

        match error:
            case _Transient():
                return _answer(error.status, error.headers), _retry_after(error.headers)
            case _Hostile():
                raise self.error(f"cannot {doing}: {error}") from None
            case errors.HfHubHTTPError():
                raise self.refusal(doing, error) from None
            case errors.HFValidationError():
                raise HubError(f"{self.name()}: not a name on the Hub; expected ORG/NAME, such as org/model") from None
            case errors.LocalTokenNotFoundError():
                raise HubError(f"{self.name()}: no token was found; {_LOG_IN}") from None
            case errors.HTTPError():  # type: ignore[attr-defined]  # the transport's own, see upscaling.hub
                return _connection_problem(error), None
            case errors.LocalEntryNotFoundError():  # huggingface_hub has retried it.
                raise self.error(f"cannot {doing}: {_one_line(error.__cause__ or error)}") from None
            case OSError() if not error.filename:
                raise self.error(f"cannot {doing}: {_one_line(error)}") from None
            case ValueError() | TypeError() | KeyError() | AttributeError() | RecursionError():
                what = f"{type(error).__name__}: {_one_line(error)}"
                raise self.error(f"cannot {doing}: the answer is not in the Hub's form ({what})") from None
        raise error  # Such as an OSError with a file name: the Hub cache cannot be written.

    def name(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return printable(f"{self.repo}{revision}").replace("\n", "�")[:200]

    def error(self, problem: str) -> HubError:
        """The message about an answer that is not the user's fault."""
        return HubError(
            f"{self.name()} on {endpoint()}: {problem}. Check the network and HF_ENDPOINT, and try again later, or "
            "work from a local folder"
        )

    def refusal(self, doing: str, error: Any) -> HubError:
        """The message about an answer with an error status."""
        response = error.response
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        said = _answer(status, response.headers, getattr(error, "server_message", None))
        where = f"{self.name()} on {endpoint()}: cannot {doing}: {said}"
        page = f"{endpoint()}/{self.repo}"
        if code == "GatedRepo":
            return GatedError(
                f"{where}. The repository is gated: accept its conditions at {page} with the account of your token "
                f"({_token_state()}), and try again"
            )
        if code == "RevisionNotFound":
            return RevisionError(
                f"{where}. The repository exists; give a branch, tag or commit that {page}/commits/main shows"
            )
        if code == "RepoNotFound" or (status == 404 and code != "EntryNotFound"):
            return MissingError(
                f"{where}. Either it does not exist, or it is private and your token may not read it "
                f"({_token_state()}). Check the spelling, or {_LOG_IN}"
            )
        fixes = {
            401: f"The token is missing or not valid ({_token_state()}); {_LOG_IN}",
            403: f"The token may not do that ({_token_state()}); {_LOG_IN}, with write access to "
            f"{self.repo.split('/', maxsplit=1)[0]}",
            409: f"Another commit was being made. Nothing was committed; look at {page}/commits/main",
            412: f"Another commit arrived in between. Nothing was committed; look at {page}/commits/main",
            413: "The files are too large for one commit. Nothing was committed; leave out pictures or large files",
        }
        return HubError(f"{where}. {fixes.get(status, 'Check HF_ENDPOINT and the name, or work from a local folder')}")

    # -- what may come back

    def before(self, request: Any) -> None:
        """Bound a request: time limits, and no compressed answer, which could grow a thousandfold."""
        from huggingface_hub import constants

        self.requests_left -= 1
        if self.requests_left < 0:
            raise _Hostile(f"more than {MAX_REQUESTS} requests were needed, because of redirects, pages or cuts")
        request.headers["Accept-Encoding"] = "identity"
        seconds = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        seconds = max(seconds, UPLOAD_SECONDS) if request.method in ("POST", "PUT") else seconds
        request.extensions["timeout"] = dict.fromkeys(("read", "write", "pool"), seconds) | {"connect": CONNECT_SECONDS}

    def after(self, response: Any) -> None:
        """Check the head of an answer, and bound its body."""
        import httpx

        headers = response.headers
        if response.status_code in RETRIED:
            raise _Transient(response.status_code, headers)
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _Hostile("the answer is compressed, although an uncompressed one was asked for")
        commit = headers.get("X-Repo-Commit")
        if commit is not None:
            _commit_id(commit)
            if self.expected_commit and commit != self.expected_commit:
                raise _Hostile(f"the answer is of commit {commit}, not of {self.expected_commit}")
            for etag in (headers.get("X-Linked-Etag"), headers.get("ETag")):
                if etag is not None and not SAFE_ETAG.fullmatch(etag):
                    raise _Hostile(f"the ETag {etag!r:.100} is not the name of a file")
        limit = self.max_bytes if response.status_code < 300 else MAX_ANSWER_BYTES
        length = headers.get("Content-Length", "0")
        if response.request.method != "HEAD" and length.isdigit() and int(length) > limit:
            raise _Hostile(f"the answer has {int(length):,} bytes, more than the expected {limit:,}")
        stream = response.stream

        class Bounded(httpx.SyncByteStream):
            def __iter__(self) -> Iterator[bytes]:
                return _bounded(stream, limit)

            def close(self) -> None:
                stream.close()

        response.stream = Bounded()


_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token of your account's settings (Access Tokens)"


def _bounded(stream: Iterable[bytes], limit: int) -> Iterator[bytes]:
    received, start = 0, time.monotonic()
    for chunk in stream:
        received += len(chunk)
        if received > limit:
            raise _Hostile(f"the answer has more bytes than the expected {limit:,}")
        seconds = time.monotonic() - start
        if seconds > SLOW_SECONDS and received < MIN_RATE * seconds:
            raise _Hostile(f"only {received:,} bytes came in {seconds:.0f} s; expected at least {MIN_RATE:,} a second")
        yield chunk


@contextmanager
def _session(repo: str, kind: Kind = "model", revision: str | None = None) -> Iterator[_Session]:
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    made = _http._GLOBAL_CLIENT_FACTORY  # The site's own, with its proxies and certificates, if there is one.
    session = _Session(repo, kind, revision)

    def client() -> Any:
        new = made()
        hooks = new.event_hooks
        new.event_hooks = {
            "request": [*hooks["request"], session.before],
            "response": [*hooks["response"], session.after],
        }
        return new

    set_client_factory(client)
    try:
        yield session
    finally:
        set_client_factory(made)


@contextmanager
def _progress(repo: str, total: int) -> Iterator[tqdm[Any]]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from tqdm import tqdm

    were_disabled = are_progress_bars_disabled()
    if not were_disabled:
        disable_progress_bars()  # One bar for all files instead of one for each.
    try:
        with tqdm(total=total, desc=repo, unit="B", unit_scale=True, disable=None, leave=False) as bar:
            yield bar
    finally:
        if not were_disabled:
            enable_progress_bars()


def _cached(repo: str, revision: str | None, kind: Kind) -> tuple[Remote, Path]:
    """The folder of a repository in the Hub cache, complete or not."""
    from huggingface_hub import constants, errors, snapshot_download

    try:
        folder = Path(
            snapshot_download(repo, revision=revision, repo_type=kind, local_files_only=True, allow_patterns=[])
        )
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        at = f"@{revision}" if revision else ""
        raise HubError(
            f"{printable(f'{repo}{at}')}: HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, and the Hub cache "
            f"{constants.HF_HUB_CACHE} does not have it; expected a repository that was downloaded before. Unset "
            "it, or give a local folder"
        ) from None
    return Remote(repo, kind, revision, folder.name, None, None), folder


def _remember_revision(remote: Remote) -> None:
    """Note in the cache which commit a branch or tag names, so that it is found there offline."""
    from huggingface_hub import constants

    revision = remote.revision or "main"
    if revision == remote.commit or not is_plain_relative_path(revision):
        return
    repo = Path(constants.HF_HUB_CACHE, f"{remote.kind}s--{remote.repo.replace('/', '--')}")
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


def _commit_id(text: Any) -> str:
    if not isinstance(text, str) or not COMMIT.fullmatch(text):
        raise _Hostile(f"the commit {text!r:.100} is not a hash of 40 hexadecimal digits")
    return text


def _token_state() -> str:
    from huggingface_hub import get_token

    return "a token was sent" if get_token() else "no token was sent"


def _answer(status: int, headers: Any, message: str | None = None) -> str:
    said = _one_line(headers.get("X-Error-Message") or message or "")
    return f"it answered {status}{f' ({said})' if said else ''}"


def _retry_after(headers: Any) -> float | None:
    asked = headers.get("Retry-After", "").strip()
    return float(asked) if asked.isdigit() and len(asked) < 10 else None


def _connection_problem(error: Exception) -> str:
    kinds = {"ConnectError": "no connection", "ConnectTimeout": "no connection", "ReadTimeout": "no answer in time"}
    return f"{kinds.get(type(error).__name__, 'the connection was cut')} ({_one_line(error)})"


def _one_line(value: object) -> str:
    return " ".join(printable(str(value)).split())[:300]
