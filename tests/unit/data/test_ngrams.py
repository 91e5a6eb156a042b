import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_plugins.data.ngrams import _TYPOGRAPHIC, Match, NgramIndex, Place, Searched, words_of

# Few words, so that texts share n-grams often.
texts = st.lists(st.sampled_from("abcd"), max_size=30).map(" ".join)


def naive_match(n, benchmarks, text):
    """Every n-gram of the text, from the left, against every n-gram of every benchmark text in order.

    Texts that are too short for one are compared as a whole; `naive_short` says which of them others contain.
    """
    words = text.split()
    if len(words) < n and (rows := [row for row, one in enumerate(benchmarks, 1) if one.split() == words]) and words:
        return text, rows[0]
    for at in range(len(words) - n + 1):
        for row, one in enumerate(benchmarks, 1):
            held = one.split()
            if any(held[i : i + n] == words[at : at + n] for i in range(len(held) - n + 1)):
                return " ".join(words[at : at + n]), row
    return None


def naive_short(n, benchmarks, text):
    """The benchmark texts without an n-gram, of 8 words or more, that the text contains."""
    return {one for one in benchmarks if 8 <= len(one.split()) < n and f" {one} " in f" {text} "}


def index_of(n, benchmarks):
    return NgramIndex(n, [(text, Place("b", row)) for row, text in enumerate(benchmarks, 1)])


@given(st.integers(1, 14), st.lists(texts, max_size=6), texts)
def test_it_finds_what_a_naive_search_finds(n, benchmarks, text):
    expected = naive_match(n, benchmarks, text)
    found = index_of(n, benchmarks).match(text)
    if expected is None and (short := naive_short(n, benchmarks, text)):
        assert found.ngram in short
        assert benchmarks[found.benchmark.row - 1] == found.ngram
    else:
        assert found == (expected and Match(expected[0], Place("b", expected[1])))


@given(st.integers(1, 14), texts, texts, texts, st.data())
def test_part_of_a_benchmark_is_found_anywhere(n, benchmark, before, after, data):
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


def test_an_ngram_does_not_span_texts():
    index = index_of(4, ["a b c d", "e f g h"])
    assert index.match("c d e f") is None
    assert index.match("e f g h").benchmark.row == 2


def test_the_first_place_is_named():
    index = index_of(2, ["x y", "a b", "a b c"])
    assert index.match("q a b c") == Match("a b", Place("b", 2))


@pytest.mark.parametrize("length", range(8, 13))
@pytest.mark.parametrize("before", range(8))
def test_a_short_text_is_found_anywhere(length, before):
    words = [f"w{i}" for i in range(length)]
    index = index_of(13, ["some other text of a benchmark", " ".join(words)])
    others = ["x"] * before
    assert index.match(" ".join([*others, *words, "y", "y"])) == Match(" ".join(words), Place("b", 2))
    assert index.match(" ".join([*others, *words])) == Match(" ".join(words), Place("b", 2))
    assert index.match(" ".join([*others, *words[:-1], "y", "y"])) is None, "a part of it is not enough"
    assert index.match(" ".join([*others, *words[1:], "y"])) is None


@pytest.mark.parametrize(
    "text",
    [
        "小明有五个苹果、他又买了三个苹果。然后送给小红两个。请问小明现在一共有多少个苹果",
        "太郎はりんごを五個持っています。花子に二個あげました。残りはいくつですか。",
        "สมชายมีแอปเปิ้ลห้าลูก เขาให้สมหญิงสองลูก เหลือกี่ลูก",
        "ខ្ញុំមានផ្លែប៉ោមប្រាំផ្លែ ហើយឱ្យមិត្តពីរផ្លែ",
        "ကျွန်တော့်မှာ ပန်းသီးငါးလုံးရှိပြီး သူငယ်ချင်းကို နှစ်လုံးပေးလိုက်တယ်",
    ],
)
def test_languages_without_spaces(text):
    index = index_of(13, [text])
    assert index.rows("b") == {Searched.NGRAMS: 1}
    half = text[: len(text) * 2 // 3]
    assert index.match(f"Answer this: {half} 了") is not None
    assert index.match(text[::-1]) is None


def test_rows_are_counted_by_how_they_are_searched():
    texts = [("a " * 13, Place("b", 1)), ("yes", Place("b", 1)), ("b " * 12, Place("b", 2)), ("no", Place("b", 3))]
    index = NgramIndex(13, [*texts, ("?", Place("b", 4)), ("b " * 12, Place("c", 1))])
    assert index.rows("b") == {Searched.NGRAMS: 1, Searched.INSIDE: 1, Searched.EQUAL: 2}, "a row by its longest text"
    assert index.rows("c") == {Searched.INSIDE: 1}, "though another file has the text too"
    assert len(index) == 1


def test_very_short_texts_match_only_as_a_whole():
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
        ("Straße STRASSE İ", "strasse strasse i"),  # case folding; the dot above a Turkish İ is a mark of its own then
        ("“quotes” — dash… ¿qué? «no»", "quotes dash qué no"),
        ("$5 + €7 = x_1", "5 7 x1"),
        ("tab\tnew\nline\u00a0nbsp\u3000wide", "tab new line nbsp wide"),
        ("नमस्ते दुनिया।", "नमस्ते दुनिया"),  # marks belong to words
        ("e\u0301 \u00e9", "é é"),  # one letter in two spellings
        # invisible: zero-width space, joiners, soft hyphen, byte order mark, bidi marks, word joiner, variation
        # selectors, grapheme joiner; Hangul filler, control characters, half a character
        *(
            (f"wa{mark}ter", "water")
            for mark in "\u200b\u200c\u200d\u00ad\ufeff\u200e\u202e\u2060\ufe0f\U000e0100\u034f"
        ),
        *((f"wa{mark}ter", "water") for mark in "\u3164\x00\x1b\x7f\x9f\ud83d"),
        ("\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd", "\u05e9\u05dc\u05d5\u05dd"),  # Hebrew and Arabic with vowels
        (
            "\u0643\u064e\u062a\u064e\u0628\u064e \u0643\u0640\u0640\u062a\u0628",
            "\u0643\u062a\u0628 \u0643\u062a\u0628",
        ),  # and stretched
        ("don&#39;t&nbsp;stop &amp; &x", "dont stop x"),  # what a web page left
        ("s\u0336t\u0336r\u0336uck", "struck"),  # strokes that make no letter
        # divided at the end of a line by a hyphen of any kind; dashes and signs of lists divide nothing
        ("con-\ntami\u00ad\nna\u2010\ntion well-\r\nknown", "contamination wellknown"),
        ("a - \nb--\nc -\n- d\n-e", "a b c d e"),
        ("5个苹果。and kana カナ", "5 个 苹 果 and kana カ ナ"),
        ("ﾃﾞｰﾀ 々", "デ ー タ 々"),  # half width; the sign that repeats a character
        ("น้ำ 3", "น้ํ า 3"),  # a tone mark stays with its letter
        ("한국어 단어", "한국어 단어"),  # Korean has spaces
        ("བོད་སྐད", "བོ ད སྐ ད"),
    ],
)
def test_words_of_a_text(text, words):
    assert words_of(text) == words.split()


@given(st.text())
def test_normalization_is_idempotent(text):
    words = words_of(text)
    assert words_of(" ".join(words)) == words


@given(st.text(alphabet=string.printable))
def test_the_fast_way_for_ascii_gives_the_same_words(text):
    assert [*words_of(text), "é"] == words_of(f"{text} é")


TYPOGRAPHIC = [one for one, _ in _TYPOGRAPHIC]


@given(st.lists(st.sampled_from([*TYPOGRAPHIC, *"a1 -\n\u0301\u00ad\u2010\u3000", "&#39;"])))
def test_typographic_characters_take_the_short_way_to_the_same_words(characters):
    text = "".join(characters)
    assert words_of(text) == words_of(f"{text} \u4e2d")[:-1], "the last word makes it take the long way"
