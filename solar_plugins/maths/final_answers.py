"""Final answers: found in a solution, and compared. Hard comparisons run in processes that can be killed."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from contextlib import suppress
from enum import IntEnum
from fractions import Fraction

from solar_plugins.errors import SolarError

COMPARISON_SECONDS = 12.0
"""After this time a comparison is ended with its process. `comparer` has limits of its own below this one."""
COMPARISON_VERSION = 1
"""Raise it when the same two answers would be compared otherwise, so that stored verdicts are not reused."""


class Verdict(IntEnum):
    """The result of a comparison."""

    WRONG = 0
    RIGHT = 1
    UNCLEAR = 2
    """It took too long or too much memory."""


_BOXED = re.compile(r"\\(?:boxed|fbox)\b\s*")
_PHRASE = re.compile(
    r"\banswer(?:\s+to\s+[^.\n]{0,80}?)?\s*(?:is|:|=)\s*:?\s*(?P<said>\S[^\n]*)|^#{4}[ \t]*(?P<marked>\S[^\n]*)",
    re.IGNORECASE | re.MULTILINE,
)


def final_answer(solution: str) -> str | None:
    r"""The final answer of a solution: the last of ``\boxed{...}``, "the answer is ..." and ``#### ...``.

    Example:
        >>> final_answer(r"So $x = \boxed{\frac{1}{2}}$."), final_answer("The answer is: 12 apples.")
        ('\\frac{1}{2}', '12 apples')
    """
    found = _final(solution)
    return found[1] if found else None


def reasoning(solution: str) -> str:
    """What a solution says before its final answer.

    >>> reasoning("2 and 3 make 5. The answer is: 5"), reasoning("The answer is 5.")
    ('2 and 3 make 5. The ', 'The ')
    """
    found = _final(solution)
    return solution[: found[0]] if found else solution


def _final(solution: str) -> tuple[int, str] | None:
    """Position and text of the final answer."""
    phrase = max(_PHRASE.finditer(solution), key=lambda found: found.start(), default=None)
    boxed = _last_boxed(solution)
    if phrase is not None and (boxed is None or boxed[0] < phrase.start()):
        boxed = phrase.start(), phrase["said"] or phrase["marked"]
    answer = _bare(boxed[1]) if boxed else ""
    return (boxed[0], answer) if boxed and answer else None


def _last_boxed(text: str) -> tuple[int, str] | None:
    r"""Position and content of the last ``\boxed`` whose braces are balanced."""
    for found in reversed(list(_BOXED.finditer(text))):
        rest, depth = text[found.end() :], 0
        if not rest.startswith("{"):
            return found.start(), rest.split("$")[0].split("\n")[0][:1]
        for place, character in enumerate(rest):
            escaped = place > 0 and rest[place - 1] == "\\"
            depth += 0 if escaped else {"{": 1, "}": -1}.get(character, 0)
            if depth == 0:
                return found.start(), rest[1:place]
    return None


def _bare(answer: str) -> str:
    """An answer without what surrounds it: dollar signs, bold type, white space, a final period."""
    before = None
    while before != answer:
        before, answer = answer, answer.strip().removesuffix(".").strip("$*` \t:")
        for start, end in ((r"\(", r"\)"), (r"\[", r"\]"), ('"', '"')):
            if answer.startswith(start) and answer.endswith(end) and len(answer) > len(start):
                answer = answer.removeprefix(start).removesuffix(end)
        if boxed := _last_boxed(answer) if answer.startswith((r"\boxed", r"\fbox")) else None:
            answer = boxed[1]
    return answer


_NUMBER = re.compile(r"([-+]?)(\d+|\d{1,3}(?:,\d{3})+)(\.\d+)?")
_FRACTION = re.compile(r"([-+]?)\\[dt]?frac(?:\{(\d+)\}\{(\d+)\}|(\d)(\d))|([-+]?)(\d+)/(\d+)")
_SPACING = re.compile(r"\\[!,;: ]|\\left|\\right|\s+|\\q?quad")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"\(?[^\W\d_]{3,}(?:[ '-][^\W\d_]+)*\)?")


def plain_number(answer: str) -> Fraction | None:
    r"""The value of a number or fraction that is written out; None for anything else.

    >>> plain_number("1,250.50"), plain_number(r"-\frac{3}{6}"), plain_number("3 cm")
    (Fraction(2501, 2), Fraction(-1, 2), None)
    """
    written = _SPACING.sub("", answer)
    if len(written) > 100:
        return None
    if found := _NUMBER.fullmatch(written):
        return Fraction(found[0].replace(",", ""))
    if found := _FRACTION.fullmatch(written):
        top, bottom = found[2] or found[4] or found[7], found[3] or found[5] or found[8]
        value = Fraction(int(top), int(bottom)) if int(bottom) else None
        return -value if value is not None and "-" in (found[1] or found[6] or "") else value
    return None


def compared_as_text(gold: str, answer: str) -> Verdict | None:
    r"""The verdict if it needs no algebra: equal texts, two plain numbers, or words. None if it does.

    Words are compared as text only: algebra would read *listen* and *silent* as the same product of letters.

    Example:
        >>> compared_as_text("0.5", r"\frac12").name, compared_as_text("listen", "silent").name
        ('RIGHT', 'WRONG')
    """
    texts = [_SPACING.sub(" ", _TEXT.sub(r"\1", one)).strip().casefold() for one in (gold, answer)]
    if texts[0].replace(" ", "") == texts[1].replace(" ", ""):
        return Verdict.RIGHT
    numbers = plain_number(gold), plain_number(answer)
    if None not in numbers:
        return Verdict.RIGHT if numbers[0] == numbers[1] else Verdict.WRONG
    return Verdict.WRONG if _WORDS.fullmatch(texts[0]) and "\\" not in texts[0] else None


class Comparer:
    """Compares answers by algebra in a few processes, which start when they are first needed.

    Args:
        processes: How many.
    """

    def __init__(self, processes: int) -> None:
        self._idle: asyncio.Queue[asyncio.subprocess.Process | None] = asyncio.Queue()
        self._running = set[asyncio.subprocess.Process]()
        for _ in range(processes):
            self._idle.put_nowait(None)

    async def compare(self, gold: str, answer: str) -> Verdict:
        """Whether an answer equals the right one."""
        if (verdict := compared_as_text(gold, answer)) is not None:
            return verdict
        process = await self._idle.get()
        try:
            process = process or await self._start()
            verdict = await self._ask(process, gold, answer)
        except BaseException:
            self._end(process)
            process = None
            raise
        finally:
            alive = process is not None and process.returncode is None and process in self._running
            self._idle.put_nowait(process if alive else None)
        return verdict

    async def _start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "solar_plugins.maths.comparer"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._running.add(process)
        assert process.stdout is not None
        if await process.stdout.readline() != b"ready\n":
            self._end(process)
            raise SolarError(
                "solar maths: the process that compares answers does not start; run "
                f"{sys.executable} -m solar_plugins.maths.comparer to see why"
            )
        return process

    async def _ask(self, process: asyncio.subprocess.Process, gold: str, answer: str) -> Verdict:
        assert process.stdin is not None
        assert process.stdout is not None
        reply = b""
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(COMPARISON_SECONDS):
                process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
                await process.stdin.drain()
                reply = await process.stdout.readline()
        if reply.strip() not in (b"0", b"1", b"2"):  # It hangs, or died.
            self._end(process)
            return Verdict.UNCLEAR
        return Verdict(int(reply))

    def _end(self, process: asyncio.subprocess.Process | None) -> None:
        if process is not None:
            self._running.discard(process)
            with suppress(ProcessLookupError):
                process.kill()

    async def close(self) -> None:
        """End the processes."""
        ended = list(self._running)
        for process in ended:
            self._end(process)
        for process in ended:
            await process.wait()
