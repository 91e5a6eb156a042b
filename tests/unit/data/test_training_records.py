import pytest

from solar_plugins.data.encoder import make_encoder
from solar_plugins.data.formatters import preference_formatters, sft_formatters
from solar_plugins.data.prepared_datasets import TrainingRecords, count_rows
from solar_plugins.data.row_encoder import RowEncoder
from solar_plugins.data.row_tally import RowTally

PAIR = {"question": "u", "chosen": "good", "rejected": "bad and longer"}
PROMPT = "### User:\nu\n\n### Assistant:\n"


@pytest.fixture
def read(tokenizer):
    """The records of rows 10, 11 and so on, as dictionaries without the columns that are empty."""

    def read_rows(name, *rows, unpaired=False, **options):
        formatter = {**sft_formatters(), **preference_formatters()}[name]
        encoder = RowEncoder(formatter, make_encoder(tokenizer, "test"), **({"max_length": 64} | options))
        columns = sorted({name for row in rows for name in row})
        batch = {name: [row.get(name) for row in rows] for name in columns}
        result = TrainingRecords(encoder, unpaired).read_batch(batch, list(range(10, 10 + len(rows))))
        records = zip(*result.values(), strict=True)
        unused = ("solar_sound", "solar_tokens", "solar_opening")
        named = [dict(zip(result, values, strict=True)) for values in records]
        return [{k: v for k, v in one.items() if v is not None and k not in unused} for one in named]

    return read_rows


def test_a_conversation_gives_a_record_for_each_answer(read, tokenizer):
    turns = [("user", "u"), ("assistant", "good"), ("user", "v"), ("assistant", "bye")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    records = read("messages", row, row)
    assert [record["solar_row"] for record in records] == [10, 10, 11, 11]
    assert records[0]["input_ids"] == tokenizer(PROMPT + "good</s>")["input_ids"]
    assert records[0]["attention_mask"] == [1] * len(records[0]["input_ids"])
    assert tokenizer.decode([token for token in records[1]["labels"] if token >= 0]) == "bye</s>"


def test_a_pair(read):
    assert read("orca_dpo_pairs", PAIR) == [
        {"solar_row": 10, "solar_cut": False, "prompt": PROMPT, "chosen": "good</s>", "rejected": "bad and longer</s>"}
    ]


def test_a_pair_for_kto_is_two_records(read):
    bookkeeping = {"solar_row": 10, "solar_cut": False}
    assert read("orca_dpo_pairs", PAIR, unpaired=True) == [
        bookkeeping | {"prompt": PROMPT, "completion": "good</s>", "label": True},
        bookkeeping | {"prompt": PROMPT, "completion": "bad and longer</s>", "label": False},
    ]


def test_rows_without_an_example_are_records_too(read):
    good, bad, long = read("orca_dpo_pairs", PAIR, PAIR | {"chosen": ""}, PAIR | {"question": "long " * 70})
    assert "solar_problem" not in good
    assert bad == {"solar_row": 11, "solar_cut": False, "solar_problem": "chosen is empty"}
    assert long == {"solar_row": 12, "solar_cut": False, "solar_problem": "too long"}


def test_what_is_cut_is_marked(read, tokenizer):
    room = len(tokenizer(PROMPT + "bad and")["input_ids"])
    assert [record["solar_cut"] for record in read("orca_dpo_pairs", PAIR, max_length=room, truncate=True)] == [True]
    kto = read("orca_dpo_pairs", PAIR, max_length=room, truncate=True, unpaired=True)
    assert [record["solar_cut"] for record in kto] == [False, True]
    [record] = read("alpaca", {"instruction": "u", "output": "bad and longer"}, max_length=room, truncate=True)
    assert record["solar_cut"]
    assert len(record["input_ids"]) == len(record["labels"]) == len(record["attention_mask"]) == room


def test_records_are_counted_by_their_rows():
    records = [
        (3, None, False, True, 30, None),
        (3, None, False, False, 50, "note\nnote"),
        (3, "too long", False, False, 0, None),
        (4, "too long", False, False, 0, None),
        (4, "too long", False, False, 0, None),
        (7, "x", False, False, 0, None),
        (8, "tie", True, False, 0, None),
    ]
    tally = count_rows(RowTally("here", "messages"), *zip(*records, strict=True))
    assert (tally.rows_read, tally.rows_kept, tally.examples, tally.cut) == (4, 1, 2, 1)
    assert (tally.num_tokens, tally.num_tokens_once, tally.repetition) == (80, 50, 1.6)
    assert (tally.nothing_to_learn, tally.notes) == ({"tie": 1}, {"note": 2})
    assert (tally.examples_too_long, tally.too_long, tally.bad) == (1, 1, {"x": 1})
    assert tally.first_rows == {"note": [4, 4], "too long": [5], "x": [8], "tie": [9]}
