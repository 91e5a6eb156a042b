"""No built-in formatter ignores a mark that changes what a message or a row trains."""

from dataclasses import replace

import pytest
from formatter_rows import ANSWER, GPT, HUMAN, ROWS, USER

from solar_plugins.data.formatters import preference_formatters, sft_formatters
from solar_plugins.data.formatters.base import NothingToLearn, RowError, SFTFormatter, single_turn
from solar_plugins.data.formatters.conversations import read_message, read_messages
from solar_plugins.data.formatters.marks import (
    CONTINUED_MARKS,
    END_MARKS,
    LEARNING_MARKS,
    MASKED_MARKS,
    NO_PLACE_IN_TEMPLATE,
    PARTIAL_MARKS,
    ROW_MARKS,
    TOKEN_COLUMNS,
    UNCLEAR_MARKS,
    check_row,
    is_reasoning,
)

ROW_REASONING = (
    *("reasoning", "reasoning_content", "reasoning_trace", "reasoning_details", "thinking", "think", "thoughts"),
    *("chain_of_thought", "chain-of-thought", "chainOfThought", "cot", "scratchpad", "thinking_trajectories"),
    # FreedomIntelligence/medical-o1-reasoning-SFT, open-thoughts/OpenThoughts-114k, simplescaling/s1K-1.1
    *("Complex_CoT", "deepseek_reasoning", "gemini_thinking_trajectory"),
)
SFT, PAIRS = sft_formatters(), preference_formatters()


# Rows ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_reasoning_in_a_column_of_its_own_is_not_ignored(records, name):
    """A reasoning model writes it before its answer; without it, the model is trained to answer without reasoning."""
    for column in ROW_REASONING:
        for value in ("First, it stands to reason.", ["First, step"], {"text": "First, step"}):
            with pytest.raises(RowError, match=f"^row {column} is reasoning"):
                records(name, ROWS[name] | {column: value})
    with pytest.raises(RowError, match="is reasoning"):
        records(name, ROWS[name] | {"reasoning": "REASONING"})


@pytest.mark.parametrize("name", ROWS)
def test_labels_of_reasoning_change_nothing(records, name):
    plain = records(name, ROWS[name])
    for row in (
        {"reasoning": "off"},  # nvidia/Llama-Nemotron-Post-Training-Dataset
        {"reasoning": 4, "thinking": False, "cot": None, "thoughts": [], "think": " "},
        {
            "type_of_reasoning": "deductive",
            "reasoning_type": "multi step",
            "reasoning_tokens": 12,
            "thinking_budget": 9,
        },
        {"mascot": "a tall bear", "reason": "as it is so", "explanation": "a hard task", "analysis_id": "a b"},
    ):
        assert records(name, ROWS[name] | row) == plain


def test_reasoning_that_the_answer_contains_changes_nothing(records):
    """open-r1/Mixture-of-Thoughts and others have it in both places."""
    answer = "<think>\nIt is so.\n</think>\n\nYes."
    row = {"messages": [USER, ANSWER | {"content": answer, "reasoning_content": "It is so."}]}
    assert answer in records("messages", row | {"thinking": "It is so.\n"})
    for name in SFT:
        with pytest.raises(RowError, match="is reasoning"):
            records(name, ROWS[name] | {"thinking": "u"})  # The prompt has it, and "Response" an R.
        with pytest.raises(RowError, match="is reasoning"):
            records(name, ROWS[name] | {"thinking": "R"})


@pytest.mark.parametrize("column", ["rationale", "analysis"])
def test_a_rationale_is_reasoning_for_one_answer_and_a_judges_for_two(records, column):
    for name in ROWS:
        row = ROWS[name] | {column: "It is the shorter one."}  # argilla/distilabel-intel-orca-dpo-pairs
        if name in SFT:
            with pytest.raises(RowError, match=f"^row {column} is reasoning"):
                records(name, row)
        else:
            assert records(name, row) == records(name, ROWS[name])


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("column", ROW_MARKS)
def test_row_marks_are_applied_or_make_the_row_bad(records, name, column):
    """Fireworks reads a weight of the row, which multiplies its loss."""
    plain = records(name, ROWS[name])
    learnt, left_out = ((0, False), (1, True)) if column in MASKED_MARKS else ((1, True), (0, False))
    for value in (None, float("nan"), "heavy", learnt[1], *([] if column == "loss" else [learnt[0], str(learnt[0])])):
        assert records(name, ROWS[name] | {column: value}) == plain
    for value in left_out[1:] if column == "loss" else (*left_out, float(left_out[0]), str(left_out[1])):
        with pytest.raises(NothingToLearn, match=f"{column} is .*not to be trained on"):
            records(name, ROWS[name] | {column: value})
    if column == "loss":
        assert records(name, ROWS[name] | {column: 2.25}) == plain, "the loss that some model had"
        return
    for value in (0.5, 2, -1, "0.5"):
        with pytest.raises(RowError, match=rf"{column} is '?{value}'?, .*weight.*Remove the column"):
            records(name, ROWS[name] | {column: value})


@pytest.mark.parametrize("name", sorted(ROWS.keys() - {"messages", "sharegpt"}))
@pytest.mark.parametrize("column", [*ROW_MARKS, *TOKEN_COLUMNS])
def test_flags_that_a_formatter_cannot_read_make_the_row_bad(records, name, column):
    with pytest.raises(RowError, match=f"{column} (has a flag for each message|.* tokens of another template)"):
        records(name, ROWS[name] | {column: [0, 1], "input_ids": [3, 4]})


@pytest.mark.parametrize("column", TOKEN_COLUMNS)
def test_marks_of_tokens(records, column):
    for name in ("messages", "sharegpt", "preference"):
        with pytest.raises(RowError, match=f"{column} .* tokens of another template"):
            records(name, ROWS[name] | {column: [-100, 3], "input_ids": [3, 4]})
        assert records(name, ROWS[name] | {column: ["math", "easy"]}) == records(name, ROWS[name])
    assert records("messages", ROWS["messages"] | {"labels": [3, 5]}) == records("messages", ROWS["messages"]), (
        "classes"
    )


@pytest.mark.parametrize("column", ROW_MARKS)
def test_flags_for_messages_and_for_answers(column):
    row = {"messages": [USER, ANSWER, USER, ANSWER | {"content": "b"}]}
    yes, no = (0, 1) if column in MASKED_MARKS else (1, 0)
    learnt = [USER, ANSWER | {"learn": False}, USER, ANSWER | {"content": "b"}]
    users = 1 if column in MASKED_MARKS else 0
    for flags in ([no, yes], [users, no, users, yes], [users, bool(no), users, bool(yes)]):
        assert SFT["messages"].to_messages(row | {column: flags}) == learnt
    for flags in ([yes], [no, yes, no], [users] * 400):
        with pytest.raises(RowError, match=f"^{column} has {len(flags)} flags for 4 messages with 2 answers; expected"):
            SFT["messages"].to_messages(row | {column: flags})
    with pytest.raises(NothingToLearn, match=r"messages .*weight: 0"):
        SFT["messages"].to_messages(row | {column: [no, no]})
    with pytest.raises(RowError, match=r"messages\[1\]\.\w+ is 0.5, expected"):
        SFT["messages"].to_messages(row | {column: [0.5, yes]})


def test_flags_that_ask_to_train_on_the_user():
    row = {"conversations": [HUMAN, GPT]}
    with pytest.raises(RowError, match=r"conversations\[0\]\.loss_mask .*train on the user's message"):
        SFT["sharegpt"].to_messages(row | {"loss_mask": [1, 1]})
    with pytest.raises(RowError, match=r"^conversations\[0\] .*str, expected a message"):
        SFT["sharegpt"].to_messages({"conversations": ["u", "a"], "loss_mask": [0, 1]})


@pytest.mark.parametrize("name", ROWS)
def test_ambiguous_masks(records, name):
    for value in (0, 1, True, False, "1", [0, 1], "Assistant"):
        with pytest.raises(RowError, match=r"mask is .*ambiguous"):
            records(name, ROWS[name] | {"mask": value})
    plain = records(name, ROWS[name])
    for value in ("User", "human", None, "[MASK]", "mask-7.png"):  # NeMo: the role that is not trained on
        assert records(name, ROWS[name] | {"mask": value}) == plain
    with pytest.raises(NothingToLearn, match="ignore is True"):
        records(name, ROWS[name] | {"ignore": True})
    assert records(name, ROWS[name] | {"ignore": False}) == plain


def test_an_undesirable_kto_answer_is_not_trained_on(records):
    for name in SFT:
        with pytest.raises(NothingToLearn, match="kto_tag is False"):
            records(name, ROWS[name] | {"kto_tag": False})
        assert records(name, ROWS[name] | {"kto_tag": True}) == records(name, ROWS[name])


def test_a_mark_that_a_formatter_reads_itself_is_left_to_it():
    """A package's formatter may read its columns as it likes, if it names them."""
    row = {"u": "u", "a": "a", "weight": 0.5, "mask": 1, "ignore": True, "kto_tag": False, "reasoning": "It is so."}
    formatter = SFTFormatter(
        name="own",
        columns=("u", "a"),
        to_messages=lambda row: single_turn(row["u"], row["a"]),
        summary="",
        optional_columns=tuple(row),
    )
    check_row(row, formatter, ["a"])
    with pytest.raises(RowError):
        check_row(row, replace(formatter, optional_columns=()), ["a"])


# Messages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", NO_PLACE_IN_TEMPLATE)
def test_messages_that_the_template_cannot_express_are_rejected(key):
    for value in ("x", [{"name": "weather"}], {"name": "weather"}, 1):
        with pytest.raises(RowError, match=rf"^m\.{key} is filled"):
            read_message(ANSWER | {key: value}, "m")
    for nothing in (None, "", [], {}, "[]", False):
        assert read_message(ANSWER | {key: nothing}, "m") == ANSWER


@pytest.mark.parametrize("key", [*ROW_REASONING, "rationale", "analysis"])
def test_reasoning_of_a_message(key):
    for value in ("Let me see.", [{"type": "text", "text": "Let me see."}]):
        with pytest.raises(RowError, match=rf"^m\.{key} is reasoning .*<think>"):
            read_message(ANSWER | {key: value}, "m")
    for nothing in (None, "", [], {}, "[]", False, True, "off"):
        assert read_message(ANSWER | {key: nothing}, "m") == ANSWER


@pytest.mark.parametrize("key", CONTINUED_MARKS)
def test_incomplete_answers_are_rejected(key):
    """Mistral's and DeepSeek's APIs let the model continue it; here the model would be trained to stop there."""
    for value in (True, 1, "Sure"):
        with pytest.raises(RowError, match=rf"^m\.{key} is set: .* Complete the answer"):
            read_message(ANSWER | {key: value}, "m")
    for nothing in (None, False, ""):
        assert read_message(ANSWER | {key: nothing}, "m") == ANSWER


@pytest.mark.parametrize("key", END_MARKS)
def test_answers_without_eos_are_rejected(key):
    for value in (False, 0, ""):
        with pytest.raises(RowError, match=rf"^m\.{key} is .*EOS"):
            read_message(ANSWER | {key: value}, "m")
        assert read_message(USER | {key: value}, "m") == USER
    for value in (True, 1, None, "</s>"):
        assert read_message(ANSWER | {key: value}, "m") == ANSWER


def test_messages_on_other_channels_are_rejected():
    for channel in ("analysis", "commentary"):
        with pytest.raises(RowError, match=rf"^m\.channel is '{channel}'"):
            read_message(ANSWER | {"channel": channel}, "m")
    for channel in ("final", None, "slack"):
        assert read_message(ANSWER | {"channel": channel}, "m") == ANSWER


@pytest.mark.parametrize("key", UNCLEAR_MARKS)
def test_ambiguous_marks_are_rejected(key):
    for value in (1, True, "yes", *((0, False) if key == "mask" else ())):
        with pytest.raises(RowError, match=rf"^m\.{key} is .*ambiguous.* weight \(0: .*masked \(1: "):
            read_message(ANSWER | {key: value}, "m")
    assert read_message(ANSWER | {key: None}, "m") == ANSWER
    assert read_message(ANSWER | {"ignore": False}, "m") == ANSWER


def test_content_parts():
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]
    assert read_message({"role": "user", "content": parts}, "m") == {"role": "user", "content": "2 + 2?"}
    for other in ({"type": "image_url", "image_url": {}}, {"type": "text"}, {"type": "thinking"}, "text"):
        with pytest.raises(RowError, match=r"^m\.content .*list, expected a string"):
            read_message({"role": "user", "content": [*parts, other]}, "m")


@pytest.mark.parametrize("key", [*LEARNING_MARKS, *MASKED_MARKS])
def test_masked_content_parts(key):
    """Axolotl 0.21 masks such parts (``_convert_content_parts``)."""
    yes, no = (False, True) if key in MASKED_MARKS else (True, False)
    parts = [{"type": "text", "text": "Hm."}, {"type": "text", "text": " 4", key: yes}]
    assert read_message({"role": "assistant", "content": parts}, "m") == {"role": "assistant", "content": "Hm. 4"}
    parts[0][key] = no
    assert read_message({"role": "user", "content": parts}, "m") == {"role": "user", "content": "Hm. 4"}
    with pytest.raises(RowError, match=rf"^m\.content\[0\]\.{key} asks to train on a part"):
        read_message({"role": "assistant", "content": parts}, "m")


@pytest.mark.parametrize("key", LEARNING_MARKS)
def test_marks_of_masked_answers(key):
    for no in (0, 0.0, False):
        assert read_message(ANSWER | {key: no}, "m") == ANSWER | {"learn": False}
        assert read_message(USER | {key: no}, "m") == USER
    for yes in (1, 1.0, True, None):
        assert read_message(ANSWER | {key: yes}, "m") == ANSWER
    for value in (0.5, "0", 2, []):
        with pytest.raises(RowError, match=rf"^m\.{key} is .*, expected 0 \(not trained on\) or 1"):
            read_message(ANSWER | {key: value}, "m")


def test_a_mask_is_the_opposite_of_these_marks():
    assert read_message(ANSWER | {"masked": True}, "m") == ANSWER | {"learn": False}
    assert read_message(ANSWER | {"masked": False}, "m") == ANSWER
    for masked in (True, False):
        assert read_message(USER | {"masked": masked}, "m") == USER
    with pytest.raises(RowError, match=r"^m\.masked is 'no', expected 1 \(not trained on\) or 0"):
        read_message(ANSWER | {"masked": "no"}, "m")


def test_marks_of_other_messages():
    assert read_message(USER | {"weight": 1}, "m") == USER, "OpenAI defines it for answers alone"
    for key in ("train", "training", "loss"):
        with pytest.raises(RowError, match=rf"m\.{key} .*train on the user's message"):
            read_message(USER | {key: True}, "m")


@pytest.mark.parametrize("key", PARTIAL_MARKS)
def test_marks_of_parts_of_an_answer_are_rejected(key):
    """Axolotl's docs/dataset-formats/conversation.qmd."""
    with pytest.raises(RowError, match=rf"^m\.{key} asks to train on a part"):
        read_message(ANSWER | {key: [{"begin_offset": 0, "end_offset": 0, "train": False}]}, "m")
    assert read_message(ANSWER | {key: None}, "m") == ANSWER


def test_slim_orca_has_a_weight_for_every_message(records):
    weights = [("system", "s", None), ("human", "u", 0.0), ("gpt", "a", 1.0)]
    row = {"conversations": [{"from": who, "value": text, "weight": weight} for who, text, weight in weights]}
    assert records("sharegpt", row).endswith("### System:\ns\n\n### User:\nu\n\n### Assistant:\na</s>")


@pytest.mark.parametrize("row", [ROWS["messages"]["messages"], ROWS["sharegpt"]["conversations"]])
def test_metadata_of_messages_changes_nothing(row):
    """LMSYS-Chat, WildChat, oasst, Tulu 3, OpenAI and Mistral exports."""
    describes = {"id": "1", "name": "Ann", "language": "en", "score": 0.5, "rank": 2, "toxic": False, "model": "x"}
    describes |= {"timestamp": 1.5, "finish_reason": "stop", "annotations": [], "redacted": True, "label": "good"}
    assert read_messages([message | describes for message in row], "m") == [USER, ANSWER]


def test_names_of_reasoning():
    assert not any(map(is_reasoning, ("reason", "mascot", "reasoning_id", "thinking_model", "unthinkable", "season")))
