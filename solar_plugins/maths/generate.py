"""Runs a recipe: asks for what the store lacks, then writes the output from the store alone.

The output depends on the recipe, the problems and the stored answers, not on when or in which order answers arrived.
A killed run loses the requests that were under way and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from solar_plugins.endpoints.store import Answer, Store, key_of
from solar_plugins.errors import DataError, SolarError
from solar_plugins.extras import require
from solar_plugins.logs import logger
from solar_plugins.maths.checks import Drop, Reason
from solar_plugins.maths.final_answers import COMPARISON_VERSION, Comparer, Verdict, compared_as_text
from solar_plugins.maths.kinds import Augmenter, Job, Request
from solar_plugins.maths.output import MathsReport, OutputWriter, check_output
from solar_plugins.maths.recipe import MathsArgs, Prompt, read_maths
from solar_plugins.maths.seeds import Seeds, seed_files, short_names
from solar_plugins.storage.atomic import sole_writer, write_directory, write_errors_explained
from solar_plugins.storage.content import content_hashes, stamps

WORKERS_PER_REQUEST = 2
"""Rows under way for each request that may be sent at once: while one is checked, another one's request is sent."""
LOG = logger("maths")


def make_maths(recipe: Path, *, ask: bool = True) -> tuple[MathsReport, MathsArgs]:
    """Generate, check and write the data of a recipe.

    Args:
        recipe: The file.
        ask: False: send no request, write the output from the answers that are stored.

    Returns:
        The report, and the recipe.

    Raises:
        SolarError: The recipe, the problems, the endpoint, the store or the output folder cannot be used. All answers
            so far are stored.
        KeyboardInterrupt: It was interrupted. All answers so far are stored.
    """
    require("solar maths")
    args, prompts = read_maths(recipe)
    key = None
    if ask:
        from solar_plugins.endpoints.client import key_from_environment

        key = key_from_environment(args.endpoint)
    output = Path(args.output)
    files = seed_files(args.seeds)
    check_output(output, args.store_path, files)
    before = stamps(files)
    with write_errors_explained(output, "output", "set output to another folder", DataError):
        output.parent.mkdir(parents=True, exist_ok=True)
        args.store_path.parent.mkdir(parents=True, exist_ok=True)
        with sole_writer(args.store_path.resolve()), sole_writer(output.resolve()):
            run = _Run(args, prompts, files, key, asks=ask)
            report = asyncio.run(run.run())
            if stamps(files) != before:
                raise DataError(f"seeds: {', '.join(files)}: changed while being read; run the command again")
    return report, args


class _Run:
    def __init__(
        self, args: MathsArgs, prompts: dict[str, Prompt], files: list[str], key: str | None, *, asks: bool
    ) -> None:
        self._args, self._prompts, self._files, self._key, self._asks = args, prompts, files, key, asks
        self._seeds = Seeds(args.seeds, files, args.seed)
        self._seeds.check()
        self.total = self._seeds.count * sum(kind.samples for kind in args.kinds.values())

    async def run(self) -> MathsReport:
        with _terminates_as_interrupt():
            async with Store(self._args.store_path) as store, _comparer() as comparer:
                work = _Work(self._args, store, comparer)
                if self._asks:
                    await self._collect(work)
                return await self._write(work)

    def _jobs(self) -> Iterator[Job]:
        """In the order of the output."""
        for seed in self._seeds:
            for kind, options in self._args.kinds.items():
                yield from (Job(seed, kind, sample) for sample in range(options.samples))

    async def _collect(self, work: _Work) -> None:
        """Ask for everything that the store lacks."""
        from solar_plugins.endpoints.client import Endpoint

        work.store.forget_failures()
        endpoint = Endpoint(self._args.endpoint, self._key, work.body)
        asker = _Asker(work, endpoint)
        augmenter = Augmenter(self._args, self._prompts, asker.ask, work.compare)
        jobs, progress = self._jobs(), _Progress(self.total, asker)

        async def work_off() -> None:
            for job in jobs:
                try:
                    await augmenter.row(job)
                    progress.done(accepted=True)
                except Drop as drop:
                    progress.done(accepted=False, asked=drop.reason is not Reason.NOT_ASKED)
                await asyncio.sleep(0)  # Jobs whose answers are all stored never wait otherwise.

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(WORKERS_PER_REQUEST * self._args.endpoint.concurrency, self.total)):
                    group.create_task(work_off())
        except* SolarError as problems:
            raise _first(problems) from None
        finally:
            progress.close(endpoint.retries)
            await endpoint.close()

    async def _write(self, work: _Work) -> MathsReport:
        augmenter = Augmenter(self._args, self._prompts, work.used_answer, work.compare)
        output = Path(self._args.output).resolve()
        hashes = content_hashes(self._files)
        named = {name: hashes[file] for name, file in zip(short_names(self._files), self._files, strict=True)}
        # `fill` of write_directory cannot await comparisons, so the files are written first and then moved.
        writer = OutputWriter(self._args, self._prompts, self._seeds, named, output)
        with writer:
            for job in tqdm(self._jobs(), "Writing rows", self.total, unit="row", **_BAR):
                work.used.clear()
                try:
                    row: Any = await augmenter.row(job)
                except Drop as drop:
                    row = drop
                writer.add(job, row, work.used)
                await asyncio.sleep(0)
            report = writer.finish()
            write_directory(output, writer.move_into, lambda folder: False, replace=True)
        return report


def _first(group: BaseExceptionGroup[SolarError]) -> SolarError:
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    assert isinstance(inner, SolarError)
    return inner


class _Work:
    """What asking and writing share: request bodies, stored answers, comparisons.

    Attributes:
        used: The stored answers of the last job, by key.
    """

    def __init__(self, args: MathsArgs, store: Store, comparer: Comparer) -> None:
        self.args, self.store, self._comparer = args, store, comparer
        sampling = args.sampling
        self.body = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            sampling.max_tokens_key: sampling.max_tokens,
        }
        self.used = dict[bytes, Answer]()

    def key(self, request: Request) -> bytes:
        """The identity of a request: all that its answer depends on except the address."""
        extra = self.args.endpoint.extra
        return key_of([self.args.endpoint.model, self.body, extra, request.prompt, request.seed])

    async def stored(self, request: Request) -> Answer:
        """The stored answer.

        Raises:
            Drop: There is none, or the request failed.
        """
        key = self.key(request)
        answer = self.store.answer(key)
        if answer is None:
            raise Drop(Reason.NOT_ASKED)
        if answer.error:
            raise Drop(Reason.FAILED, answer.error)
        return answer

    async def used_answer(self, request: Request) -> Answer:
        """The stored answer, which is also remembered in `used` until that is cleared.

        Raises:
            Drop: As for `stored`.
        """
        answer = self.used[self.key(request)] = await self.stored(request)
        return answer

    async def compare(self, right: str, found: str) -> Verdict:
        """Compare final answers; a verdict that took algebra is stored, because a time limit is part of it."""
        if len(found) > 2000:
            return Verdict.WRONG
        if (simple := compared_as_text(right, found)) is not None:
            return simple
        key = key_of([COMPARISON_VERSION, right, found])
        if (known := self.store.verdict(key)) is not None:
            return Verdict(known)
        verdict = await self._comparer.compare(right, found)
        await self.store.save_verdict(key, verdict)
        return verdict


class _Asker:
    """Asks the endpoint for what is not stored, within the limits.

    Attributes:
        answered: Requests that were answered in this run.
        tokens: Their tokens.
    """

    def __init__(self, work: _Work, endpoint: Any) -> None:
        self._work, self._endpoint = work, endpoint
        self._limits, self._price = work.args.limits, work.args.price
        self._spent = list(work.store.spent())
        self._reserved = [0, 0, 0]
        self._freed = asyncio.Condition()
        self._slots = asyncio.Semaphore(work.args.endpoint.concurrency)
        self._under_way = dict[bytes, asyncio.Future[None]]()
        self.answered = self.tokens = 0
        self.stopped = False

    async def ask(self, request: Request) -> Answer:
        """The answer, stored.

        Raises:
            Drop: The request failed, or a limit is reached.
        """
        key = self._work.key(request)
        while (other := self._under_way.get(key)) is not None:  # The same request, for an identical row.
            await asyncio.wait([other])
        if self._work.store.answer(key) is not None:
            return await self._work.stored(request)
        self._under_way[key] = done = asyncio.get_running_loop().create_future()
        try:
            # An answer that is not stored yet counts as under way: a killed run loses no more than these.
            async with self._within_limits(request), self._slots:
                answer = await self._endpoint.ask(request.prompt, self._seed_of(request))
                await self._work.store.save_answer(key, answer)
                if not answer.error:
                    self._count(answer)
        finally:
            del self._under_way[key]
            done.set_result(None)
        return await self._work.stored(request)

    def _seed_of(self, request: Request) -> int | None:
        return request.seed if self._work.args.endpoint.send_seed else None

    def _count(self, answer: Answer) -> None:
        self.answered += 1
        self.tokens += answer.prompt_tokens + answer.completion_tokens
        for place, count in enumerate((1, answer.prompt_tokens, answer.completion_tokens)):
            self._spent[place] += count

    @asynccontextmanager
    async def _within_limits(self, request: Request) -> AsyncIterator[None]:
        """Wait until the largest possible answer fits into the limits next to the requests under way.

        Raises:
            Drop: It would not fit without them either.
        """
        # A token has at least one byte; a chat template adds some tokens.
        most = (1, len(request.prompt.encode()) + 100, self._work.args.sampling.max_tokens)
        async with self._freed:
            while not self._fits(most, self._reserved):
                if not any(self._reserved):
                    self.stopped = True
                    raise Drop(Reason.NOT_ASKED)
                await self._freed.wait()
            self._reserve(most, 1)
        try:
            yield
        finally:
            self._reserve(most, -1)
            async with self._freed:
                self._freed.notify_all()

    def _reserve(self, most: tuple[int, int, int], sign: int) -> None:
        self._reserved = [one + sign * other for one, other in zip(self._reserved, most, strict=True)]

    def _fits(self, most: tuple[int, int, int], reserved: list[int]) -> bool:
        requests, prompt, completion = (sum(parts) for parts in zip(self._spent, reserved, most, strict=True))
        limits, price = self._limits, self._price
        return (
            (limits.requests is None or requests <= limits.requests)
            and (limits.tokens is None or prompt + completion <= limits.tokens)
            and (limits.cost is None or price is None or price.of(prompt, completion) <= limits.cost)
        )


_BAR: dict[str, Any] = {"mininterval": 1.0 if sys.stderr.isatty() else 30.0, "dynamic_ncols": True, "smoothing": 0.05}


class _Progress:
    """A bar with rate, remaining time, accepted share and tokens per second."""

    def __init__(self, total: int, asker: _Asker) -> None:
        self._bar = tqdm(desc="Asking", total=total, unit="row", **_BAR)
        self._asker, self._began = asker, time.monotonic()
        self._accepted = self._tried = 0

    def done(self, *, accepted: bool, asked: bool = True) -> None:
        """Count a row."""
        self._accepted += accepted
        self._tried += asked
        self._bar.set_postfix_str(
            f"{self._accepted / max(self._tried, 1):.0%} accepted, "
            f"{self._asker.tokens / self._seconds():,.0f} tokens/s",
            refresh=False,
        )
        self._bar.update()

    def _seconds(self) -> float:
        return max(time.monotonic() - self._began, 1e-3)

    def close(self, retries: int) -> None:
        """Say what was asked."""
        self._bar.close()
        LOG.info(
            "%d requests answered in %.1f s (%.1f per second), %d retries",
            *(self._asker.answered, self._seconds(), self._asker.answered / self._seconds(), retries),
        )
        if self._asker.stopped:
            LOG.warning("limits: reached; the rows that are left were not asked for. Raise the limit to go on")


@asynccontextmanager
async def _comparer() -> AsyncIterator[Comparer]:
    comparer = Comparer(max(1, min(4, (os.cpu_count() or 1) // 2)))
    try:
        yield comparer
    finally:
        await comparer.close()


@contextmanager
def _terminates_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM, which batch systems send, as Ctrl-C: answers that wait are stored."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    try:
        loop.add_signal_handler(signal.SIGTERM, lambda: os.kill(os.getpid(), signal.SIGINT))
    except (NotImplementedError, RuntimeError):  # Not the main thread, as in some tests.
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
