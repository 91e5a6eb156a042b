"""Which n-grams of words a text shares with benchmark texts. Pure: strings in, matches out.

The idea is that of GPT-3 (Brown et al. 2020, arXiv:2005.14165, app. C): a training text that shares 13 words in a row
with a test set, case and punctuation aside, probably holds a part of that set.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import IntEnum
from itertools import islice
from typing import NamedTuple

DEFAULT_NGRAM = 13
SHORTEST = 8
"""Benchmark texts of fewer words are not searched inside others. GPT-2 (Radford et al. 2019, section 4) and PaLM
(Chowdhery et al. 2022, arXiv:2204.02311, section 8) took 8 words in a row for a sign of contamination."""


class Searched(IntEnum):
    """How a benchmark text is looked for, the best way first."""

    NGRAMS = 0
    """Any n words of it in a row."""
    INSIDE = 1
    """All of it, inside any text: it has fewer than n words."""
    EQUAL = 2
    """All of it, and only in a text that has no other words: it has fewer than `SHORTEST`."""


class Place(NamedTuple):
    """Where a benchmark text stands."""

    file: str
    row: int
    """Counted from 1."""


class Match(NamedTuple):
    """Words that a text and a benchmark share: the first that the text has, and the first place that holds them."""

    ngram: str
    benchmark: Place


UNSPACED_SCRIPTS = (
    *("CJK UNIFIED", "CJK COMPATIBILITY", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "BOPOMOFO", "YI SYLLABLE"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "NEW TAI LUE", "TAI LE", "TAI THAM", "JAVANESE", "BALINESE"),
)
"""How Unicode's names of characters begin in scripts that put no space between words."""
UNSPOKEN_MARKS = ("COMBINING", "ARABIC", "HEBREW", "SYRIAC")
"""How names of marks begin that a text may have or leave out: strokes through a text, vowels in scripts that are mostly
written without."""
IGNORED_NAMES = ("TATWEEL", "VARIATION SELECTOR", "FILLER", "GRAPHEME JOINER")
"""How names of invisible characters end that Unicode counts as letters or marks; a number may follow."""


class _KeptCharacters(dict[int, int | str | None]):
    """A table for `str.translate`; it learns what becomes of a character when the character first comes."""

    def __missing__(self, code: int) -> int | str | None:
        self[code] = kept = _kept(chr(code))
        return kept


def _kept(character: str) -> int | str | None:
    """Nothing for what no reader sees or reads as a word; a character with spaces around it where it is one."""
    category, name = unicodedata.category(character), unicodedata.name(character, "")
    if category[0] in "PS" or (category in ("Cc", "Cf", "Cs") and not character.isspace()):
        return None
    if (category[0] == "M" and name.startswith(UNSPOKEN_MARKS)) or name.rstrip("-0123456789").endswith(IGNORED_NAMES):
        return None
    if name.startswith(UNSPACED_SCRIPTS):
        # A vowel or a tone on a letter stays with it: what a reader calls a character is one unit.
        return ord(character) if category[0] == "M" else f" {character} " if name[0] in "CHIKBY" else f" {character}"
    return ord(character)


_KEPT_CHARACTERS = _KeptCharacters()
_ENTITY = re.compile(r"&(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_LINE_END_HYPHENS = ("-\n", "-\r\n", "\u00ad\n", "\u2010\n")
_DIVIDED_WORD = re.compile(r"(?<=\w)[-\u00ad\u2010]\r?\n(?=\w)")
_LOWER = bytes(range(256)).lower()
_DROPPED = bytes(code for code in range(128) if _kept(chr(code)) is None)
"""The same for ASCII, as tables of bytes: half the time of `str.translate`."""


def words_of(text: str) -> list[str]:
    """The words that are compared: Unicode NFKC, case folded, punctuation and symbols dropped, split at white space.

    Symbols (Unicode categories S*) go with punctuation (P*), because the two are one thing to a reader of ``2 + 2 = 4``
    and because ``$``, ``+`` and ``=`` differ most between copies of one mathematical text. Invisible characters go too:
    zero-width spaces and joiners, soft hyphens, variation selectors, control characters, half characters; and vowel
    points of Arabic and Hebrew, with which a text is seldom written. HTML's ``&nbsp;`` is a space, ``&#39;`` an
    apostrophe. A word that a hyphen divides at the end of a line is one word.

    In scripts without spaces between words, such as Chinese, Japanese, Thai and Khmer, every character is a word.

    Example:
        >>> words_of("The well-known “ﬁle” costs $5,000 — 2 + 2 = FOUR.")
        ['the', 'wellknown', 'file', 'costs', '5000', '2', '2', 'four']
        >>> words_of("5个苹果。Two ap\u00adples")
        ['5', '个', '苹', '果', 'two', 'apples']
    """
    if "&" in text:
        text = _ENTITY.sub(lambda found: html.unescape(found[0]), text)
    if any(hyphen in text for hyphen in _LINE_END_HYPHENS):
        text = _DIVIDED_WORD.sub("", text)
    if text.isascii():
        return text.encode().translate(_LOWER, _DROPPED).decode().split()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return folded.translate(_KEPT_CHARACTERS).split()


class NgramIndex:
    """The n-grams of benchmark texts, made once and asked for every row.

    A text of n or more words matches if n of them in a row stand in one benchmark text. A benchmark text of fewer than
    n words has no n-gram and is compared as a whole: with `SHORTEST` words or more it matches every text that holds
    it, with fewer only a text that consists of the same words. To look for these inside others too would drop every
    row that happens to contain "yes" or "the capital of France".

    Few look-ups find all matches: whatever has `SHORTEST` words or more holds, wherever it stands, a run of four of
    them that starts at a multiple of five, so only every fifth run of a text is looked up, and an n-gram of 13 holds
    two such runs in succession. Runs and n-grams are kept as 64-bit hashes, and a match is compared with the text
    itself: it is never wrong. One could be missed if two different n-grams of the benchmarks had one hash (1 in 10
    million for three million words).

    Args:
        n: Words in an n-gram.
        texts: Benchmark texts and their places. Where several hold an n-gram, the first is reported.
    """

    def __init__(self, n: int, texts: Iterable[tuple[str, Place]]) -> None:
        self.n = n
        shortest = min(n, SHORTEST)
        self._run = (shortest + 1) // 2
        self._stride = shortest + 1 - self._run
        self._runs_in_ngram = (n - self._run + 1) // self._stride
        """At least so many runs at multiples of the stride lie in an n-gram."""
        self._runs: set[int] = set()
        self._first: dict[int, int] = {}
        self._inside: dict[int, list[tuple[int, int]]] = {}
        """Of a run's hash: where in a short text it stands, and which text that is."""
        self._whole: dict[str, int] = {}
        self._texts: list[str] = []
        self._places: list[Place] = []
        self._searched: dict[Place, Searched] = {}
        for text, place in texts:
            self._add(words_of(text), place)

    def __len__(self) -> int:
        """Number of different n-grams."""
        return len(self._first)

    def rows(self, file: str) -> Counter[Searched]:
        """How many rows of a benchmark file are searched in which way, each by its longest text."""
        return Counter(how for place, how in self._searched.items() if place.file == file)

    def _add(self, words: list[str], place: Place) -> None:
        how = Searched.NGRAMS if len(words) >= self.n else Searched.INSIDE if len(words) >= SHORTEST else Searched.EQUAL
        self._searched[place] = min(how, self._searched.get(place, how))
        if not words:
            return
        number, text = len(self._texts), " ".join(words)
        if how is not Searched.NGRAMS and self._whole.setdefault(text, number) != number:
            return
        self._texts.append(f" {text} ")
        self._places.append(place)
        if how is Searched.NGRAMS:
            for ngram in _runs_of(words, self.n):
                self._first.setdefault(hash(" ".join(ngram)), number)
            self._runs.update(map(hash, _runs_of(words, self._run)))
        elif how is Searched.INSIDE:
            for offset, run in enumerate(islice(_runs_of(words, self._run), self._stride)):
                self._inside.setdefault(hash(run), []).append((offset, number))
                self._runs.add(hash(run))

    def match(self, text: str) -> Match | None:
        """The first n-gram of ``text`` that a benchmark text holds, or else a short one that it holds, or None.

        Example:
            >>> index = NgramIndex(3, [("One two, three four.", Place("b.jsonl", 1)), ("Yes!", Place("b.jsonl", 2))])
            >>> index.match("so: TWO THREE FOUR five")
            Match(ngram='two three four', benchmark=Place(file='b.jsonl', row=1))
            >>> index.match("yes").benchmark.row, index.match("yes it is so")
            (2, None)
        """
        words = words_of(text)
        if len(words) < self.n and (number := self._whole.get(" ".join(words))) is not None:
            return Match(" ".join(words), self._places[number])
        # Made and looked up without a step of Python for each run; nearly all texts end here.
        keys = list(map(hash, zip(*(words[at :: self._stride] for at in range(self._run)), strict=False)))
        if self._runs.isdisjoint(keys):
            return None
        short, successive = None, 0
        for at, key in zip(range(0, len(words), self._stride), keys, strict=False):
            successive = successive + 1 if key in self._runs else 0
            if successive >= self._runs_in_ngram and (found := self._ngram_around(words, at)):
                return found
            if short is None and key in self._inside:
                short = self._short_around(words, at, key)
        return short

    def _ngram_around(self, words: list[str], at: int) -> Match | None:
        """The first n-gram whose last run is at ``at``."""
        last = min(at - (self._runs_in_ngram - 1) * self._stride, len(words) - self.n)
        for start in range(max(0, at + self._run - self.n), last + 1):
            ngram = " ".join(words[start : start + self.n])
            number = self._first.get(hash(ngram))
            if number is not None and f" {ngram} " in self._texts[number]:
                return Match(ngram, self._places[number])
        return None

    def _short_around(self, words: list[str], at: int, key: int) -> Match | None:
        """The first short benchmark text of which the run at ``at`` is a part."""
        for offset, number in self._inside[key]:
            text, start = self._texts[number], at - offset
            if start >= 0 and f" {' '.join(words[start : start + text.count(' ') - 1])} " == text:
                return Match(text.strip(), self._places[number])
        return None


def _runs_of(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[at:] for at in range(length)), strict=False)
