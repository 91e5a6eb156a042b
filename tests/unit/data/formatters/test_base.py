import pytest

from solar_plugins.data.formatters.base import (
    RowError,
    answer_of,
    optional_text,
    question,
    read_message,
    read_messages,
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
        (3, "output is a int, expected a text"),
        (["a"], "output is a list, expected a text"),
    ],
)
def test_what_is_no_text(value, words):
    assert problem(text, value, "output") == words


def test_a_text_that_may_be_missing():
    assert [optional_text(value, "system") for value in (None, "", " \n", " s ")] == ["", "", "", " s "]
    assert problem(optional_text, 0, "system") == "system is a int, expected a text"


def test_an_empty_system_text_gives_no_message():
    assert question("u") == [USER]
    assert question("u", "s") == [{"role": "system", "content": "s"}, USER]
    assert single_turn("u", "a") == [USER, ANSWER]


def test_both_forms_of_a_message():
    assert read_message({"role": "user", "content": "u"}, "m") == USER
    assert read_message({"from": "human", "value": "u"}, "m") == USER
    assert read_message({"from": "gpt", "value": "a"}, "m") == ANSWER
    assert read_message({"from": "human", "value": "u", "role": None, "content": None}, "m") == USER, (
        "a set that joins both forms has all four columns"
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("hello", "m is a str, expected a message"),
        ({}, "m.role is missing"),
        ({"role": "user"}, "m.content is missing"),
        ({"from": "human", "value": ""}, "m.value is empty"),
        (
            {"from": "observation", "value": "{}"},
            "m.from is 'observation', expected one of system, user, human, assistant, gpt, chatgpt",
        ),
    ],
)
def test_what_is_no_message(value, words):
    assert problem(read_message, value, "m") == words


def test_a_conversation():
    assert read_messages([USER, ANSWER, USER, ANSWER], "messages") == [USER, ANSWER, USER, ANSWER]
    assert read_messages([{"role": "system", "content": ""}, USER], "messages") == [USER]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "m is missing"),
        ("u", "m is a str, expected a list of messages"),
        ([], "m is empty"),
        ([ANSWER, USER], "m[0] is the assistant's, expected the user's"),
        ([USER, USER], "m[1] is the user's, expected the assistant's"),
        ([USER, {"role": "system", "content": "s"}], "m[1] is the system's, expected the assistant's"),
        ([{"role": "system", "content": "s"}, ANSWER], "m[1] is the assistant's, expected the user's"),
        ([USER, {"role": "assistant", "content": " "}], "m[1].content is empty"),
    ],
)
def test_what_is_no_conversation(value, words):
    assert problem(read_messages, value, "m") == words


def test_the_last_answer():
    assert answer_of([USER, ANSWER], "m") == ([USER], "a")
    for short in ([], [USER], [ANSWER], [USER, ANSWER, USER]):
        assert problem(answer_of, short, "m") == "m does not end with an answer of the assistant"
