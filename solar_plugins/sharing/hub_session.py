"""Calls of huggingface_hub about one repository: bounded, retried, and with a message for every failure.

huggingface_hub does the work, and its cache, token and environment variables apply. What it receives is bounded here:
bytes, requests and time per call.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from solar_plugins.errors import HubError, SolarError
from solar_plugins.logs import logger
from solar_plugins.text import printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

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

MAX_ANSWER_BYTES = 16_000_000
"""One page of a listing, or one answer of the API."""
MAX_REQUESTS = 60
"""Requests per call: pages of a listing, redirects, resumed downloads."""
COMMIT = re.compile(r"[0-9a-f]{40}")
SAFE_ETAG = re.compile(r'(W/)?"?[A-Za-z0-9][A-Za-z0-9._:+=-]{0,199}"?')
"""ETags become file names in the Hub cache. The Hub's own are hashes."""


def endpoint() -> str:
    """The Hub's address, without credentials: ``https://huggingface.co``, or what ``HF_ENDPOINT`` says."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


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


class HostileError(Exception):
    """An answer that no Hub gives."""


class Session:
    """Calls of huggingface_hub about one repository, bounded and with messages."""

    def __init__(self, repo: str, kind: Kind, revision: str | None) -> None:
        self.repo, self.kind, self.revision = repo, kind, revision
        self._max_bytes = MAX_ANSWER_BYTES
        self._requests_left = 0
        self._commit: str | None = None

    @contextmanager
    def expecting(self, commit: str, max_bytes: int) -> Iterator[None]:
        """Accept only answers about one commit, and bodies of a limited size."""
        self._commit, self._max_bytes = commit, max_bytes
        try:
            yield
        finally:
            self._commit, self._max_bytes = None, MAX_ANSWER_BYTES

    def call[T](self, doing: str, function: Callable[[HfApi], T]) -> T:
        """Call, and retry what may pass.

        Raises:
            HubError: It failed.
        """
        from huggingface_hub import HfApi

        start = time.monotonic()
        for attempt in range(RETRIES + 1):
            self._requests_left = MAX_REQUESTS
            try:
                return function(HfApi())
            except SolarError:
                raise
            except Exception as error:
                problem, asked = self._problem(doing, error)
            seconds = WAITS[min(attempt, len(WAITS) - 1)] if asked is None else asked
            too_late = time.monotonic() - start + seconds > MAX_SECONDS
            if attempt == RETRIES or seconds > MAX_WAIT or too_late:
                wait = f"; it asked to wait {asked:,.0f} s" if asked is not None else ""
                tries = f"{attempt + 1} attempts" if attempt else "1 attempt"
                raise self.error(f"cannot {doing}: {problem}{wait} (after {tries})")
            LOG.warning("%s: %s; waiting %.0f s (retry %d of %d)", self._name(), problem, seconds, attempt + 1, RETRIES)
            time.sleep(seconds)
        raise AssertionError("unreachable")

    def _problem(self, doing: str, error: Exception) -> tuple[str, float | None]:
        """What went wrong, and for how many seconds the Hub asked to wait, if the same call may succeed later.

        Raises:
            HubError: It would fail again.
        """
        from huggingface_hub import errors

        match error:
            case _Transient():
                return _answer(error.status, error.headers), _retry_after(error.headers)
            case HostileError():
                raise self.error(f"cannot {doing}: {error}") from None
            case errors.HfHubHTTPError():
                raise self._refusal(doing, error) from None
            case errors.HFValidationError():
                raise HubError(f"{self._name()}: not a name on the Hub; expected ORG/NAME, such as org/model") from None
            case errors.LocalTokenNotFoundError():
                raise HubError(f"{self._name()}: no token was found; {_LOG_IN}") from None
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

    def _name(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return printable(f"{self.repo}{revision}").replace("\n", "�")[:200]

    def error(self, problem: str) -> HubError:
        """The message about an answer that is not the user's fault."""
        return HubError(
            f"{self._name()} on {endpoint()}: {problem}. Check the network and HF_ENDPOINT, and try again later, or "
            "work from a local folder"
        )

    def _refusal(self, doing: str, error: Any) -> HubError:
        """The message about an answer with an error status."""
        response = error.response
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        said = _answer(status, response.headers, getattr(error, "server_message", None))
        where = f"{self._name()} on {endpoint()}: cannot {doing}: {said}"
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

    def before(self, request: Any) -> None:
        """Bound a request: time limits, and no compressed answer, which could grow a thousandfold."""
        from huggingface_hub import constants

        self._requests_left -= 1
        if self._requests_left < 0:
            raise HostileError(f"more than {MAX_REQUESTS} requests were needed, because of redirects, pages or cuts")
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
            raise HostileError("the answer is compressed, although an uncompressed one was asked for")
        commit = headers.get("X-Repo-Commit")
        if commit is not None:
            commit_id(commit)
            if self._commit and commit != self._commit:
                raise HostileError(f"the answer is of commit {commit}, not of {self._commit}")
            for etag in (headers.get("X-Linked-Etag"), headers.get("ETag")):
                if etag is not None and not SAFE_ETAG.fullmatch(etag):
                    raise HostileError(f"the ETag {etag!r:.100} is not the name of a file")
        limit = self._max_bytes if response.status_code < 300 else MAX_ANSWER_BYTES
        length = headers.get("Content-Length", "0")
        if response.request.method != "HEAD" and length.isdigit() and int(length) > limit:
            raise HostileError(f"the answer has {int(length):,} bytes, more than the expected {limit:,}")
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
            raise HostileError(f"the answer has more bytes than the expected {limit:,}")
        seconds = time.monotonic() - start
        if seconds > SLOW_SECONDS and received < MIN_RATE * seconds:
            raise HostileError(
                f"only {received:,} bytes came in {seconds:.0f} s; expected at least {MIN_RATE:,} a second"
            )
        yield chunk


@contextmanager
def hub_session(repo: str, kind: Kind = "model", revision: str | None = None) -> Iterator[Session]:
    """A session about one repository: while it is open, every request of huggingface_hub in this process is bounded."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    made = _http._GLOBAL_CLIENT_FACTORY  # The site's own, with its proxies and certificates, if there is one.
    session = Session(repo, kind, revision)

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


def commit_id(text: Any) -> str:
    """The hash of a commit.

    Raises:
        HostileError: It is something else, which must not become a path.
    """
    if not isinstance(text, str) or not COMMIT.fullmatch(text):
        raise HostileError(f"the commit {text!r:.100} is not a hash of 40 hexadecimal digits")
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
