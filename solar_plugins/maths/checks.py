"""Checks of generated texts. Pure: strings in, the reason for dropping them out. Final answers: see `final_answers`."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from itertools import pairwise

from solar_plugins.data.ngrams import words_of


class Reason(StrEnum):
    """Why a row, or a problem, is dropped."""

    UNREADABLE = "unreadable"
    MISSING_TEXT = "no text"
    NO_SEED_ANSWER = "solution without a final answer"
    FAILED = "request failed"
    NOT_ASKED = "not asked (limit)"
    EMPTY = "empty"
    CUT = "cut off"
    REFUSED = "refusal"
    LANGUAGE = "another language"
    TEMPLATE = "breaks the template"
    NEAR = "copy of the original"
    FAR = "strays from the original"
    NUMBERS = "a number is missing"
    LEAK = "gives the answer away"
    NO_NUMBER = "no number to mask"
    NO_UNKNOWN = "the unknown is missing"
    NO_ANSWER = "no final answer"
    NO_REASONING = "no reasoning"
    WRONG = "wrong answer"
    UNCLEAR = "answer cannot be compared"
    DISAGREE = "too few votes agree"
    DUPLICATE = "duplicate"


class Drop(Exception):
    """A text that is not used.

    Args:
        reason: Why.
        detail: What exactly, if the reason does not say it.
        text: The text.
    """

    def __init__(self, reason: Reason, detail: str = "", text: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.text = reason, detail, text


_THOUGHTS = re.compile(r"\s*<think(?:ing)?>.*?</think(?:ing)?>\s*", re.DOTALL)
_LABEL = re.compile(
    r"^\W{0,4}(?:(?:here is|here's) (?:the|a|your) )?(?:rephrased|reworded|rewritten|new|restated)"
    r"(?: (?:math(?:ematics|s)?|version of the))?(?: (?:problem|question|solution|answer|description))?"
    r"\W{0,3}:\W{0,3}\s*",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\W{0,4}(?:i(?:'|\N{RIGHT SINGLE QUOTATION MARK})?m (?:really |very )?(?:sorry|unable|not able)"
    r"|i am (?:really |very )?(?:sorry|unable|not able)|sorry\b"
    r"|i (?:cannot|can not|can(?:'|\N{RIGHT SINGLE QUOTATION MARK})t|won(?:'|\N{RIGHT SINGLE QUOTATION MARK})t) "
    r"|as an ai\b|as a language model|unfortunately,? i )",
    re.IGNORECASE,
)
_TEMPLATE_MARKS = re.compile(
    r"<\|[\w-]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>"
    r"|^### ?(?:System|User|Assistant|Instruction|Response|Input):|^(?:Human|Assistant|User): "
    r"|\N{REPLACEMENT CHARACTER}"
    r"|</?think(?:ing)?>|[\x00-\x08\x0b\x0c\x0e-\x1f]",
    re.MULTILINE,
)
_DIGITS = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?")
NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        (
            *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
            *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
        )
    )
} | {"half": "2", "twice": "2", "double": "2", "doubled": "2", "triple": "3", "third": "3", "quarter": "4"}
"""English words that may stand for a number."""
STOP_WORDS = {
    "English": "the of and to is in that what how many are if each has for with find does",
    "German": "der die das und ist von wie viele mit ein eine den sind wenn für hat nicht",
    "French": "le la les des et est une dans quel que pour combien sont avec il",
    "Spanish": "el los las y es una cuántos que por del con cuál tiene son si",
    "Italian": "il gli di che è una quanti per del sono con della se qual ha",
    "Portuguese": "os as e é uma quantos que por do da não com se tem um",
    "Dutch": "de het een en van is hoeveel zijn met op dat niet als hij",
    "Polish": "i w na jest ile się z do nie jeśli oraz są",
    "Turkish": "ve bir kaç bu için ile kadar her olarak olan sonra",
    "Swedish": "och att det är en som av på hur många har med",
}
"""A few frequent words of languages in Latin script, enough to tell a changed language from the original."""
_STOP_SETS = {language: frozenset(words.split()) for language, words in STOP_WORDS.items()}


def cleaned(text: str) -> str:
    """A reply without the model's thoughts and without white space around it."""
    return _THOUGHTS.sub("", text, count=1).strip()


def without_label(text: str) -> str:
    """A rephrased text without an introduction of its own.

    >>> without_label("**Rephrased problem:** How many are left?"), without_label('"How many?"')
    ('How many are left?', 'How many?')
    """
    text = _LABEL.sub("", text, count=1).strip()
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] == '"' and '"' not in text[1:-1] else text


def check_reply(text: str, finish: str) -> str:
    """What every reply must pass.

    Args:
        text: The reply.
        finish: Why the model stopped, as the endpoint says.

    Returns:
        The reply without white space around it and without thoughts.

    Raises:
        Drop: It is empty, cut off, refused, or breaks the template.
    """
    found = cleaned(text)
    if finish in ("refusal", "content_filter"):
        raise Drop(Reason.REFUSED, finish, found)
    if finish not in ("stop", ""):
        raise Drop(Reason.CUT, f"finish_reason {finish}", found)
    if not found:
        raise Drop(Reason.EMPTY)
    if _REFUSAL.match(found):
        raise Drop(Reason.REFUSED, "", found)
    check_template(found)
    return found


def check_template(text: str) -> None:
    """Reject text that a chat template or a tokenizer would read as its own marks, and damaged characters."""
    if mark := _TEMPLATE_MARKS.search(text):
        raise Drop(Reason.TEMPLATE, f"contains {mark[0]!r}", text)


def similarity(one: list[str], other: list[str]) -> float:
    """The share of items that two lists have in common, between 0 and 1 (Dice).

    >>> similarity(["a", "b"], ["b", "c"])
    0.5
    """
    total = len(one) + len(other)
    return 2 * (Counter(one) & Counter(other)).total() / total if total else 1.0


def pairs_of(words: list[str]) -> list[str]:
    """Adjacent words; a single word is a pair of its own."""
    return [f"{one} {other}" for one, other in pairwise(words)] or words


def check_distance(original: str, text: str, too_near: float, too_far: float = 0.0) -> float:
    """The similarity of a rephrased text to the original.

    Raises:
        Drop: It is a copy, or strays.
    """
    words, other = words_of(original), words_of(text)
    near = similarity(pairs_of(words), pairs_of(other))
    if near >= too_near:
        raise Drop(Reason.NEAR, f"similarity {near:.2f}", text)
    if (far := similarity(words, other)) < too_far:
        raise Drop(Reason.FAR, f"similarity {far:.2f}", text)
    return round(near, 3)


def numbers_in(text: str) -> list[str]:
    """The numbers that are written with digits, without thousands separators and trailing zeros.

    >>> numbers_in("1,200 of 3.50 and 7")
    ['1200', '3.5', '7']
    """
    found = (number.replace(",", "") for number in _DIGITS.findall(text))
    return [number.rstrip("0").rstrip(".") if "." in number else number.lstrip("0") or "0" for number in found]


def check_numbers(original: str, text: str) -> None:
    """Reject a rephrased question that lost a number.

    Raises:
        Drop: A number of the original occurs neither in digits nor as a word.
    """
    words = {NUMBER_WORDS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in NUMBER_WORDS}
    there = {*numbers_in(text), *words}
    if missing := [number for number in dict.fromkeys(numbers_in(original)) if number not in there]:
        raise Drop(Reason.NUMBERS, ", ".join(missing[:5]), text)


def check_leak(original: str, text: str, answer: str) -> None:
    """Reject a rephrased question that contains the final answer although the original does not.

    Raises:
        Drop: It does.
    """
    numbers = numbers_in(answer)
    if len(numbers) == 1 and re.fullmatch(r"[-+]?[\d.,]+", answer.strip()):
        leaks = numbers[0] in numbers_in(text) and numbers[0] not in numbers_in(original)
    else:
        tight, before, after = ("".join(one.split()).casefold() for one in (answer, original, text))
        leaks = len(tight) > 2 and tight in after and tight not in before
    if leaks:
        raise Drop(Reason.LEAK, answer, text)


def check_language(original: str, text: str) -> None:
    """Reject text in another script or, in Latin script, with the frequent words of another language.

    Raises:
        Drop: It is in another language.
    """
    scripts, found = _scripts(original), _scripts(text)
    usual = {script for script, count in scripts.items() if count >= 0.2 * scripts.total()} | {"GREEK"}
    foreign = sum(count for script, count in found.items() if script not in usual)
    if scripts and foreign > 0.2 * found.total() and foreign > 10:
        raise Drop(Reason.LANGUAGE, f"{max(found, key=found.__getitem__).title()} script", text)
    before, after = _latin_language(original), _latin_language(text)
    if before and after and before != after:
        raise Drop(Reason.LANGUAGE, f"{after} instead of {before}", text)


_ONE_SCRIPT = {"HIRAGANA": "CJK", "KATAKANA": "CJK"}


def _scripts(text: str) -> Counter[str]:
    """Letters by script. LaTeX commands and single Latin letters, which may be variables, do not count."""
    text = re.sub(r"\\[A-Za-z]+|\b[A-Za-z]\b", " ", text)
    return Counter(_ONE_SCRIPT.get(one, one) for one in map(_script, filter(str.isalpha, text)))


def _script(letter: str) -> str:
    return "LATIN" if letter.isascii() else unicodedata.name(letter, "UNKNOWN").split()[0]


def _latin_language(text: str) -> str | None:
    words = Counter(re.findall(r"[^\W\d_]{2,}|[eiyéè](?=\s)", text.lower()))
    scores = sorted(_language_scores(words), reverse=True)
    (best, language), (second, _) = scores[:2]
    return language if best >= 3 and best >= 2 * second else None


def _language_scores(words: Counter[str]) -> Iterator[tuple[int, str]]:
    for language, known in _STOP_SETS.items():
        yield sum(count for word, count in words.items() if word in known), language
