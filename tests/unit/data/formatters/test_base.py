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


def test_text_is_unchanged():
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
def test_values_that_are_not_strings(value, words):
    assert problem(text, value, "output") == words


def test_optional_text():
    assert [optional_text(value, "system") for value in (None, "", " \n", " s ")] == ["", "", "", " s "]
    assert problem(optional_text, 0, "system") == "system has type int, expected a string"


def test_an_empty_system_message_is_left_out():
    assert question("u") == [USER]
    assert question("u", "s") == [{"role": "system", "content": "s"}, USER]
    assert single_turn("u", "a") == [USER, ANSWER]
