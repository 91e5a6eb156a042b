"""The SQLite file with every answer of an endpoint. An answer counts once it is on disk.

Answers are identified by what was asked, so another recipe, another order or another address finds them again. A writer
thread commits all answers that wait, together: one flush of the disk serves many requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

from solar_plugins.errors import DataError

FORMAT_VERSION = 1


class Answer(NamedTuple):
    """A reply of the model, or why there is none.

    Args:
        text: The reply.
        finish: Why the model stopped: ``stop``, ``length``, ``refusal`` ...
        prompt_tokens: Tokens that were read, as the endpoint counts them.
        completion_tokens: Tokens that were generated.
        model: The name under which the endpoint answered.
        error: Why the request failed for good; empty if it did not.
    """

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    model: str
    error: str = ""


class Spent(NamedTuple):
    """What all answers in the store took."""

    requests: int
    prompt_tokens: int
    completion_tokens: int


def key_of(content: Mapping[str, Any] | list[Any]) -> bytes:
    """The identity of a request, or of a comparison."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class Store:
    """The file with the answers; used inside a running event loop, by one process at a time.

    Args:
        path: The file. It is made if it does not exist.

    Raises:
        DataError: It cannot be opened, is damaged, or another version of this package wrote it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._reader = self._connect()
            self._writer = self._connect()
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._waiting: list[tuple[str, tuple[Any, ...], asyncio.Future[None]]] = []
        self._saver: asyncio.Task[None] | None = None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=60)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, FORMAT_VERSION):
            raise sqlite3.DatabaseError(f"user_version is {version}, expected {FORMAT_VERSION}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -500")  # kB
        connection.execute(
            "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, text TEXT, finish TEXT, prompt_tokens INTEGER, "
            "completion_tokens INTEGER, model TEXT, error TEXT) WITHOUT ROWID"
        )
        connection.execute("CREATE TABLE IF NOT EXISTS verdicts (key BLOB PRIMARY KEY, verdict INTEGER) WITHOUT ROWID")
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        return connection

    def _unusable(self, error: Exception) -> DataError:
        return DataError(
            f"store: {self.path}: cannot be used ({' '.join(str(error).split())}); expected a file with answers that "
            "this package wrote, or none, on a local disk with free space (SQLite does not work on "
            "most network file systems). Set store to another file"
        )

    def _one(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        try:
            row: tuple[Any, ...] | None = self._reader.execute(query, values).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from None
        return row

    def answer(self, key: bytes) -> Answer | None:
        """The answer to a request, if it is on disk."""
        columns = ", ".join(Answer._fields)
        row = self._one(f"SELECT {columns} FROM answers WHERE key = ?", key)
        return Answer(*row) if row else None

    def verdict(self, key: bytes) -> int | None:
        """The result of a comparison, if it is on disk."""
        row = self._one("SELECT verdict FROM verdicts WHERE key = ?", key)
        return row[0] if row else None

    def spent(self) -> Spent:
        """What all answers took."""
        row = self._one(
            "SELECT COUNT(*), COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0) FROM answers "
            "WHERE error = ''"
        )
        return Spent(*row) if row else Spent(0, 0, 0)

    def forget_failures(self) -> None:
        """Remove requests that failed, so that they are sent again."""
        try:
            self._writer.execute("DELETE FROM answers WHERE error != ''")
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    async def save_answer(self, key: bytes, answer: Answer) -> None:
        """Return once the answer is on disk."""
        await self._save("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", (key, *answer))

    async def save_verdict(self, key: bytes, verdict: int) -> None:
        """Return once the verdict is on disk."""
        await self._save("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (key, verdict))

    async def _save(self, statement: str, values: tuple[Any, ...]) -> None:
        saved = asyncio.get_running_loop().create_future()
        self._waiting.append((statement, values, saved))
        if self._saver is None or self._saver.done():
            self._saver = asyncio.create_task(self._save_waiting())
        await saved

    async def _save_waiting(self) -> None:
        while self._waiting:
            rows, self._waiting = self._waiting, []
            problem: DataError | None = None
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, rows)
            except sqlite3.Error as error:
                problem = self._unusable(error)
            for _, _, saved in rows:
                if not saved.done():  # A task that was cancelled does not wait any more.
                    saved.set_exception(problem) if problem else saved.set_result(None)

    def _commit(self, rows: Iterable[tuple[str, tuple[Any, ...], object]]) -> None:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            for statement, values, _ in rows:
                self._writer.execute(statement, values)
            self._writer.execute("COMMIT")
        except BaseException:
            self._writer.execute("ROLLBACK")
            raise

    async def __aenter__(self) -> Self:
        """The store itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write what still waits, and close the file."""
        if self._saver is not None:
            await self._saver
        self._thread.shutdown()
        self._writer.close()
        self._reader.close()


class SeenTexts:
    """Which texts have occurred. Kept in a temporary file, so memory does not grow with their number."""

    def __init__(self) -> None:
        self._file = sqlite3.connect("", isolation_level=None)  # A temporary file that SQLite removes.
        self._file.execute("PRAGMA journal_mode = OFF")
        self._file.execute("PRAGMA synchronous = OFF")
        self._file.execute("PRAGMA cache_size = -500")  # kB
        self._file.execute("CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID")

    def is_new(self, *texts: str) -> bool:
        """Whether the texts occur together for the first time. Case and white space do not matter."""
        key = key_of([" ".join(text.split()).casefold() for text in texts])
        return self._file.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1

    def has(self, *texts: str) -> bool:
        """Whether the texts have occurred together."""
        key = key_of([" ".join(text.split()).casefold() for text in texts])
        return self._file.execute("SELECT 1 FROM seen WHERE key = ?", (key,)).fetchone() is not None
