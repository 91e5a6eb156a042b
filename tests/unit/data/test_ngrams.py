import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_plugins.data.ngrams import Match, NgramIndex, Place, words_of

# Few words, so that texts share n-grams often.
texts = st.lists(st.sampled_from("abcd"), max_size=30).map(" ".join)


def naive_match(n, benchmarks, text):
    """Every n-gram of the text, from the left, against every n-gram of every benchmark text in order."""
    words = text.split()
    if len(words) < n:
        rows = [row for row, one in enumerate(benchmarks, 1) if one.split() == words]
        return (text, rows[0]) if words and rows else None
    for at in range(len(words) - n + 1):
        for row, one in enumerate(benchmarks, 1):
            held = one.split()
            if any(held[i : i + n] == words[at : at + n] for i in range(len(held) - n + 1)):
                return " ".join(words[at : at + n]), row
    return None


def index_of(n, benchmarks):
    return NgramIndex(n, [(text, Place("b", row)) for row, text in enumerate(benchmarks, 1)])


@given(st.integers(1, 14), st.lists(texts, max_size=6), texts)
def test_it_finds_what_a_naive_search_finds(n, benchmarks, text):
    expected = naive_match(n, benchmarks, text)
    found = index_of(n, benchmarks).match(text)
    assert found == (expected and Match(expected[0], Place("b", expected[1])))


@given(st.integers(1, 14), texts, texts, texts, st.data())
def test_a_piece_of_a_benchmark_is_found_wherever_it_stands(n, benchmark, before, after, data):
    words = benchmark.split()
    if len(words) < n:
        return
    at = data.draw(st.integers(0, len(words) - n))
    text = " ".join([before, *words[at : at + n], after])
    assert index_of(n, [benchmark]).match(text) is not None


@pytest.mark.parametrize("n", [1, 2, 5, 12, 13])
def test_n_words_are_enough_and_one_less_is_not(n):
    benchmark = [f"w{i}" for i in range(40)]
    index = index_of(n, [" ".join(benchmark)])
    for at in range(40 - n + 1):
        piece = ["x", "y", *benchmark[at : at + n], "z"]
        assert index.match(" ".join(piece)) == Match(" ".join(benchmark[at : at + n]), Place("b", 1))
        assert index.match(" ".join(["x"] * n + benchmark[at : at + n - 1] + ["z"] * n)) is None


def test_an_ngram_does_not_reach_over_two_texts():
    index = index_of(4, ["a b c d", "e f g h"])
    assert index.match("c d e f") is None
    assert index.match("e f g h").benchmark.row == 2


def test_the_first_place_is_named():
    index = index_of(2, ["x y", "a b", "a b c"])
    assert index.match("q a b c") == Match("a b", Place("b", 2))


def test_short_texts_are_compared_whole():
    index = index_of(13, ["The capital of France?", "Yes.", "..."])
    assert index.match("the CAPITAL of france") == Match("the capital of france", Place("b", 1))
    assert index.match("yes") == Match("yes", Place("b", 2))
    assert index.match("What is the capital of France? Yes. " * 5) is None, "a long text holds it, and is another"
    assert index.match("the capital of") is None
    assert index.match("") is index.match("?!") is None, "no words are no match"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop-- e.g. 3.5%", "dont stop eg 35"),
        ("\uff26\uff35\uff2c\uff2c \ufb01", "full fi"),  # NFKC: full width, a ligature
        ("Straße STRASSE İ", "strasse strasse i̇"),  # case folding
        ("“quotes” — dash… ¿qué? «no»", "quotes dash qué no"),
        ("$5 + €7 = x_1", "5 7 x1"),
        ("tab\tnew\nline\u00a0nbsp\u3000wide", "tab new line nbsp wide"),
        ("नमस्ते दुनिया।", "नमस्ते दुनिया"),  # marks belong to words
        ("e\u0301 \u00e9", "é é"),  # one letter in two spellings
    ],
)
def test_words_of(text, words):
    assert words_of(text) == words.split()


@given(st.text())
def test_words_do_not_change_when_taken_again(text):
    words = words_of(text)
    assert words_of(" ".join(words)) == words


@given(st.text(alphabet=string.printable))
def test_the_fast_way_for_ascii_gives_the_same_words(text):
    assert [*words_of(text), "é"] == words_of(f"{text} é")
