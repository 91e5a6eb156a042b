"""Drops sampled rows whose texts are similar to a benchmark's, by embeddings and optionally by a judge.

N-grams miss rephrased questions. Neighbors by embedding find them, but cannot tell a rephrased question from one of the
same template with other numbers; a judge, which is a chat model, can. Yang et al. 2023 (arXiv:2311.04850) do the same.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from solar_plugins.data.embedders import KEY, Embedder, EndpointEmbedder, LocalEmbedder, model_identity
from solar_plugins.data.mixture_args import DecontaminateArgs, JudgeArgs, SetArgs, SimilarArgs
from solar_plugins.data.ngrams import SHORTEST, Place, words_of
from solar_plugins.data.row_checks import benchmark_texts, texts_in
from solar_plugins.data.row_files import parse_row, read_blocks
from solar_plugins.endpoints.store import Store, key_of
from solar_plugins.errors import DataError, SolarError
from solar_plugins.extras import require

WINDOW_ROWS = 512
WINDOW_CHARACTERS = 2_000_000
"""Rows are compared in windows of this size, so that memory does not grow with their number."""
SCORES_AT_ONCE = 8_000_000
DIGITS = 4
"""Scores are rounded, because batches of another size change the last bits."""
SHOWN_CHARACTERS = 300

JUDGE_PROMPT = (
    "Below are a problem from a test and a text from a training set. Would a model that has memorized the training "
    "text also know the answer to the test problem?\n"
    "Answer yes if both ask for the same thing with the same numbers, names, facts and conditions, even in other words "
    "or in another order, or if the training text contains such a problem among other things. Answer no if only the "
    "subject or the kind of problem is the same, or if a number or a condition that matters to the answer differs.\n"
    "Reply with one word, yes or no.\n\n"
    "Test problem:\n{benchmark}\n\nTraining text:\n{text}"
)
JUDGE_BODY = {"temperature": 0, "max_tokens": 16}
_VERDICT = re.compile(r"\W*(yes|no)\W*", re.IGNORECASE)


class Neighbor(NamedTuple):
    """A benchmark text that is similar to a text."""

    score: float
    """Cosine similarity, rounded to `DIGITS`."""
    place: Place
    text: str


class Neighbors:
    """The embeddings of benchmark texts.

    Args:
        args: The benchmarks.
        embedder: Embeds their texts and those that are compared.
        threshold: The lowest score of a neighbor.

    Raises:
        DataError: A benchmark cannot be read, or no text has at least `SHORTEST` words.
    """

    def __init__(self, args: DecontaminateArgs, embedder: Embedder, threshold: float) -> None:
        import numpy as np
        from tqdm import tqdm

        found = dict.fromkeys(pair for one in args.against for pair in benchmark_texts(one))
        self._texts = [(text, place) for text, place in found if len(words_of(text)) >= SHORTEST]
        self.num_short = len(found) - len(self._texts)
        """Texts with fewer words, which are not compared: the embedding of a few words is similar to too much."""
        if not self._texts:
            raise DataError(
                f"decontaminate.against: none of {len(found):,} texts has at least {SHORTEST} words, so {KEY} has "
                f"nothing to compare; expected questions. Check columns:, or remove {KEY}"
            )
        self._embedder, self._threshold = embedder, threshold
        parts, self._owners = [], list[int]()
        with tqdm(total=len(self._texts), desc="benchmarks: embedding", unit="text", mininterval=0.5) as bar:
            for start in range(0, len(self._texts), WINDOW_ROWS):
                texts = [text for text, _ in self._texts[start : start + WINDOW_ROWS]]
                vectors, owners = embedder.embed(texts)
                parts.append(vectors)
                self._owners += [start + owner for owner in owners]
                bar.update(len(texts))
        self._vectors = np.concatenate(parts)

    def of(self, texts: Sequence[str]) -> list[list[Neighbor]]:
        """For each text its neighbors, the most similar first; a neighbor of several pieces has its best score."""
        import numpy as np

        best: list[dict[int, float]] = [{} for _ in texts]
        vectors, owners = self._embedder.embed(texts)
        step = max(1, SCORES_AT_ONCE // len(self._vectors))
        for start in range(0, len(vectors), step):
            scores = np.round(vectors[start : start + step] @ self._vectors.T, DIGITS)
            for piece, at in zip(*np.nonzero(scores >= np.float32(self._threshold)), strict=True):
                scored, number = best[owners[start + piece]], self._owners[at]
                scored[number] = max(scored.get(number, 0.0), round(float(scores[piece, at]), DIGITS))
        ranked = [sorted(one.items(), key=lambda pair: (-pair[1], pair[0])) for one in best]
        return [[Neighbor(score, self._texts[at][1], self._texts[at][0]) for at, score in one] for one in ranked]


class Judge:
    """A chat model that decides about pairs; its answers are stored, and nothing is asked twice.

    Args:
        args: How to reach it.
        store: The file with its answers.

    Raises:
        SolarError: The key is not set, or the store cannot be used.
    """

    def __init__(self, args: JudgeArgs, store: Path) -> None:
        from solar_plugins.endpoints.client import Endpoint, key_from_environment

        self.args = args
        key = key_from_environment(args, f"{KEY}.judge")
        self._store = Store(store)
        self._endpoint = Endpoint(args, key, JUDGE_BODY, where=f"{KEY}.judge")
        self._slots = asyncio.Semaphore(args.concurrency)

    async def verdict(self, benchmark: str, text: str) -> str:
        """``yes``, ``no``, or ``undecided`` with what was answered instead.

        Raises:
            EndpointError: No request can be answered.
        """
        values = {"benchmark": benchmark, "text": text}
        prompt = re.sub(r"\{(\w+)\}", lambda found: values[found[1]], JUDGE_PROMPT)
        key = key_of([self.args.model, JUDGE_BODY, self.args.extra, prompt])
        answer = self._store.answer(key)
        if answer is None or answer.error:
            async with self._slots:
                answer = await self._endpoint.ask(prompt, None)
                await self._store.save_answer(key, answer)
        if answer.error:
            return f"undecided: the request failed: {answer.error:.200}"
        found = _VERDICT.fullmatch(answer.text)
        if found is None or answer.finish == "length":
            return f"undecided: {answer.text:.200}"
        return found[1].lower()

    async def close(self) -> None:
        """Write what waits, and close the connections."""
        await self._endpoint.close()
        await self._store.__aexit__()


def checked_model(args: SimilarArgs) -> dict[str, Any]:
    """What identifies the embedding model in a report, after the checks that need neither torch nor a request.

    Raises:
        SolarError: A package, the model or an API key is missing.
    """
    if args.endpoint or args.judge:
        require(f"{KEY} with an endpoint or a judge")
        from solar_plugins.endpoints.client import key_from_environment

        for name, server in (("endpoint", args.endpoint), ("judge", args.judge)):
            if server is not None:
                key_from_environment(server, f"{KEY}.{name}")
    if args.model is not None:
        require(KEY)
    return model_identity(args)


@contextmanager
def _first_problem() -> Iterator[None]:
    """Raise the first error of concurrent requests alone."""
    try:
        yield
    except* SolarError as problems:
        inner: BaseException = problems
        while isinstance(inner, BaseExceptionGroup):
            inner = inner.exceptions[0]
        problem = inner
    else:
        return
    raise problem from None


class DroppedRow(NamedTuple):
    """A row that is dropped: its index among the lines of the dataset, and its record for ``dropped.jsonl``."""

    at: int
    record: dict[str, Any]


class _Row(NamedTuple):
    at: int
    path: str
    number: int
    texts: list[tuple[str, str]]
    """Column and text."""


def _windows(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    window, characters = list[_Row](), 0
    for row in rows:
        window.append(row)
        characters += sum(len(text) for _, text in row.texts)
        if len(window) >= WINDOW_ROWS or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


class SimilarRows:
    """Finds sampled rows that are similar to benchmark texts; a context manager.

    Args:
        args: The benchmarks and the options.
        store: Where the judge's answers are kept unless the options name a file.

    Raises:
        SolarError: The model, the endpoint, a benchmark or the store cannot be used.
    """

    def __init__(self, args: DecontaminateArgs, store: Path) -> None:
        assert args.similar is not None
        self._args: SimilarArgs = args.similar
        self.identity = model_identity(self._args)
        self._checked: dict[str, bytearray] = {}
        self.num_checked, self.matches, self.judged = 0, Counter[str](), Counter[str]()
        self._runner = asyncio.Runner()
        self._judge: Judge | None = None
        self._embedder: LocalEmbedder | EndpointEmbedder | None = None
        try:
            if (judge := self._args.judge) is not None:
                self._judge = Judge(judge, Path(judge.store) if judge.store else store)
            if (endpoint := self._args.endpoint) is not None:
                self._embedder = EndpointEmbedder(endpoint, self._args.batch, self._runner)
            else:
                assert self._args.model is not None
                self._embedder = LocalEmbedder(self._args.model, self._args.batch)
            with _first_problem():
                self._neighbors = Neighbors(args, self._embedder, self._args.lowest)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        """The object itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store and the connections."""
        self._close()

    def _close(self) -> None:
        if self._judge is not None:
            self._runner.run(self._judge.close())
        if isinstance(self._embedder, EndpointEmbedder):
            self._runner.run(self._embedder.close())
        self._runner.close()

    def report(self) -> dict[str, Any]:
        """What was compared, for the mixture's report."""
        return {
            "model": self.identity,
            "rows_compared": self.num_checked,
            "short_benchmark_texts": self._neighbors.num_short,
            "matches": dict(self.matches),
            "judged": dict(self.judged) if self._judge else None,
        }

    def dropped(self, name: str, args: SetArgs, chosen: bytearray) -> Iterator[DroppedRow]:
        """Compare the rows of a dataset that are sampled and were not compared before.

        Args:
            name: The dataset's name.
            args: Its files and columns.
            chosen: A byte for each line: 1 if the row is sampled.
        """
        from tqdm import tqdm

        checked = self._checked.setdefault(name, bytearray(len(chosen)))
        total = sum(take and not seen for take, seen in zip(chosen, checked, strict=True))
        if not total:
            return
        self.num_checked += total
        with tqdm(total=total, desc=f"{name}: comparing", unit="row", mininterval=0.5) as bar, _first_problem():
            for window in _windows(self._rows(args, chosen, checked)):
                yield from self._compare(name, window)
                bar.update(len(window))

    def _rows(self, args: SetArgs, chosen: bytearray, checked: bytearray) -> Iterator[_Row]:
        columns = [one for one in args.text_columns if self._args.columns is None or one in self._args.columns]
        at = 0
        for path in args.path:
            for block in read_blocks(path, wanted=columns):
                taken = chosen[at : at + len(block.lines)]
                for offset, (line, take) in enumerate(zip(block.lines, taken, strict=False)):
                    if take and not checked[at + offset]:
                        checked[at + offset] = 1
                        row = parse_row(line)
                        texts = [(column, text) for column in columns for text in texts_in(row[column]) if text.strip()]
                        yield _Row(at + offset, path, block.first_row + offset, texts)
                at += len(block.lines)

    def _compare(self, name: str, window: list[_Row]) -> Iterator[DroppedRow]:
        texts = list(dict.fromkeys(text for row in window for _, text in row.texts))
        if not texts:
            return
        neighbors = dict(zip(texts, self._neighbors.of(texts), strict=True))
        found = [
            sorted(
                ((one, column, text) for column, text in row.texts for one in neighbors[text]),
                key=lambda pair: -pair[0].score,
            )
            for row in window
        ]
        limit = self._judge.args.neighbors if self._judge else 1
        pairs = [list({pair[0].place: pair for pair in reversed(one)}.values())[::-1][:limit] for one in found]
        for row, decided in zip(window, self._decide(pairs), strict=True):
            if decided is None:
                continue
            (neighbor, column, text), verdict = decided
            self.matches[neighbor.place.file] += 1
            record = {
                "set": name,
                "file": row.path,
                "row": row.number,
                "reason": "similar",
                "column": column,
                "value": text[:SHOWN_CHARACTERS],
                "benchmark_file": neighbor.place.file,
                "benchmark_row": neighbor.place.row,
                "benchmark_text": neighbor.text[:SHOWN_CHARACTERS],
                "score": neighbor.score,
            }
            yield DroppedRow(row.at, record | ({"judge": verdict} if verdict else {}))

    def _decide[T: tuple[Neighbor, str, str]](self, rows: list[list[T]]) -> list[tuple[T, str] | None]:
        """For each row the pair that it is dropped for, and the judge's verdict; None if it is kept."""
        judge = self._judge
        if judge is None:
            return [(pairs[0], "") if pairs else None for pairs in rows]

        async def decide(pairs: list[T]) -> tuple[T, str] | None:
            for pair in pairs:
                verdict = await judge.verdict(pair[0].text, pair[2])
                self.judged[verdict.partition(":")[0]] += 1
                if verdict != "no":
                    return pair, verdict
            return None

        async def decide_all() -> list[tuple[T, str] | None]:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(decide(pairs)) for pairs in rows]
            return [task.result() for task in tasks]

        return self._runner.run(decide_all())
