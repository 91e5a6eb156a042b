import pytest

from solar_plugins.data.formatters.base import (
    RowError,
    optional_text,
    question,
    single_turn,
    text,
)

USER, ANSWER = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}


def problem(function, *arguments):
    with pytest.raises(RowError) as error:
        function(*arguments)
    return str(error.value)


def test_a_text_stays_as_it_is():
    assert text("  \n a\n\n  b \t\n", "x") == "  \n a\n\n  b \t\n"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "output is missing"),
        (" \n", "output is empty"),
        ("", "output is empty"),
        (3, "output has type int, expected a string"),
        (["a"], "output has type list, expected a string"),
    ],
)
def test_what_is_no_text(value, words):
    assert problem(text, value, "output") == words


def test_a_text_that_may_be_missing():
    assert [optional_text(value, "system") for value in (None, "", " \n", " s ")] == ["", "", "", " s "]
    assert problem(optional_text, 0, "system") == "system has type int, expected a string"


def test_an_empty_system_text_gives_no_message():
    assert question("u") == [USER]
    assert question("u", "s") == [{"role": "system", "content": "s"}, USER]
    assert single_turn("u", "a") == [USER, ANSWER]
