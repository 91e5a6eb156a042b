import random

import pytest

from solar_plugins.data.encoder import make_encoder
from solar_plugins.data.formatters import preference_formatters, sft_formatters
from solar_plugins.data.formatters.base import (
    PreferenceFormatter,
    PreferencePair,
    RowError,
    SFTFormatter,
    question,
    text,
)
from solar_plugins.data.row_encoder import RowReader

PAIR = {"question": "u", "chosen": "good", "rejected": "bad and longer"}
PROMPT = "### User:\nu\n\n### Assistant:\n"


@pytest.fixture
def reader(tokenizer):
    def make(name, **options):
        formatter = {**sft_formatters(), **preference_formatters()}[name]
        return RowReader(formatter, make_encoder(tokenizer, "test"), **({"sequence_len": 64} | options))

    return make


def read(reader, *rows):
    """The records of rows, as dictionaries without the columns that are empty."""
    columns = sorted({name for row in rows for name in row})
    batch = {name: [row.get(name) for row in rows] for name in columns}
    result = reader.read_batch(batch, list(range(10, 10 + len(rows))))
    records = zip(*result.values(), strict=True)
    return [{k: v for k, v in zip(result, values, strict=True) if v is not None} for values in records]


def test_a_row_of_instructions(reader, tokenizer):
    ((record),) = read(reader("alpaca"), {"instruction": "u", "output": "good"})
    assert record["solar_row"] == 10
    assert tokenizer.decode(record["input_ids"]).replace("<s> ", "<s>") == f"<s>{PROMPT}good</s>"
    assert record["attention_mask"] == [1] * len(record["input_ids"])
    assert tokenizer.decode([token for token in record["labels"] if token >= 0]) == "good</s>"


def test_a_conversation_gives_an_example_for_each_answer(reader, tokenizer):
    turns = [("user", "u"), ("assistant", "good"), ("user", "v"), ("assistant", "bye")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    records = read(reader("messages"), row, row)
    assert [record["solar_row"] for record in records] == [10, 10, 11, 11]
    learnt = [tokenizer.decode([token for token in record["labels"] if token >= 0]) for record in records]
    assert learnt == ["good</s>", "bye</s>"] * 2
    assert tokenizer.decode(records[1]["input_ids"]).endswith("good### User:\nv\n\n### Assistant:\nbye</s>")


def test_a_pair(reader):
    assert read(reader("orca_dpo_pairs"), PAIR) == [
        {"solar_row": 10, "prompt": PROMPT, "chosen": "good</s>", "rejected": "bad and longer</s>"}
    ]


def test_a_pair_for_kto_is_two_rows(reader):
    assert read(reader("orca_dpo_pairs", unpaired=True), PAIR) == [
        {"solar_row": 10, "prompt": PROMPT, "completion": "good</s>", "label": True},
        {"solar_row": 10, "prompt": PROMPT, "completion": "bad and longer</s>", "label": False},
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (PAIR | {"rejected": " good "}, "chosen is equal to rejected"),
        (PAIR | {"chosen": ""}, "chosen is empty"),
        (PAIR | {"chosen": "a</s>b"}, "the assistant's text holds the special token '</s>'"),
        (PAIR | {"question": "a<s>b"}, "the user's text holds the special token '<s>'"),
    ],
)
def test_bad_pairs_are_records_too(reader, row, problem):
    good, bad = read(reader("orca_dpo_pairs"), PAIR, row)
    assert bad == {"solar_row": 11, "solar_problem": problem}
    assert "solar_problem" not in good


def test_the_length_counts_start_prompt_answer_and_end(reader):
    (record,) = read(reader("alpaca"), {"instruction": "u", "output": "good"})
    length = len(record["input_ids"])
    row = {"instruction": "u", "output": "good"}
    assert "input_ids" in read(reader("alpaca", sequence_len=length), row)[0]
    assert read(reader("alpaca", sequence_len=length - 1), row) == [{"solar_row": 10, "solar_problem": "too long"}]


def test_the_longer_answer_of_a_pair_counts_as_trl_will_see_it(reader, tokenizer):
    length = len(tokenizer(PROMPT + "bad and longer</s>")["input_ids"])
    assert "prompt" in read(reader("orca_dpo_pairs", sequence_len=length), PAIR)[0]
    (record,) = read(reader("orca_dpo_pairs", sequence_len=length - 1), PAIR)
    assert record == {"solar_row": 10, "solar_problem": "too long"}


def test_where_axolotl_truncates_only_the_prompt_has_to_fit(reader, tokenizer):
    length = len(tokenizer(PROMPT)["input_ids"])
    for name, row in (("orca_dpo_pairs", PAIR), ("alpaca", {"instruction": "u", "output": "good"})):
        assert "solar_problem" not in read(reader(name, sequence_len=length + 1, truncate=True), row)[0]
        assert read(reader(name, sequence_len=length, truncate=True), row)[0]["solar_problem"] == "too long"


def test_chance_depends_on_seed_and_row_alone(tokenizer):
    def drawn(row, chance):
        return PreferencePair(question("u"), "chosen", str(chance.random()))

    formatter = PreferenceFormatter(name="drawn", columns=(), to_pair=drawn, summary="")

    def rejected(indices, seed):
        reader = RowReader(formatter, make_encoder(tokenizer, "test"), 99, seed=seed)
        return reader.read_batch({"x": [0] * len(indices)}, indices)["rejected"]

    assert rejected([5, 6, 7], 1) == rejected([5], 1) + rejected([6, 7], 1)
    assert len({*rejected([5, 6, 7], 1), *rejected([5, 6, 7], 2)}) == 6
    assert rejected([5], 1) == [f"{random.Random('1:5').random()}</s>"]


def test_a_third_partys_fault_is_counted_under_its_name(tokenizer):
    def broken(row):
        return text(row["x"], "x") / 2

    formatter = SFTFormatter(name="quiz", columns=("x",), to_messages=broken, summary="")
    result = RowReader(formatter, make_encoder(tokenizer, "test"), 64).read_batch({"x": ["a", None]}, [0, 1])
    assert result["solar_problem"] == [
        "quiz failed with TypeError: unsupported operand type(s) for /: 'str' and 'int'",
        "x is missing",
    ]


def test_read_is_lazy_about_nothing(reader):
    with pytest.raises(RowError):
        list(reader("alpaca").read({"instruction": "u"}, 0))
