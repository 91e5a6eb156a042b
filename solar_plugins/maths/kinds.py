"""The kinds of augmentation: which requests a row needs, and what its texts must pass.

| kind | question | answer | source |
|---|---|---|---|
| `rephrase` | rephrased | the original solution, rephrased | SOLAR (arXiv:2312.15166, sec. 4.1); also gives pairs |
| `rephrase_question` | rephrased | solved anew | MetaMath, rephrasing (arXiv:2309.12284) |
| `rephrase_answer` | the original | the original solution, rephrased | half of SOLAR's |
| `solve` | the original | solved anew, with votes | MetaMath, answer augmentation |
| `self_verification` | a statement with an unknown, made by the model | solved anew | MetaMath; arXiv:2212.09561 |
| `fobar` | the original with a masked number and its answer | solved anew | MetaMath; arXiv:2308.07758 |

The prompts are ours. A kind asks for what it needs through a function, so that the same code runs while answers arrive
and when the output is written from stored answers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from solar_plugins.data.ngrams import words_of
from solar_plugins.endpoints.store import Answer, key_of
from solar_plugins.maths.checks import (
    Drop,
    Reason,
    check_distance,
    check_language,
    check_leak,
    check_numbers,
    check_reply,
    without_label,
)
from solar_plugins.maths.final_answers import Verdict, final_answer, reasoning
from solar_plugins.maths.recipe import Kind, MathsArgs, Prompt
from solar_plugins.maths.seeds import Seed

PAIR_KINDS: tuple[Kind, ...] = ("rephrase",)
"""Kinds whose rows also become preference pairs: the rephrased answer against the original one."""
NEW_QUESTION_KINDS: tuple[Kind, ...] = ("rephrase", "rephrase_question")
"""Kinds that must not give the same question twice."""


class Request(NamedTuple):
    """A prompt, and the seed that makes its answer one of several."""

    prompt: str
    seed: int


type Ask = Callable[[Request], Awaitable[Answer]]
type Compare = Callable[[str, str], Awaitable[Verdict]]


class Job(NamedTuple):
    """One row to try."""

    seed: Seed
    kind: Kind
    sample: int


@dataclass(slots=True)
class Row:
    """A row that passed all checks.

    Args:
        query: The question.
        response: The solution.
        final: Its final answer, as the right one is written.
        prompts: Versions of the prompts that were used.
        models: The names under which the endpoint answered.
        checks: What was measured: votes, similarity.
    """

    query: str
    response: str
    final: str
    prompts: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    checks: dict[str, str | float] = field(default_factory=dict)


class Augmenter:
    """Makes rows of problems.

    Args:
        args: The recipe.
        prompts: By name.
        ask: Answers a request. It raises `Drop` for one that has no answer.
        compare: Compares a final answer with the right one.
    """

    def __init__(self, args: MathsArgs, prompts: Mapping[str, Prompt], ask: Ask, compare: Compare) -> None:
        self._args, self._prompts, self._ask, self._compare = args, prompts, ask, compare

    async def row(self, job: Job) -> Row:
        """The row of a job.

        Raises:
            Drop: A text does not pass, or a request has no answer.
        """
        return await _Attempt(self._args, self._prompts, self._ask, self._compare, job).row()


class _Attempt:
    """One job under way: collects what its row reports."""

    def __init__(self, args: MathsArgs, prompts: Mapping[str, Prompt], ask: Ask, compare: Compare, job: Job) -> None:
        self._args, self._prompts, self._compare, self._job = args, prompts, compare, job
        self._send = ask
        self._used, self._models = dict[str, None](), dict[str, None]()
        self._checks = dict[str, str | float]()

    async def row(self) -> Row:
        question, response, final = await self._texts()
        return Row(question, response, final, list(self._used), list(self._models), self._checks)

    async def _texts(self) -> tuple[str, str, str]:
        seed, kind = self._job.seed, self._job.kind
        if kind == "rephrase":
            question = await self._rephrased_question()
            return question, await self._rephrased_answer(question), seed.final
        if kind == "rephrase_question":
            question = await self._rephrased_question()
            return question, await self._solved(question, seed.final), seed.final
        if kind == "rephrase_answer":
            return seed.question, await self._rephrased_answer(seed.question), seed.final
        if kind == "solve":
            return seed.question, await self._solved(seed.question, seed.final), seed.final
        masked, unknown, number = mask_number(seed.question, self._args.seed, seed.id, self._job.sample)
        if kind == "fobar":
            question = self._fill("fobar", question=masked, final_answer=seed.final, unknown=unknown)
        else:
            statement = await self._statement(masked, unknown, number)
            question = self._fill("self_verification", statement=statement, unknown=unknown)
        return question, await self._solved(question, number), number

    def _fill(self, prompt: str, **values: str) -> str:
        self._used[self._prompts[prompt].version] = None
        return self._prompts[prompt].fill(**values)

    async def _reply(self, prompt: str, vote: int = 0, **values: str) -> str:
        """What the model answered, after the checks that hold for every reply."""
        job = self._job
        number = int.from_bytes(key_of([self._args.seed, job.seed.id, job.kind, prompt, job.sample, vote])[:4]) >> 1
        answer = await self._send(Request(self._fill(prompt, **values), number))
        if answer.model:
            self._models[answer.model] = None
        text = check_reply(answer.text, answer.finish)
        if self._args.checks.language:
            check_language(job.seed.question, text)
        return text

    async def _rephrased_question(self) -> str:
        original, checks = self._job.seed.question, self._args.checks
        text = without_label(await self._reply("rephrase_question", question=original))
        self._checks["question_similarity"] = check_distance(original, text, checks.too_near, checks.too_far)
        if checks.numbers:
            check_numbers(original, text)
        if checks.leaks:
            check_leak(original, text, self._job.seed.final)
            if final_answer(original) is None and (said := final_answer(text)):
                raise Drop(Reason.LEAK, f"states an answer: {said[:200]}", text)
        return text

    async def _rephrased_answer(self, question: str) -> str:
        seed = self._job.seed
        text = without_label(await self._reply("rephrase_answer", question=question, answer=seed.answer))
        self._checks["answer_similarity"] = check_distance(seed.answer, text, self._args.checks.too_near)
        await self._check_final(text, seed.final)
        return text

    async def _statement(self, masked: str, unknown: str, number: str) -> str:
        final = self._job.seed.final
        reply = await self._reply("statement", question=masked, final_answer=final, unknown=unknown)
        text = without_label(reply)
        if not re.search(rf"(?<![A-Za-z]){unknown}(?![A-Za-z])", text):
            raise Drop(Reason.NO_UNKNOWN, unknown, text)
        if self._args.checks.numbers:
            check_numbers(masked, text)
        if self._args.checks.leaks:
            check_leak(f"{masked} {final}", text, number)
        return text

    async def _check_final(self, text: str, right: str) -> None:
        found = final_answer(text)
        if found is None:
            raise Drop(Reason.NO_ANSWER, "", text)
        verdict = await self._compare(right, found)
        if verdict is not Verdict.RIGHT:
            reason = Reason.WRONG if verdict is Verdict.WRONG else Reason.UNCLEAR
            raise Drop(reason, f"{found[:200]} instead of {right[:200]}", text)
        if len(words_of(reasoning(text))) < self._args.checks.reasoning:
            raise Drop(Reason.NO_REASONING, "", text)

    async def _solved(self, question: str, right: str) -> str:
        """The first right solution, once enough solutions are right."""
        options, good, problem = self._args.kinds[self._job.kind], list[str](), None
        for vote in range(options.votes):
            try:
                text = await self._reply("solve", vote, question=question)
                await self._check_final(text, right)
                good.append(text)
            except Drop as drop:
                if drop.reason in (Reason.FAILED, Reason.NOT_ASKED):
                    raise
                problem = drop
            asked = vote + 1
            if len(good) >= options.agree or len(good) + options.votes - asked < options.agree:
                break
        self._checks["votes"] = f"{len(good)} of {asked}"
        if len(good) < options.agree:
            assert problem is not None
            if options.votes == 1:
                raise problem
            detail = (
                f"{len(good)} of {asked} are right, {options.agree} needed; last: {problem.reason} {problem.detail}"
            )
            raise Drop(Reason.DISAGREE, detail.strip(), problem.text)
        return good[0]


_MASKABLE = re.compile(r"(?<![\w\\.,^_{/-])(?:\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)(?![\w^}/]|[.,]\d)")
UNKNOWNS = "xyzkmtwvu"


def mask_number(question: str, random_seed: int, seed_id: str, sample: int) -> tuple[str, str, str]:
    """Replace a number of a problem by an unknown. Each sample takes another number, as long as there are some.

    Returns:
        The problem, the unknown, and the number.

    Raises:
        Drop: No number stands alone, or every letter is in use.

    Example:
        >>> mask_number("Each of 3 boxes holds x balls.", 42, "", 0)
        ('Each of y boxes holds x balls.', 'y', '3')
    """
    numbers = list(_MASKABLE.finditer(question))
    used = set(re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", question))
    unknown = next((letter for letter in UNKNOWNS if letter not in used), None)
    if not numbers or unknown is None:
        raise Drop(Reason.NO_NUMBER, "", question)
    random.Random(f"{random_seed} {seed_id}").shuffle(numbers)
    found = numbers[sample % len(numbers)]
    masked = question[: found.start()] + unknown + question[found.end() :]
    return masked, unknown, found[0].replace(",", "")
