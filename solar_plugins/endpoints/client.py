"""A client of OpenAI-compatible endpoints: retries what may pass, and explains what will not.

The official client sends the requests; its own retries are off, because they neither wait for a server that restarts
nor share a rate limit among requests. The key is sent and appears nowhere else.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import openai

from solar_plugins.endpoints.args import ServerArgs
from solar_plugins.endpoints.store import Answer
from solar_plugins.errors import EndpointError
from solar_plugins.logs import logger

FAILURES_IN_A_ROW = 20
"""After this many failed requests without an answer between them, the fault is not in a single request."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts, unless Retry-After says more."""
LONGEST_RETRY_AFTER = 600.0
FIRST_WAIT = 0.5
HEAD_START = 0.3
"""Seconds that the first request is sent before all others."""
LOG = logger("endpoint")


class _Again(Exception):
    """A request that may succeed later.

    Args:
        why: For messages.
        outlasts: Whether it is the server's state, waited for with `ServerArgs.patience`, not this request.
        after: Seconds that the server asks to wait.
        next_address: Whether another address may answer.
    """

    def __init__(self, why: str, *, outlasts: bool = False, after: float = 0.0, next_address: bool = False) -> None:
        super().__init__(why)
        self.why, self.outlasts, self.after, self.next_address = why, outlasts, after, next_address


class _Rejected(Exception):
    """A request that failed for good, while others may succeed."""


def key_from_environment(args: ServerArgs, where: str = "endpoint") -> str | None:
    """The API key; None if no variable is named.

    Args:
        args: How to reach the endpoint.
        where: The key of the file that has ``args``, for messages.

    Raises:
        EndpointError: The variable is not set, or its value cannot be sent.
    """
    if args.key_variable is None:
        return None
    key = os.environ.get(args.key_variable, "").strip()
    if not key:
        raise EndpointError(
            f"{where}.key_variable: the environment variable {args.key_variable} is not set; expected the API key in "
            f"it. Run export {args.key_variable}=..., or remove the line if the endpoint needs no key"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise EndpointError(
            f"{where}.key_variable: the value of {args.key_variable} has characters that a header cannot carry; "
            "expected an API key. Set it again, without quotes"
        )
    return key


class Endpoint:
    """A client of an endpoint; used inside one event loop.

    Args:
        args: How to reach it.
        key: The API key.
        body: Keys that every request has: sampling settings.
        where: The key of the file that has ``args``, for messages.
        advice: What to do when the endpoint cannot be used.
    """

    def __init__(
        self,
        args: ServerArgs,
        key: str | None,
        body: Mapping[str, Any],
        *,
        where: str = "endpoint",
        advice: str = "All answers so far are stored; check the server and the recipe, and run the command again: it "
        "asks only for what is missing",
    ) -> None:
        self._args, self._key, self._body, self._where, self._advice = args, key, dict(body), where, advice
        self._clients = [
            openai.AsyncOpenAI(base_url=url, api_key=key or "none", max_retries=0, timeout=args.timeout)
            for url in args.base_url
        ]
        self._sent, self.retries, self._failures = 0, 0, 0
        self._paused_until = self._last_answer = 0.0
        self._works = False
        self._first: asyncio.Event | None = None

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            await client.close()

    async def ask(self, prompt: str, seed: int | None) -> Answer:
        """Send a prompt to the chat model until it is answered.

        Args:
            prompt: The user message.
            seed: Seed of the request; None sends none.

        Returns:
            The answer; one with an ``error`` if this request cannot be answered.

        Raises:
            EndpointError: No request can be answered: wrong key, model or address, or the server stays away.
        """
        body = {**self._body, **({} if seed is None else {"seed": seed}), **self._args.extra}
        messages: list[Any] = [{"role": "user", "content": prompt}]

        async def send(client: openai.AsyncOpenAI) -> Answer:
            raw = await client.chat.completions.with_raw_response.create(
                model=self._args.model, messages=messages, extra_body=body
            )
            return _parsed(raw.http_response.content, self._hidden)

        try:
            return await self._send_first(send, "chat/completions")
        except _Rejected as rejected:
            return Answer("", "", 0, 0, "", error=str(rejected))

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """The embedding of each text, in order.

        Raises:
            EndpointError: The endpoint rejects the request, or no request can be answered.
        """

        async def send(client: openai.AsyncOpenAI) -> list[list[float]]:
            raw = await client.embeddings.with_raw_response.create(
                model=self._args.model, input=list(texts), encoding_format="float", extra_body=self._args.extra
            )
            return _embeddings(raw.http_response.content, len(texts), self._hidden)

        try:
            return await self._send_first(send, "embeddings")
        except _Rejected as rejected:
            longest = max(map(len, texts))
            raise EndpointError(
                f"{self._where}: {', '.join(self._args.base_url)}: {len(texts)} texts of at most {longest:,} "
                f"characters cannot be embedded: {rejected}. {self._advice}"
            ) from None

    async def _send_first[T](self, send: Callable[[openai.AsyncOpenAI], Awaitable[T]], path: str) -> T:
        if self._first is None:  # A wrong key or address is rejected at once, and costs a single request.
            self._first = asyncio.Event()
            try:
                return await self._repeat(send, path)
            finally:
                self._first.set()
        if not self._first.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._first.wait(), HEAD_START)
        return await self._repeat(send, path)

    async def _repeat[T](self, send: Callable[[openai.AsyncOpenAI], Awaitable[T]], path: str) -> T:
        """Send until there is an answer.

        Raises:
            EndpointError: No request can be answered.
            _Rejected: This one cannot.
        """
        began, attempts, waited_out = time.monotonic(), 0, 0
        place, self._sent = self._sent % len(self._clients), self._sent + 1
        while True:
            await asyncio.sleep(max(0.0, self._paused_until - time.monotonic()))
            try:
                answer = await self._send(send, place, path)
            except _Again as again:
                attempts, waited_out = attempts + (not again.outlasts), waited_out + 1
                if again.outlasts and time.monotonic() - max(began, self._last_answer) > self._args.patience:
                    self._give_up(f"{again.why}, and no answer for {self._args.patience:,.0f} s")
                if attempts > self._args.retries:
                    self._fail(again.why, gives_up=not self._works)
                if again.next_address:
                    place = (place + 1) % len(self._clients)
                self.retries += 1
                await self._wait(again, waited_out)
            else:
                self._failures, self._works, self._last_answer = 0, True, time.monotonic()
                return answer

    async def _wait(self, again: _Again, number: int) -> None:
        """Wait before the next attempt. What the server asks for holds for all requests."""
        if again.after:
            if time.monotonic() + again.after > self._paused_until:
                LOG.info("%s; waiting %.0f s, as the endpoint asks", again.why, again.after)
            self._paused_until = max(self._paused_until, time.monotonic() + again.after)
            return
        if number == 3:
            LOG.warning("%s; trying again", again.why)
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(number - 1, 10))
        await asyncio.sleep(wait * random.uniform(0.5, 1.0))

    def _fail(self, why: str, *, gives_up: bool = False) -> NoReturn:
        """End a request that failed for good.

        Args:
            why: The last problem.
            gives_up: Whether that ends the run.

        Raises:
            EndpointError: It does, or too many requests in a row failed.
            _Rejected: Otherwise.
        """
        self._failures += 1
        if gives_up or self._failures >= FAILURES_IN_A_ROW:
            self._give_up(f"{self._failures} requests in a row failed, the last one with: {why}")
        raise _Rejected(why)

    def _give_up(self, what: str) -> NoReturn:
        raise EndpointError(f"{self._where}: {', '.join(self._args.base_url)}: {what}. {self._advice}")

    async def _send[T](self, send: Callable[[openai.AsyncOpenAI], Awaitable[T]], place: int, path: str) -> T:
        try:
            async with asyncio.timeout(self._args.timeout):
                return await send(self._clients[place])
        except (TimeoutError, openai.APITimeoutError):
            limit = f"{self._args.timeout:g} s ({self._where}.timeout)"
            raise _Again(f"no answer within {limit}", next_address=True) from None
        except openai.APIConnectionError as error:
            cause = self._hidden(str(error.__cause__ or error) or type(error.__cause__).__name__)
            raise _Again(f"the connection failed ({cause})", outlasts=True, next_address=True) from None
        except openai.APIStatusError as error:
            await self._refused(place, path, error)

    async def _refused(self, place: int, path: str, error: openai.APIStatusError) -> NoReturn:
        """What follows from an HTTP status.

        Raises:
            EndpointError: It is the same for every request.
            _Again: It may pass.
            _Rejected: It holds for this request.
        """
        status, url = error.status_code, self._args.base_url[place]
        if status in (401, 403):
            variable = self._args.key_variable
            named = f"the key in {variable} was rejected" if variable else "no key was sent"
            fix = f"set {variable} to a valid key" if variable else "name the variable with the key in it"
            raise EndpointError(
                f"{self._where}.key_variable: {url}: {named} (HTTP {status}); expected a valid key. {fix}"
            )
        if status == 404:
            raise EndpointError(await self._not_found(place, path))
        said = self._hidden(_message_of(error))
        if status == 402 or (status == 429 and "insufficient_quota" in said + str(error.code)):
            raise EndpointError(
                f"{self._where}: {url}: the account has no credit left (HTTP {status}: {said}); top it up"
            )
        if status in (408, 409, 425, 429) or status >= 500:
            after = _retry_after(error.response.headers)
            outlasts = status in (429, 502, 503, 504)
            raise _Again(f"HTTP {status} ({said})", outlasts=outlasts, after=after, next_address=status >= 500)
        self._fail(f"HTTP {status} ({said})")

    async def _not_found(self, place: int, path: str) -> str:
        url, model = self._args.base_url[place], self._args.model
        try:
            async with asyncio.timeout(10):
                raw = await self._clients[place].models.with_raw_response.list()
            served = [str(one["id"]) for one in json.loads(raw.http_response.content)["data"]]
        except Exception:  # Only for the message; whatever is wrong here, the model was not found.
            return (
                f"{self._where}.base_url: {url}: HTTP 404 for {url}/{path}; expected the address of an "
                "OpenAI-compatible server, which usually ends in /v1, and the name of a model that it serves"
            )
        if model in served:
            return f"{self._where}.base_url: {url}: serves {model}, but not {url}/{path} (HTTP 404)"
        names = self._hidden(", ".join(served[:10]))
        return f"{self._where}.model: {model!r} is not served at {url}; expected one of: {names or 'none is served'}"

    def _hidden(self, text: str) -> str:
        """A short text of the endpoint without the key."""
        return _short(text.replace(self._key, "***") if self._key else text)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def _message_of(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        said = inner.get("message") if isinstance(inner, Mapping) else inner
        return str(said or body)
    return str(body or error.response.reason_phrase)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds from ``Retry-After``, which has a number or a date; 0 without one."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER) if seconds == seconds else 0.0


def _parsed(content: bytes, hidden: Callable[[str], str]) -> Answer:
    """The answer in the body of a response.

    Raises:
        _Again: It is not a chat completion.
    """
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        if not isinstance(text, str | None) or not isinstance(refusal, str | None):
            raise TypeError("message.content is not a string")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        said = hidden(content[:200].decode(errors="replace"))
        raise _Again(
            f"the endpoint answered with something else than a chat completion ({error!r:.80}): {said}"
        ) from None
    text, finish = text or "", "refusal" if refusal and not text else choice.get("finish_reason")
    usage = body.get("usage")
    counts = [
        usage.get(name) if isinstance(usage, Mapping) else None for name in ("prompt_tokens", "completion_tokens")
    ]
    prompt_tokens, completion_tokens = (
        count if isinstance(count, int) and 0 <= count < 2**40 else default
        for count, default in zip(counts, (0, len(text) // 4), strict=True)  # About four characters in a token.
    )
    model = str(body.get("model") or "")[:200]
    text, finish, model = map(_storable, (text or refusal or "", str(finish or "")[:50], model))
    return Answer(text, finish, prompt_tokens, completion_tokens, model)


def _embeddings(content: bytes, count: int, hidden: Callable[[str], str]) -> list[list[float]]:
    """The embeddings in the body of a response.

    Raises:
        _Again: It does not have one for each of ``count`` texts.
    """
    try:
        found = {one["index"]: [float(number) for number in one["embedding"]] for one in json.loads(content)["data"]}
        if sorted(found) != list(range(count)):
            raise ValueError(f"{len(found)} embeddings for {count} texts")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = hidden(content[:200].decode(errors="replace"))
        raise _Again(f"the endpoint answered with something else than embeddings ({error!r:.80}): {said}") from None
    return [found[place] for place in range(count)]


def _storable(text: str) -> str:
    """A text without halves of UTF-16 pairs, which cannot be stored."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
