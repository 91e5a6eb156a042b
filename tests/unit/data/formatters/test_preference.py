"""Each formatter of preference sets: one row of its set's shape, and exactly what it gives."""

import random
from collections import Counter

import pytest

from solar_plugins.data.formatters import preference_formatters
from solar_plugins.data.formatters.base import RowError
from solar_plugins.data.template import render


def turn(role, content):
    return {"role": role, "content": content}


SCORED = {
    "source": "evol_instruct",
    "instruction": "2 + 2?",
    "completions": [
        {"response": "3", "overall_score": 2.0},
        {"response": "four", "overall_score": 7.5},
        {"response": "4", "overall_score": 9},
        {"response": "5", "overall_score": 9},
    ],
}
CASES = {
    "orca": (
        "orca_dpo_pairs",
        {"system": "Be brief.", "question": " 2 + 2?\n", "chosen": " 4", "rejected": "5 "},
        ("### System:\nBe brief.\n\n### User:\n2 + 2?\n\n### Assistant:\n", "4", "5"),
    ),
    "orca with an empty system text": (
        "orca_dpo_pairs",
        {"system": "", "question": "2 + 2?", "chosen": "4", "rejected": "5"},
        ("### User:\n2 + 2?\n\n### Assistant:\n", "4", "5"),
    ),
    "ultrafeedback": (
        "ultrafeedback_binarized",
        {
            "prompt": "2 + 2?",
            "chosen": [turn("user", "2 + 2?"), turn("assistant", "4")],
            "rejected": [turn("user", "2 + 2?"), turn("assistant", "5")],
            "score_chosen": 9.0,
        },
        ("### User:\n2 + 2?\n\n### Assistant:\n", "4", "5"),
    ),
    "ultrafeedback of several turns": (
        "ultrafeedback_binarized",
        {
            "chosen": [turn("user", "u"), turn("assistant", "a"), turn("user", "v"), turn("assistant", "4")],
            "rejected": [turn("user", "u"), turn("assistant", "a"), turn("user", "v"), turn("assistant", "5")],
        },
        ("### User:\nu\n\n### Assistant:\na### User:\nv\n\n### Assistant:\n", "4", "5"),
    ),
    "ultrafeedback with answers alone": (
        "ultrafeedback_binarized",
        {"prompt": [turn("user", "u")], "chosen": [turn("assistant", "4")], "rejected": [turn("assistant", "5")]},
        ("### User:\nu\n\n### Assistant:\n", "4", "5"),
    ),
    "scores": ("ultrafeedback_scores", SCORED, ("### User:\n2 + 2?\n\n### Assistant:\n", "4", "5")),
    "maths": (
        "math_pairs",
        {"rephrased_question": "What is 2 plus 2?", "rephrased_answer": "It is 4.", "original_answer": "4"},
        ("### User:\nWhat is 2 plus 2?\n\n### Assistant:\n", "It is 4.", "4"),
    ),
    "sharegpt": (
        "sharegpt_pairs",
        {
            "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "u"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        ("### System:\ns\n\n### User:\nu\n\n### Assistant:\n", "4", "5"),
    ),
    "sharegpt with answers as texts": (
        "sharegpt_pairs",
        {"conversations": "u", "chosen": "4", "rejected": "5"},
        ("### User:\nu\n\n### Assistant:\n", "4", "5"),
    ),
}


class LastChoice(random.Random):
    """A chance that always takes the last."""

    def choice(self, sequence):
        return sequence[-1]


def pair(name, row, chance=None):
    return preference_formatters()[name].to_pair(row, chance or LastChoice())


@pytest.mark.parametrize("case", CASES)
def test_it_gives_this_pair(case):
    name, row, texts = CASES[case]
    result = pair(name, row)
    assert (render(result.prompt, add_generation_prompt=True), result.chosen, result.rejected) == texts


def test_every_built_in_formatter_has_a_case():
    assert {name for name, _, _ in CASES.values()} == preference_formatters().keys()


def test_the_best_score_is_chosen_and_each_other_one_is_rejected_as_often():
    chance = random.Random(0)
    pairs = [pair("ultrafeedback_scores", SCORED, chance) for _ in range(3000)]
    assert {found.chosen for found in pairs} == {"4"}, "of two equal scores the first"
    rejected = Counter(found.rejected for found in pairs)
    assert rejected.keys() == {"3", "four", "5"}
    assert all(900 < count < 1100 for count in rejected.values())


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        ("orca_dpo_pairs", {"question": "q", "chosen": "a"}, "rejected is missing"),
        ("orca_dpo_pairs", {"question": "q", "chosen": "a", "rejected": {}}, "rejected is a dict, expected a text"),
        ("math_pairs", {"rephrased_question": "q", "rephrased_answer": " "}, "rephrased_answer is empty"),
        (
            "ultrafeedback_binarized",
            {
                "chosen": [turn("user", "u"), turn("assistant", "a")],
                "rejected": [turn("user", "v"), turn("assistant", "b")],
            },
            "rejected answers another prompt than chosen does",
        ),
        (
            "ultrafeedback_binarized",
            {"chosen": [turn("user", "u"), turn("assistant", "a")], "rejected": "b"},
            "rejected is a str, expected a list of messages",
        ),
        ("ultrafeedback_binarized", {"chosen": [turn("assistant", "a")], "rejected": []}, "prompt is missing"),
        (
            "ultrafeedback_binarized",
            {"chosen": [turn("user", "u"), turn("assistant", "")], "rejected": []},
            "chosen[1].content is empty",
        ),
        (
            "ultrafeedback_scores",
            {"instruction": "i", "completions": [{"response": "a", "overall_score": 1}]},
            "completions is [{'response': 'a', 'overall_score': 1}], expected a list of two completions or more",
        ),
        (
            "ultrafeedback_scores",
            {"instruction": "i", "completions": [SCORED["completions"][0], {"response": "b", "overall_score": "N/A"}]},
            "completions[1].overall_score is 'N/A', expected a number",
        ),
        (
            "ultrafeedback_scores",
            {
                "instruction": "i",
                "completions": [SCORED["completions"][0], {"response": "b", "overall_score": float("nan")}],
            },
            "completions[1].overall_score is nan, expected a number",
        ),
        (
            "sharegpt_pairs",
            {"conversations": [turn("user", "u"), turn("assistant", "a")], "chosen": "b", "rejected": "c"},
            "conversations does not end with the user's message",
        ),
        (
            "sharegpt_pairs",
            {"conversations": [turn("system", "")], "chosen": "b", "rejected": "c"},
            "conversations does not end with the user's message",
        ),
        (
            "sharegpt_pairs",
            {"conversations": [turn("user", "u")], "chosen": turn("user", "b"), "rejected": "c"},
            "chosen is the user's, expected the assistant's",
        ),
    ],
)
def test_bad_rows(name, row, problem):
    with pytest.raises(RowError) as error:
        pair(name, row)
    assert str(error.value) == problem
