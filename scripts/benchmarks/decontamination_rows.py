"""Rows and benchmark questions for `decontamination.py`, with contaminations of known kinds. Seeded.

The text is real: the help topics and the docstrings of Python's standard library. Benchmark questions are passages that
are held back from the rows, and word problems.
"""

from __future__ import annotations

import ast
import json
import random
import re
import sysconfig
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

N = 13
NUM_QUESTIONS = 20_000
PLANTED_PER_KIND = 300
CLEAN = "clean"
CHARACTERS = (300, 2400)
"""Of a row, evenly distributed."""

NAMES = ("Natalia", "Weng", "Betty", "Julie", "James", "Mark", "Albert", "Ken", "Alexis", "Tina", "Tobias", "Randy")
THINGS = ("clips", "pages", "flowers", "pizzas", "letters", "crayons", "muffins", "toy cars", "vacuum cleaners", "eggs")
PLACES = ("market", "school", "library", "garden", "bakery", "station", "museum", "harbour", "workshop", "stadium")
CHINESE = (
    "小明有五个苹果他给了小红两个苹果然后又从商店买了七个苹果请问他现在一共有多少个苹果",
    "一辆汽车以每小时六十公里的速度行驶三个小时后它离开出发点有多远请写出计算的过程",
    "图书馆里有一百二十本书其中三分之一是小说其余的是科学书籍请问科学书籍有多少本",
)
SHORT = "What is the capital city of {place} number {number}?"
EQUAL = "Name the largest {place} of {number}."


def sentences() -> list[str]:
    """The sentences of the standard library's help topics and docstrings, in a fixed order, each once."""
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if not {"site-packages", "test", "tests", "lib2to3", "pydoc_data"} & set(path.parts):
            texts += _docstrings(path)
    found = (sentence for text in texts for sentence in re.split(r"(?<=[.!?:])\s+|\n\n+", text))
    return list(dict.fromkeys(one.strip() for one in found if 4 <= len(one.split()) <= 60))


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def questions(held_out: list[str], rng: random.Random) -> list[str]:
    """Benchmark questions: word problems, passages, short ones and Chinese ones, shuffled."""
    found = [_word_problem(rng) for _ in range(NUM_QUESTIONS // 2)]
    while len(found) < NUM_QUESTIONS:
        start = rng.randrange(len(held_out) - 4)
        found.append(" ".join(held_out[start : start + rng.randint(1, 4)]))
    return found


def _word_problem(rng: random.Random) -> str:
    a, b, c = (rng.choice(NAMES) for _ in range(3))
    thing, place, other = rng.choice(THINGS), rng.choice(PLACES), rng.choice(PLACES)
    x, y, z = (rng.randint(2, 9999) for _ in range(3))
    return (
        f"{a} sold {x:,} {thing} to {b} at the {place} in April, and then {a} sold half as many {thing} at the {other} "
        f"in May. If {c} bought {y} of them for ${z}, how many {thing} did {a} sell altogether, and what did {c} pay?"
    )


class Planted(NamedTuple):
    """A kind of contamination."""

    meaning: str
    change: Callable[[str, random.Random], str]
    """From a question to what a row contains."""


def _same(text: str, rng: random.Random) -> str:
    return text


def _case_and_punctuation(text: str, rng: random.Random) -> str:
    changed = text.upper() if rng.random() < 0.5 else text.lower()
    return re.sub(r"[.,?$]", lambda found: rng.choice(["", found[0], "!", ";"]) if found[0] != "," else "", changed)


def _html(text: str, rng: random.Random) -> str:
    words = text.replace("&", "&amp;").replace("'", "&#39;").split()
    return "&nbsp;".join(words)


def _hyphenated(text: str, rng: random.Random) -> str:
    """The first words, with long ones divided at line ends."""
    words = text.split()[: N + 5]
    for at in range(5, len(words), 4):
        if len(words[at]) > 3 and words[at].isalpha():
            words[at] = f"{words[at][:2]}-\n{words[at][2:]}"
    return " ".join(words)


def _typographic(text: str, rng: random.Random) -> str:
    """Full-width digits, curly quotes, ligatures, no-break spaces."""
    table = str.maketrans("0123456789'", "\uff10\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18\uff19\u2019")
    return _first(N)(text, rng).translate(table).replace("fi", "\ufb01").replace(" ", "\u00a0")


def _invisible(text: str, rng: random.Random) -> str:
    """Soft hyphens and zero-width spaces inside of words."""
    return re.sub(r"(\w{3})(?=\w)", lambda found: found[0] + rng.choice("\u00ad\u200b"), text)


def _accents(text: str, rng: random.Random) -> str:
    return "".join(unicodedata.normalize("NFC", one + "\u0301") if one in "aeo" else one for one in text)


def _other_numbers(text: str, rng: random.Random) -> str:
    return re.sub(r"\d[\d,]*", lambda _: str(rng.randint(10_000, 99_999)), _first(N)(text, rng))


def _first(words: int) -> Callable[[str, random.Random], str]:
    return lambda text, rng: " ".join(text.split()[:words])


def _hyphens_for_spaces(text: str, rng: random.Random) -> str:
    """Every second pair of words joined by a hyphen, such as half-as."""
    words = text.split()
    return " ".join("-".join(words[at : at + 2]) for at in range(0, len(words), 2))


KINDS = {
    "copied": Planted("the entire question", _same),
    "case, punctuation": Planted("other case, punctuation removed or replaced", _case_and_punctuation),
    "13 words": Planted("exactly 13 words of the question", _first(N)),
    "12 words": Planted("only 12 words, so no tool should drop it", _first(N - 1)),
    "HTML entities": Planted("&nbsp; between the words, &#39; for apostrophes", _html),
    "line-end hyphens": Planted("18 words of a question, some divided at line ends", _hyphenated),
    "typography": Planted("13 words of a word problem: full-width digits, no-break spaces", _typographic),
    "invisible characters": Planted("soft hyphens and zero-width spaces in words", _invisible),
    "hyphens for spaces": Planted("every second space is a hyphen", _hyphens_for_spaces),
    "accents": Planted("accents on a, e and o", _accents),
    "other numbers": Planted("13 words of a word problem, with another number", _other_numbers),
    "short, inside": Planted("a question of 8 to 12 words inside a row", _same),
    "short, entire": Planted("a question of fewer than 8 words that is the entire row", _same),
    "Chinese": Planted("a Chinese question inside a row", _same),
}


def write_rows(folder: Path, rows: int, seed: int = 7) -> None:
    """Write ``rows.jsonl``, ``bench.jsonl`` and the kind of every row, ``kinds.json``."""
    rng = random.Random(seed)
    pool = sentences()
    held_out, pool = pool[::10], [one for at, one in enumerate(pool) if at % 10]
    asked = questions(held_out, rng)
    short = [SHORT.format(place=place, number=number) for place in PLACES for number in range(10)]
    entire = [EQUAL.format(place=place, number=number) for place in PLACES for number in range(10)]
    problems, long = asked[: NUM_QUESTIONS // 2], [one for one in asked if len(one.split()) >= 2 * N]
    sources = {
        "typography": problems,
        "other numbers": problems,
        "short, inside": short,
        "short, entire": entire,
        "Chinese": list(CHINESE),
    }
    kinds = [kind for kind in KINDS for _ in range(PLANTED_PER_KIND)]
    kinds = rng.sample([*kinds, *[CLEAN] * (rows - len(kinds))], rows)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number, kind in enumerate(kinds):
            text = _passage(pool, rng)
            if kind != CLEAN:
                found = KINDS[kind].change(rng.choice(sources.get(kind, long)), rng)
                if kind == "short, entire":
                    text = found
                else:
                    cut = rng.choice([0, text.find(" ", len(text) // 2), len(text)])
                    text = f"{text[:cut]} {found} {text[cut:]}".strip()
            file.write(json.dumps({"id": number, "text": text}, ensure_ascii=False) + "\n")
    with (folder / "bench.jsonl").open("w", encoding="utf-8") as file:
        everything = [*asked, *short, *entire, *CHINESE]
        file.writelines(json.dumps({"question": text}, ensure_ascii=False) + "\n" for text in everything)
    (folder / "kinds.json").write_text(json.dumps(kinds))


def _passage(pool: list[str], rng: random.Random) -> str:
    """Sentences that follow each other in the library, up to a random length."""
    length, text, at = rng.randint(*CHARACTERS), "", rng.randrange(len(pool))
    while len(text) < length:
        text += f"{pool[at % len(pool)]} "
        at += 1 if rng.random() < 0.8 else rng.randrange(len(pool))
    return text.strip()
