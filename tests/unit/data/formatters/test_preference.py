"""Each formatter for preference datasets: a row of its form, and exactly what it returns."""

import json
import random
from collections import Counter

import pytest

from solar_plugins.data.formatters import preference_formatters, unpaired_formatters
from solar_plugins.data.formatters.base import NothingToLearn, RowError
from solar_plugins.data.formatters.columns import SCORE_COLUMNS
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
        ("### System:\nBe brief.\n\n### User:\n 2 + 2?\n\n\n### Assistant:\n", " 4", "5 "),
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
    "scores": ("ultrafeedback_scores", SCORED, ("### User:\n2 + 2?\n\n### Assistant:\n", "4", "four")),
    "TRL's form: texts": (
        "preference",
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        ("### User:\n2 + 2?\n\n### Assistant:\n", "4", "5"),
    ),
    "TRL's form: messages": (
        "preference",
        {"prompt": [turn("user", "u")], "chosen": [turn("assistant", "4")], "rejected": [turn("assistant", "5")]},
        ("### User:\nu\n\n### Assistant:\n", "4", "5"),
    ),
    "TRL's form: the prompt in the lists alone": (
        "preference",
        {
            "chosen": [turn("user", "u"), turn("assistant", "4")],
            "rejected": [turn("user", "u"), turn("assistant", "5")],
        },
        ("### User:\nu\n\n### Assistant:\n", "4", "5"),
    ),
    "truthy-dpo: system, prompt and texts": (
        "preference",
        {"system": "s", "prompt": "u", "chosen": "4", "rejected": "5", "source": "x"},
        ("### System:\ns\n\n### User:\nu\n\n### Assistant:\n", "4", "5"),
    ),
    "argilla's Orca pairs": (
        "preference",
        {"system": "s", "input": "u", "chosen": "4", "rejected": "5", "status": "unchanged", "rating": [9, 7]},
        ("### System:\ns\n\n### User:\nu\n\n### Assistant:\n", "4", "5"),
    ),
    "LLaMA-Factory's Alpaca pairs": (
        "preference",
        {"instruction": "Add.", "input": "2, 2", "chosen": "4", "rejected": "5"},
        ("### User:\nAdd.\n\n2, 2\n\n### Assistant:\n", "4", "5"),
    ),
    "hh-rlhf": (
        "hh_rlhf",
        {
            "chosen": "\n\nHuman: u\n\nmore\n\nAssistant: a\n\nHuman: v\n\nAssistant:  4",
            "rejected": "\n\nHuman: u\n\nmore\n\nAssistant: a\n\nHuman: v\n\nAssistant: 5",
        },
        ("### User:\nu\n\nmore\n\n### Assistant:\na### User:\nv\n\n### Assistant:\n", " 4", "5"),
    ),
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
    """An rng that always chooses the last."""

    def choice(self, sequence):
        return sequence[-1]


def pair(name, row, rng=None):
    return preference_formatters()[name].to_pair(row, rng or LastChoice())


@pytest.mark.parametrize("case", CASES)
def test_the_pair_of_a_row(case):
    name, row, texts = CASES[case]
    result = pair(name, row)
    assert (render(result.prompt, add_generation_prompt=True), result.chosen, result.rejected) == texts


def test_every_built_in_formatter_has_a_case():
    assert {name for name, _, _ in CASES.values()} == preference_formatters().keys()


def test_the_best_score_is_chosen_and_each_worse_one_is_rejected_equally_often():
    rng = random.Random(0)
    pairs = [pair("ultrafeedback_scores", SCORED, rng) for _ in range(2000)]
    assert {found.chosen for found in pairs} == {"4"}, "of two equal scores the first"
    rejected = Counter(found.rejected for found in pairs)
    assert rejected.keys() == {"3", "four"}, "one of the same score is not worse"
    assert all(900 < count < 1100 for count in rejected.values())


def scored(*scores):
    """A row with completions of these overall and fine-grained scores, named by their index."""
    completions = [
        {"response": str(place), "overall_score": overall, "fine-grained_score": fine}
        for place, (overall, fine) in enumerate(scores)
    ]
    return {"instruction": "i", "completions": completions}


EMPTY, UNSCORED, CONTRADICTS = "empty", "without overall_score", "contradicts the fine-grained score"


@pytest.mark.parametrize(
    ("row", "chosen", "rejected", "notes"),
    [
        (scored((8.5, 4.75), (7, 4.0)), "0", {"1"}, ()),
        # OpenBMB/UltraFeedback, issue 8: an overall score of 10 that the critique's 1 became
        (scored((8.5, 4.75), (10, 1.0), (7, 4.0)), "0", {"2"}, (CONTRADICTS,)),
        (scored((8.5, 4.75), (10, 2.5), (7, 4.0)), "0", {"2"}, (CONTRADICTS,)),
        (scored((8, 4.0), (1, 5.0), (7, 3.0)), "0", {"2"}, (CONTRADICTS,)),
        # the order of two completions
        (scored((9, 4.0), (8, 4.5), (7, 4.0)), "0", {"2"}, ()),
        (scored((9, 4.0), (9, 4.5), (7, 4.0)), "1", {"2"}, ()),
        (scored((9, None), (8, 4.5), ("7", "N/A")), "0", {"1", "2"}, ()),
        # what cannot be used
        (scored((9, 4.5), ("N/A", 4.5), (7, 3.0), (float("nan"), 2.0)), "0", {"2"}, (UNSCORED, UNSCORED)),
    ],
)
def test_scores_of_ultrafeedback(row, chosen, rejected, notes):
    pairs = [pair("ultrafeedback_scores", row, random.Random(seed)) for seed in range(20)]
    assert {found.chosen for found in pairs} == {chosen}
    assert {found.rejected for found in pairs} == rejected
    for found in pairs:
        assert all(note in shown for note, shown in zip(notes, getattr(found, "notes", ()), strict=True))


@pytest.mark.parametrize("nothing", ["", " \n", None])
def test_an_empty_completion_does_not_lose_the_row(nothing):
    row = scored((9, None), (1, None), (7, None))
    row["completions"][1]["response"] = nothing
    found = pair("ultrafeedback_scores", row)
    assert (found.chosen, found.rejected) == ("0", "2")
    assert EMPTY in found.notes[0]


def test_the_ratings_of_older_copies_stand_for_the_fine_grained_score():
    row = scored((8, None), (10, None), (6, None))
    row["completions"][1]["annotations"] = {
        aspect: {"Rating": rating} for aspect, rating in [("honesty", "1"), ("truthfulness", "2"), ("helpful", "N/A")]
    }
    found = pair("ultrafeedback_scores", row)
    assert (found.chosen, found.rejected) == ("0", "2")
    assert CONTRADICTS in found.notes[0]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (scored((7, 4), (7, 4), (7, 4)), "^completions .*same overall_score"),
        (scored((8, 3.5), (7, 4)), "^completions .*fine-grained scores contradict"),
    ],
)
def test_scores_without_a_preference_are_not_bad_rows(row, problem):
    with pytest.raises(NothingToLearn, match=problem):
        pair("ultrafeedback_scores", row)


TEXTS = {"prompt": "u", "question": "u", "rephrased_question": "u", "conversations": "u"}
ANSWERS = {"chosen": "4", "rejected": "5", "rephrased_answer": "4", "original_answer": "5"}
LISTS = {name: [turn("user", "u"), turn("assistant", answer)] for name, answer in (("chosen", "4"), ("rejected", "5"))}
TRANSCRIPTS = {name: f"\n\nHuman: u\n\nAssistant: {name}" for name in LISTS}
OF_PAIRS = {
    "preference": TEXTS | ANSWERS,
    "orca_dpo_pairs": TEXTS | ANSWERS,
    "math_pairs": TEXTS | ANSWERS,
    "sharegpt_pairs": TEXTS | ANSWERS,
    "ultrafeedback_binarized": LISTS,
    "hh_rlhf": TRANSCRIPTS,
}


@pytest.mark.parametrize("name", OF_PAIRS)
@pytest.mark.parametrize(
    ("marks", "problem"),
    [
        ({"status": "tie"}, "^status is .*tie.*neither"),
        ({"status": "swapped", "score_chosen": 8, "score_rejected": 7.5}, None),
        *(
            pytest.param({better: x, worse: y}, problem, id=f"{better} {x}")
            for better, worse in SCORE_COLUMNS
            for x, y, problem in [
                (8, 7.5, None),
                (8, "N/A", None),
                (8, 8.0, f"^{better} equals {worse}.*neither"),
                (6, 8, f"^{better} is lower than {worse}"),
            ]
        ),
    ],
)
def test_ties_are_left_out(name, marks, problem):
    if problem is None:
        assert pair(name, OF_PAIRS[name] | marks)
        return
    with pytest.raises(NothingToLearn, match=problem):
        pair(name, OF_PAIRS[name] | marks)


def test_every_pair_formatter_is_tested():
    assert OF_PAIRS.keys() == preference_formatters().keys() - {"ultrafeedback_scores"}


def test_a_masked_answer_makes_no_pair():
    marked = turn("assistant", "4") | {"weight": 0}
    other = turn("assistant", "5")
    for name, row in [
        ("preference", {"prompt": "u", "chosen": [marked], "rejected": [other]}),
        ("preference", {"prompt": "u", "chosen": "4", "rejected": other | {"train": False}}),
        ("ultrafeedback_binarized", {"chosen": [turn("user", "u"), marked], "rejected": [turn("user", "u"), other]}),
        ("sharegpt_pairs", {"conversations": "u", "chosen": marked, "rejected": other}),
    ]:
        with pytest.raises(NothingToLearn, match="not to be trained on"):
            pair(name, row)
    earlier = [turn("user", "u"), marked, turn("user", "v")]
    assert pair("preference", {"prompt": earlier, "chosen": "4", "rejected": "5"}).chosen == "4", "it is context"


@pytest.mark.parametrize("dump", [json.dumps, repr])
def test_serialized_messages_are_not_an_answer(dump):
    row = {"prompt": "u", "chosen": [turn("assistant", "4")], "rejected": [turn("assistant", "5")]}
    for column in row:
        with pytest.raises(RowError, match=f"^{column} holds messages serialized as a string"):
            pair("preference", row | {column: dump([turn("user", "u"), turn("assistant", "4")])})


def test_labeled_answers():
    read = unpaired_formatters()["unpaired_preference"].to_answer
    asked = [turn("user", "u")]
    assert read({"prompt": "u", "completion": "4", "label": True}) == (asked, "4", True)
    assert read({"prompt": asked, "completion": [turn("assistant", "4")], "label": False}) == (asked, "4", False)
    assert read({"completion": [*asked, turn("assistant", "4")], "label": False}) == (asked, "4", False)
    for number in (0, 1):
        label = read({"prompt": "u", "completion": "4", "label": number}).label
        assert label is bool(number)
    for label in (None, 2, "true"):
        with pytest.raises(RowError, match=r"^label is .*, expected true"):
            read({"prompt": "u", "completion": "4", "label": label})


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        ("orca_dpo_pairs", {"question": "q", "chosen": "a"}, "^rejected is missing"),
        ("orca_dpo_pairs", {"question": "q", "chosen": "a", "rejected": {}}, "^rejected .*dict, expected a string"),
        ("math_pairs", {"rephrased_question": "q", "rephrased_answer": " "}, "rephrased_answer is empty"),
        (
            "ultrafeedback_binarized",
            {
                "chosen": [turn("user", "u"), turn("assistant", "a")],
                "rejected": [turn("user", "v"), turn("assistant", "b")],
            },
            "^rejected answers a different prompt",
        ),
        (
            "ultrafeedback_binarized",
            {"chosen": [turn("user", "u"), turn("assistant", "a")], "rejected": "b"},
            "^rejected is a string, expected a list of messages",
        ),
        ("ultrafeedback_binarized", {"chosen": [turn("assistant", "a")], "rejected": []}, "prompt is missing"),
        (
            "ultrafeedback_binarized",
            {"chosen": [turn("user", "u"), turn("assistant", "")], "rejected": []},
            r"^chosen\[1\]\.content is empty",
        ),
        (
            "ultrafeedback_scores",
            {"instruction": "i", "completions": [{"response": "a", "overall_score": 1}]},
            "^completions is .*overall_score.*expected a list of at least two",
        ),
        (
            "ultrafeedback_scores",
            {"instruction": "i", "completions": [SCORED["completions"][0], {"response": "b", "overall_score": "N/A"}]},
            r"^completions has 1 usable of 2, .*\(1 .*without overall_score",
        ),
        ("preference", {"chosen": "a", "rejected": "b"}, "prompt is missing"),
        ("preference", {"prompt": 3, "chosen": "a", "rejected": "b"}, "^prompt .*int, expected a string"),
        ("preference", {"prompt": "u", "chosen": "a", "rejected": ["x"]}, r"^rejected\[0\] .*str, expected a message"),
        (
            "preference",
            {"prompt": [turn("assistant", "u")], "chosen": "a", "rejected": "b"},
            r"^prompt\[0\] .*assistant, expected user",
        ),
        ("hh_rlhf", {"chosen": "Human: u", "rejected": "x"}, "^chosen does not start with .*'Human:'"),
        ("hh_rlhf", {"chosen": "\n\nHuman: u\n\nHuman: v"}, r"^chosen\[1\] .*user, expected assistant"),
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
            "^chosen .*user, expected assistant",
        ),
    ],
)
def test_bad_rows(name, row, problem):
    with pytest.raises(RowError, match=problem):
        pair(name, row)
