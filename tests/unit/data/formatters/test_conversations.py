import json
import re

import pytest
from formatter_rows import ANSWER, LISTS, USER

from solar_plugins.data.formatters import preference_formatters, sft_formatters
from solar_plugins.data.formatters.base import RowError
from solar_plugins.data.formatters.conversations import answer_of, read_message, read_messages

DEVELOPER = {"role": "developer", "content": "Be brief."}
SYSTEM = DEVELOPER | {"role": "system"}


def problem(function, *arguments):
    with pytest.raises(RowError) as error:
        function(*arguments)
    return str(error.value)


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
        ("hello", "^m .*str, expected a message"),
        ({}, r"^m\.role is missing"),
        ({"role": "user"}, r"^m\.content is missing"),
        ({"from": "human", "value": ""}, r"^m\.value is empty"),
        (
            {"from": "observation", "value": "{}"},
            r"^m\.from is 'observation', expected one of system, developer, user, human, assistant, gpt, chatgpt",
        ),
    ],
)
def test_invalid_messages(value, words):
    assert re.search(words, problem(read_message, value, "m"))


def test_a_conversation():
    assert read_messages([USER, ANSWER, USER, ANSWER], "messages") == [USER, ANSWER, USER, ANSWER]
    assert read_messages([{"role": "system", "content": ""}, USER], "messages") == [USER]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "^m is missing"),
        (7, "^m .*int, expected a list of messages"),
        ([], "^m is empty"),
        ([ANSWER, USER], r"^m\[0\] .*assistant, expected user"),
        ([USER, USER], r"^m\[1\] .*user, expected assistant"),
        (
            [USER, {"role": "system", "content": "s"}],
            r"^m\[1\] .*system, expected assistant; .*first",
        ),
        ([{"role": "system", "content": "s"}, ANSWER], r"^m\[1\] .*assistant, expected user"),
        ([USER, {"role": "assistant", "content": " "}], r"^m\[1\]\.content is empty"),
    ],
)
def test_invalid_conversations(value, words):
    assert re.search(words, problem(read_messages, value, "m"))


def test_the_last_answer():
    assert answer_of([USER, ANSWER], "m") == ([USER], "a")
    for short in ([], [USER], [ANSWER], [USER, ANSWER, USER]):
        assert problem(answer_of, short, "m") == "m does not end with an answer of the assistant"


@pytest.mark.parametrize("role", ["tool", "function", "function_call", "observation", "ipython", "bing"])
def test_roles_that_the_template_lacks_are_rejected(role):
    with pytest.raises(RowError, match="expected one of system, developer, user"):
        read_messages([USER, {"role": role, "content": "x"}, ANSWER], "m")


def test_a_developer_message_is_the_system_message():
    """OpenAI's name for it since o1."""
    assert read_messages([DEVELOPER, USER, ANSWER], "m") == [SYSTEM, USER, ANSWER]
    for place, messages in ((1, [SYSTEM, DEVELOPER, USER, ANSWER]), (2, [USER, ANSWER, DEVELOPER, USER, ANSWER])):
        with pytest.raises(RowError, match=rf"^m\[{place}\] .*developer, .*first"):
            read_messages(messages, "m")


def test_messages_as_json():
    written = json.dumps([USER, ANSWER])
    assert sft_formatters()["messages"].to_messages({"messages": written}) == [USER, ANSWER]
    marked = sft_formatters()["messages"].to_messages({"messages": json.dumps([USER, ANSWER] * 2), "loss_mask": [0, 1]})
    assert marked == [USER, ANSWER | {"learn": False}, USER, ANSWER]
    pairs = preference_formatters()
    row = {column: json.dumps(messages) for column, messages in LISTS.items()}
    assert pairs["ultrafeedback_binarized"].to_pair(row, None) == ([USER], "a", "b")
    row = {"conversations": json.dumps([USER]), "chosen": "a", "rejected": "b"}
    assert pairs["sharegpt_pairs"].to_pair(row, None) == ([USER], "a", "b")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (repr([USER, ANSWER]), "holds messages serialized as a string that is not JSON .*json.dumps"),
        ('[{"role": "user",', "holds messages serialized as a string that is not JSON"),
        ("Hi", "is a string, expected a list of messages"),
        ('{"role": "user"}', "is a string, expected a list"),
        ("[]", "is empty"),
        ("  ", "is empty"),
        ("[" * 100_000, "holds messages serialized as a string that is not JSON"),
        ("[1]", r"\[0\] .*int, expected a message"),
        (7, ".*int, expected a list of messages"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_strings_that_are_not_messages(value, problem):
    for name, column in (("messages", "messages"), ("sharegpt", "conversations")):
        with pytest.raises(RowError, match=rf"^{column} ?{problem}"):
            sft_formatters()[name].to_messages({column: value})
