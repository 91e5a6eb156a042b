"""Which n-grams of words a text shares with benchmark texts. Pure: strings in, matches out.

The idea is that of GPT-3 (Brown et al. 2020, arXiv:2005.14165, app. C): a training text that shares 13 words in a row
with a test set, case and punctuation aside, probably holds a part of that set.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

DEFAULT_NGRAM = 13


class Place(NamedTuple):
    """Where a benchmark text stands."""

    file: str
    row: int
    """Counted from 1."""


class Match(NamedTuple):
    """Words that a text and a benchmark share: the first that the text has, and the first place that holds them."""

    ngram: str
    benchmark: Place


class _KeptCharacters(dict[int, int | None]):
    """A table for `str.translate` that drops punctuation and symbols; it learns each character when it first comes."""

    def __missing__(self, code: int) -> int | None:
        self[code] = kept = None if unicodedata.category(chr(code))[0] in "PS" else code
        return kept


_KEPT_CHARACTERS = _KeptCharacters()


def words_of(text: str) -> list[str]:
    """The words that are compared: Unicode NFKC, case folded, punctuation and symbols dropped, split at white space.

    Symbols (Unicode categories S*) go with punctuation (P*), because the two are one thing to a reader of ``2 + 2 = 4``
    and because ``$``, ``+`` and ``=`` differ most between copies of one mathematical text.

    Example:
        >>> words_of("The well-known “ﬁle” costs $5,000 — 2 + 2 = FOUR.")
        ['the', 'wellknown', 'file', 'costs', '5000', '2', '2', 'four']
    """
    if text.isascii():
        return text.lower().translate(_KEPT_CHARACTERS).split()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return folded.translate(_KEPT_CHARACTERS).split()


class NgramIndex:
    """The n-grams of benchmark texts, made once and asked for every row.

    A text of n or more words matches if n of them in a row stand in one benchmark text. A benchmark text of fewer than
    n words has no n-gram, so it is compared whole: it matches a text that consists of the same words, and no other. A
    shorter n-gram for it would drop every row that happens to contain "yes" or "the capital of France".

    Few look-ups find all matches: an n-gram at any position holds a run of ``(n + 1) // 2`` words that starts at a
    multiple of that length, so for n = 13 every seventh run is looked up, and only where a benchmark holds it, the
    n-grams around it are. Runs and n-grams are kept as 64-bit hashes, and a match is compared with the text itself: it
    is never wrong. One could be missed if two different n-grams of the benchmarks had one hash (1 in 10 million for
    three million words).

    Args:
        n: Words in an n-gram.
        texts: Benchmark texts and their places. Where several hold an n-gram, the first is reported.
    """

    def __init__(self, n: int, texts: Iterable[tuple[str, Place]]) -> None:
        self.n = n
        self._run = (n + 1) // 2
        self._runs: set[int] = set()
        self._first: dict[int, int] = {}
        self._whole: dict[str, int] = {}
        self._texts: list[str] = []
        self._places: list[Place] = []
        for text, place in texts:
            self._add(words_of(text), place)

    def __len__(self) -> int:
        """Number of different n-grams, and of texts too short to have one."""
        return len(self._first) + len(self._whole)

    def _add(self, words: list[str], place: Place) -> None:
        if not words:
            return
        number = len(self._texts)
        self._texts.append(f" {' '.join(words)} ")
        self._places.append(place)
        if len(words) < self.n:
            self._whole.setdefault(" ".join(words), number)
            return
        for ngram in _runs_of(words, self.n):
            self._first.setdefault(hash(ngram), number)
        self._runs.update(map(hash, _runs_of(words, self._run)))

    def match(self, text: str) -> Match | None:
        """The first n-gram of ``text`` that a benchmark text holds, or None.

        Example:
            >>> index = NgramIndex(3, [("One two, three four.", Place("b.jsonl", 1)), ("Yes!", Place("b.jsonl", 2))])
            >>> index.match("so: TWO THREE FOUR five")
            Match(ngram='two three four', benchmark=Place(file='b.jsonl', row=1))
            >>> index.match("yes").benchmark.row, index.match("yes it is so")
            (2, None)
        """
        words = words_of(text)
        if len(words) < self.n:
            number = self._whole.get(" ".join(words))
            return None if number is None else Match(" ".join(words), self._places[number])
        runs, run = self._runs, self._run
        for at in range(0, len(words) - run + 1, run):
            if hash(" ".join(words[at : at + run])) in runs:
                found = self._match_around(words, at)
                if found:
                    return found
        return None

    def _match_around(self, words: list[str], at: int) -> Match | None:
        """The first n-gram that holds the run at ``at``."""
        for start in range(max(0, at + self._run - self.n), min(at, len(words) - self.n) + 1):
            ngram = " ".join(words[start : start + self.n])
            number = self._first.get(hash(ngram))
            if number is not None and f" {ngram} " in self._texts[number]:
                return Match(ngram, self._places[number])
        return None


def _runs_of(words: list[str], length: int) -> Iterator[str]:
    return (" ".join(words[at : at + length]) for at in range(len(words) - length + 1))
