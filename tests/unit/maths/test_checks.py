"""Checks of generated texts: each has a text that passes and one that does not."""

import pytest

from solar_plugins.maths.checks import (
    Drop,
    Reason,
    check_distance,
    check_language,
    check_leak,
    check_numbers,
    check_reply,
)

QUESTION = "Tom has 12 apples and buys 3 more at the shop. How many apples does he have?"
REPHRASED = "After buying 3 apples in addition to his 12, how many of them does Tom own?"


def reason_of(check, *values, **options):
    try:
        check(*values, **options)
    except Drop as drop:
        return drop.reason
    return None


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("Seven. The answer is: 7", "stop", None),
        ("Seven.", "", None),
        ("I can see that 7 is prime.", "stop", None),
        ("  \n", "stop", Reason.EMPTY),
        ("<think>Hm.</think>\n", "stop", Reason.EMPTY),
        ("<think>Hm, 7", "length", Reason.CUT),
        ("<think>Hm, 7", "stop", Reason.TEMPLATE),
        ("It is", "length", Reason.CUT),
        ("", "tool_calls", Reason.CUT),
        ("No.", "content_filter", Reason.REFUSED),
        ("I'm sorry, but I cannot help.", "stop", Reason.REFUSED),
        ("I\u2019m unable to do so.", "stop", Reason.REFUSED),
        ("As an AI, I have no apples.", "stop", Reason.REFUSED),
        ("Seven<|im_end|>", "stop", Reason.TEMPLATE),
        ("Seven\n### Assistant: yes", "stop", Reason.TEMPLATE),
        ("Seven\n### Step 2: add", "stop", None),
        ("Seven</s>", "stop", Reason.TEMPLATE),
        ("Sev\ufffdn", "stop", Reason.TEMPLATE),
        ("x < 3 and y > 4", "stop", None),
    ],
)
def test_replies(text, finish, reason):
    assert reason_of(check_reply, text, finish) == reason


def test_thoughts_are_left_out():
    assert check_reply("<think>First I add.</think>\n\nIt is 7.", "stop") == "It is 7."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (REPHRASED, None),
        (QUESTION, Reason.NEAR),
        (QUESTION.upper().replace(".", "!"), Reason.NEAR),
        ("Bananas float gently over quiet rivers.", Reason.FAR),
    ],
)
def test_distance(text, reason):
    assert reason_of(check_distance, QUESTION, text, 0.9, 0.15) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (REPHRASED, None),
        ("Tom has twelve apples and buys three.", None),
        ("Tom has 12 apples and buys some.", Reason.NUMBERS),
        ("Tom has 12.0 apples and buys 3.", None),
        ("Tom has 123 apples and buys 3.", Reason.NUMBERS),
    ],
)
def test_numbers(text, reason):
    assert reason_of(check_numbers, QUESTION, text) == reason


def test_numbers_with_separators():
    assert reason_of(check_numbers, "1,500 people pay 2.50 each", "Of 1500 people each pays 2.5") is None


@pytest.mark.parametrize(
    ("text", "answer", "reason"),
    [
        (REPHRASED, "15", None),
        (f"{REPHRASED} He ends up with 15.", "15", Reason.LEAK),
        (REPHRASED, "12", None),  # A number of the original is no leak.
        (f"{REPHRASED} It is 2\\sqrt{{3}}.", "2 \\sqrt{3}", Reason.LEAK),
        (REPHRASED, "x", None),
    ],
)
def test_leaks(text, answer, reason):
    assert reason_of(check_leak, QUESTION, text, answer) == reason


GERMAN = (
    "Tom hat 12 Äpfel und kauft 3 dazu. Wie viele Äpfel hat er, wenn die Tüte nicht reißt und der Rest von mir ist?"
)
CHINESE = "汤姆有12个苹果,又在商店买了3个。他一共有多少个苹果?请写出答案。"


@pytest.mark.parametrize(
    ("original", "text", "reason"),
    [
        (QUESTION, REPHRASED, None),
        (QUESTION, GERMAN, Reason.LANGUAGE),
        (GERMAN, QUESTION, Reason.LANGUAGE),
        (GERMAN, GERMAN, None),
        (QUESTION, CHINESE, Reason.LANGUAGE),
        (CHINESE, CHINESE, None),
        (CHINESE, REPHRASED, Reason.LANGUAGE),
        (
            QUESTION,
            "$x + y = 15$, so \N{GREEK SMALL LETTER ALPHA} and \N{GREEK SMALL LETTER BETA} are the apples in question.",
            None,
        ),
        (QUESTION, r"$12 + 3 = 15$", None),
        (r"Find $x$ if $x + 3 = 4$.", r"\boxed{1}", None),
    ],
)
def test_language(original, text, reason):
    assert reason_of(check_language, original, text) == reason
