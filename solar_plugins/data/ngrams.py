"""Finds n-grams of words that a text shares with benchmark texts. Pure: strings in, matches out.

The idea is from GPT-3 (Brown et al. 2020, arXiv:2005.14165, app. C): a training text that shares 13 consecutive words
with a test set, ignoring case and punctuation, is probably contaminated.
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
"""Shorter benchmark texts are not searched for inside other texts. GPT-2 (Radford et al. 2019, section 4) and PaLM
(Chowdhery et al. 2022, arXiv:2204.02311, section 8) treated 8 consecutive words as a sign of contamination."""


class Searched(IntEnum):
    """How a benchmark text is searched for, the most sensitive way first."""

    NGRAMS = 0
    """Any n consecutive words of it."""
    INSIDE = 1
    """All of it, anywhere in a text, because it has fewer than n words."""
    EQUAL = 2
    """All of it, and only as an entire text, because it has fewer than `SHORTEST` words."""


class Place(NamedTuple):
    """The location of a benchmark text."""

    file: str
    row: int
    """From 1."""


class Match(NamedTuple):
    """Words that a text shares with a benchmark: the first ones in the text, and their first location."""

    ngram: str
    benchmark: Place


UNSPACED_SCRIPTS = (
    *("CJK UNIFIED", "CJK COMPATIBILITY", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "BOPOMOFO", "YI SYLLABLE"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "NEW TAI LUE", "TAI LE", "TAI THAM", "JAVANESE", "BALINESE"),
)
"""Prefixes of Unicode character names of scripts without spaces between words."""
UNSPOKEN_MARKS = ("COMBINING", "ARABIC", "HEBREW", "SYRIAC")
"""Prefixes of the names of optional marks: strike-throughs, and vowel points in scripts that are usually written
without them."""
IGNORED_NAMES = ("TATWEEL", "VARIATION SELECTOR", "FILLER", "GRAPHEME JOINER")
"""Suffixes of the names of invisible characters that Unicode classifies as letters or marks; a number may follow."""


class _KeptCharacters(dict[int, int | str | None]):
    """A table for `str.translate` that is filled in when a character first occurs."""

    def __missing__(self, code: int) -> int | str | None:
        self[code] = kept = _kept(chr(code))
        return kept


def _kept(character: str) -> int | str | None:
    """None for invisible characters and punctuation; spaces around a character that is a word of its own."""
    category, name = unicodedata.category(character), unicodedata.name(character, "")
    if category[0] in "PS" or (category in ("Cc", "Cf", "Cs") and not character.isspace()):
        return None
    if (category[0] == "M" and name.startswith(UNSPOKEN_MARKS)) or name.rstrip("-0123456789").endswith(IGNORED_NAMES):
        return None
    if name.startswith(UNSPACED_SCRIPTS):
        # A vowel or tone mark stays with its letter: the two are one character to a reader.
        return ord(character) if category[0] == "M" else f" {character} " if name[0] in "CHIKBY" else f" {character}"
    return ord(character)


_KEPT_CHARACTERS = _KeptCharacters()
_ENTITY = re.compile(r"&(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_LINE_END_HYPHENS = ("-\n", "-\r\n")
_OTHER_LINE_END_HYPHENS = ("\u00ad\n", "\u2010\n")
_DIVIDED_WORD = re.compile(r"(?<=\w)[-\u00ad\u2010]\r?\n(?=\w)")
_LOWER = bytes(range(256)).lower()
_DROPPED = bytes(code for code in range(128) if _kept(chr(code)) is None)
"""The same for ASCII, as byte tables: twice as fast as `str.translate`."""
_TYPOGRAPHIC = (("\u00a0", " "), *((one, "") for one in "\u2019\u2018\u201c\u201d\u2013\u2014\u2026\u2022"))
"""Characters that are the only ones beyond ASCII in most English texts, and what they become: no-break space, quotation
marks, dashes, ellipsis, bullet."""


def words_of(text: str) -> list[str]:
    """The normalized words: Unicode NFKC, case folded, without punctuation and symbols, split at white space.

    Symbols (Unicode categories S*) are removed like punctuation (P*), because ``$``, ``+`` and ``=`` vary between
    copies of the same mathematical text. Invisible characters are removed too: zero-width spaces and joiners, soft
    hyphens, variation selectors, control characters, unpaired surrogates; and the rarely written vowel points of Arabic
    and Hebrew. HTML entities are decoded: ``&nbsp;`` is a space, ``&#39;`` an apostrophe. A word that is hyphenated
    at the end of a line is one word.

    In scripts without spaces between words, such as Chinese, Japanese, Thai and Khmer, every character is a word.

    Example:
        >>> words_of("The well-known “ﬁle” costs $5,000 — 2 + 2 = FOUR.")
        ['the', 'wellknown', 'file', 'costs', '5000', '2', '2', 'four']
        >>> words_of("5个苹果。Two ap\u00adples")
        ['5', '个', '苹', '果', 'two', 'apples']
    """
    if "&" in text:
        text = _ENTITY.sub(lambda found: html.unescape(found[0]), text)
    hyphens = _LINE_END_HYPHENS if text.isascii() else _LINE_END_HYPHENS + _OTHER_LINE_END_HYPHENS
    if any(hyphen in text for hyphen in hyphens):
        text = _DIVIDED_WORD.sub("", text)
    plain = text
    if not text.isascii():
        for character, becomes in _TYPOGRAPHIC:
            plain = plain.replace(character, becomes)
    if plain.isascii():
        return plain.encode().translate(_LOWER, _DROPPED).decode().split()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return folded.translate(_KEPT_CHARACTERS).split()


class NgramIndex:
    """An index of the n-grams of benchmark texts, built once and queried for every row.

    A text matches if n consecutive words of it occur in a benchmark text. A benchmark text of fewer than n words has no
    n-gram and is compared as a whole: with at least `SHORTEST` words it matches every text that contains it, with fewer
    only a text of exactly these words. Otherwise every row that contains "yes" or "the capital of France" would be
    dropped.

    Few lookups find all matches. Any `SHORTEST` consecutive words contain a run of four that starts at a multiple of
    five, so only every fifth run of a text is looked up; an n-gram of 13 contains two such runs in succession. Runs and
    n-grams are stored as 64-bit hashes, and matches are verified against the text, so there are no false positives. A
    match can be missed only if two n-grams of the benchmarks have the same hash (1 in 10 million for three million
    words).

    Args:
        n: Words in an n-gram.
        texts: Benchmark texts and their locations. If several contain an n-gram, the first is reported.
    """

    def __init__(self, n: int, texts: Iterable[tuple[str, Place]]) -> None:
        self.n = n
        shortest = min(n, SHORTEST)
        self._run = (shortest + 1) // 2
        self._stride = shortest + 1 - self._run
        self._runs_in_ngram = (n - self._run + 1) // self._stride
        """The minimum number of runs at multiples of the stride in an n-gram."""
        self._runs: set[int] = set()
        self._first: dict[int, int] = {}
        self._inside: dict[int, list[tuple[int, int]]] = {}
        """By hash of a run: its offset in a short text, and the number of that text."""
        self._whole: dict[str, int] = {}
        self._texts: list[str] = []
        self._places: list[Place] = []
        self._searched: dict[Place, Searched] = {}
        for text, place in texts:
            self._add(words_of(text), place)

    def __len__(self) -> int:
        """The number of distinct n-grams."""
        return len(self._first)

    def rows(self, file: str) -> Counter[Searched]:
        """The number of rows of a benchmark file per `Searched`, each row by its longest text."""
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
        """The first n-gram of ``text`` that is in a benchmark text, else a short benchmark text inside it, else None.

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
        # Built and looked up without Python code per run; nearly all texts return here.
        keys = list(map(hash, zip(*(words[at :: self._stride] for at in range(self._run)), strict=False)))
        if not (found := self._runs.intersection(keys)):
            return None
        short, successive, last = None, 0, -1
        for number in [number for number, key in enumerate(keys) if key in found]:
            successive = successive + 1 if number == last + 1 else 1
            last, at, key = number, number * self._stride, keys[number]
            if successive >= self._runs_in_ngram and (match := self._ngram_around(words, at)):
                return match
            if short is None and key in self._inside:
                short = self._short_around(words, at, key)
        return short

    def _ngram_around(self, words: list[str], at: int) -> Match | None:
        """The first matching n-gram whose last run is at ``at``."""
        last = min(at - (self._runs_in_ngram - 1) * self._stride, len(words) - self.n)
        for start in range(max(0, at + self._run - self.n), last + 1):
            ngram = " ".join(words[start : start + self.n])
            number = self._first.get(hash(ngram))
            if number is not None and f" {ngram} " in self._texts[number]:
                return Match(ngram, self._places[number])
        return None

    def _short_around(self, words: list[str], at: int, key: int) -> Match | None:
        """The first short benchmark text that contains the run at ``at``."""
        for offset, number in self._inside[key]:
            text, start = self._texts[number], at - offset
            if start >= 0 and f" {' '.join(words[start : start + text.count(' ') - 1])} " == text:
                return Match(text.strip(), self._places[number])
        return None


def _runs_of(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[at:] for at in range(length)), strict=False)
