"""Final answers: found, and compared with math-verify in a process of their own."""

import asyncio
import os
import time

import pytest

from solar_plugins.maths import final_answers
from solar_plugins.maths.final_answers import Comparer, Verdict, compared_as_text, final_answer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"We get $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"First \boxed{3}, but then \boxed{\{1, \{2\}\}}", r"\{1, \{2\}\}"),
        (r"Thus \fbox{7} holds", "7"),
        (r"so $\boxed 5$ it is", "5"),
        (r"An unclosed \boxed{3", None),
        ("Adding gives 7.\n#### 7", "7"),
        ("The answer is: 12.", "12"),
        ("**The final answer is $x = 4$.**", "x = 4"),
        ("Answer: \\(2\\sqrt{3}\\)", r"2\sqrt{3}"),
        (r"The answer is $\boxed{9}$ apples", "9"),
        (r"The answer is $\boxed{9}$.", "9"),
        ("Maybe \\boxed{8}. No.\nThe answer is: 9", "9"),
        ("The answer to the problem is 4.", "4"),
        ("It is 5.", None),
        ("", None),
        ("The answer is:", None),
    ],
)
def test_where_it_stands(solution, answer):
    assert final_answer(solution) == answer


EQUAL = [
    *(("0.5", r"\frac{1}{2}"), ("1,250", "1250"), (r"\dfrac{6}{4}", "3/2"), ("-3", "- 3"), (r"\text{even}", "Even")),
    *((r"5 \text{ cm}", "5"), ("50\\%", "50"), (r"\{1,2\}", r"\{2,1\}"), (r"\sqrt{8}", r"2\sqrt{2}"), ("x=5", "5")),
    *(("x^2+2x+1", "(x+1)^2"), (r"90^\circ", "90"), (r"(0,1)\cup(2,3)", r"(2,3)\cup(0,1)"), ("2^{10}", "1024")),
]
DIFFERENT = [
    *(("5", "6"), ("listen", "silent"), (r"\text{Monday}", r"\text{Tuesday}"), ("(1,2)", "(2,1)"), ("[0,1)", "[0,1]")),
    *((r"\sqrt{2}", "1.41"), (r"\frac13", "0.333"), ("x+1", "x-1"), ("4", "four apples")),
]


def compare_all(pairs, processes=1):
    async def run():
        comparer = Comparer(processes)
        try:
            return [await comparer.compare(*pair) for pair in pairs]
        finally:
            await comparer.close()

    return asyncio.run(run())


def test_equal_and_different_answers():
    verdicts = compare_all([*EQUAL, *DIFFERENT])
    expected = [Verdict.RIGHT] * len(EQUAL) + [Verdict.WRONG] * len(DIFFERENT)
    pairs = zip([*EQUAL, *DIFFERENT], verdicts, expected, strict=True)
    assert [(pair, got.name) for pair, got, wanted in pairs if got is not wanted] == []


def test_plain_answers_need_no_process():
    assert compared_as_text("7", "7.0") is Verdict.RIGHT
    assert compared_as_text("7", "8") is Verdict.WRONG
    assert compared_as_text("1/0", "8") is None


def test_a_comparison_without_end_is_ended_and_the_next_one_works(monkeypatch):
    monkeypatch.setattr(final_answers, "COMPARISON_SECONDS", 1.0)
    began = time.monotonic()
    hard = (r"9^{9^{9^{9}}}", r"\sqrt{2}")
    assert compare_all([hard, (r"\sqrt{8}", r"2\sqrt{2}")]) == [Verdict.UNCLEAR, Verdict.RIGHT]
    assert time.monotonic() - began < 30


def test_no_process_outlives_its_user():
    async def run():
        comparer = Comparer(1)
        await comparer.compare(r"\sqrt{2}", "1.41")
        (process,) = comparer._running
        await comparer.close()
        return process.pid

    pid = asyncio.run(run())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
