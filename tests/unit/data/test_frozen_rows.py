"""What the built-in formatters and the encoder produce for fixed rows, so that no change to that keeps an old version.

Prepared datasets are cached by these versions (`data/prepared_datasets.py`): without a new version, rows that were
prepared before a change would still be trained on.
"""

import hashlib
import json
from pathlib import Path

from solar_plugins.data.encoder import make_encoder
from solar_plugins.data.formatters import preference, sft
from solar_plugins.data.prepared_datasets import FORMAT_VERSION, NOTES_COLUMN, PROBLEM_COLUMN, TrainingRecords
from solar_plugins.data.row_encoder import RowEncoder

FROZEN = Path(__file__).with_name("frozen_rows.txt")
ADVICE = """
Some rows are encoded differently than in tests/unit/data/frozen_rows.txt. Datasets that were prepared before must not
be reused:
- if the formatter changed, raise its `version`;
- if the encoder, the template, the records or formatters/base.py changed, raise `FORMAT_VERSION`;
- if only the rows of this test changed, leave both.
Then put the lines printed above into that file."""

TEXTS = ["Why?", " So it is.\n", "Über 12 €, 北京 🙂", "a\n\n### User:\nb", "", None, 3, "x</s>", "word " * 60]
SYSTEM, USER, ANSWER = ({"role": role, "content": role[:4]} for role in ("system", "user", "assistant"))
CONVERSATIONS = [
    [USER, ANSWER],
    [SYSTEM, USER, ANSWER, USER, ANSWER | {"content": "Bye."}],
    [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}],
    [SYSTEM | {"content": ""}, USER, ANSWER],
    [USER, ANSWER | {"weight": 0}, USER, ANSWER],
    [USER, ANSWER | {"content": "    if a:\n        b"}],
    [USER, ANSWER | {"tool_calls": [{"name": "x"}]}],
    [USER, ANSWER | {"reasoning": "It is so."}],
    [USER | {"role": "developer"}, USER, ANSWER],
    json.dumps([USER, ANSWER]),
    [USER, USER, ANSWER],
    [USER],
    [],
    "Hi",
]


def texts(*columns):
    """A row for each text, in each of the columns in turn; the other columns hold other texts."""
    plain = {column: f"{column} text" for column in columns}
    return [plain, *(plain | {column: value} for column in columns for value in TEXTS)]


ROWS = {
    "alpaca": [
        *texts("instruction", "input", "output", "system"),
        {"instruction": "u", "output": "a", "history": [["q", "b"], ["r", "c"]]},
    ],
    "alpaca_prompt": texts("instruction", "input", "output"),
    "openorca": [
        *texts("system_prompt", "question", "response"),
        {"question": "u", "response": "a", "reasoning": "b"},
        {"question": "u", "response": "a", "weight": 0.5},
    ],
    "metamath": texts("query", "response"),
    "messages": [
        *({"messages": messages} for messages in CONVERSATIONS),
        {"messages": [USER, ANSWER, USER, ANSWER], "loss_mask": [0, 1]},
    ],
    "sharegpt": [{"conversations": messages} for messages in CONVERSATIONS],
    "orca_dpo_pairs": texts("system", "question", "chosen", "rejected"),
    "ultrafeedback_binarized": [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        for prompt in ("Why?", [USER], [ANSWER])
        for chosen in ([ANSWER], *CONVERSATIONS[:2])
        for rejected in ([ANSWER | {"content": "No."}], [USER, ANSWER | {"content": "No."}])
    ],
    "ultrafeedback_scores": [
        {"instruction": "Why?", "completions": [{"response": str(n), "overall_score": score} for n, score in scores]}
        for scores in ([*enumerate((3, 9.5, 9.5, 1))], [(0, "high"), (1, 2)], [(0, 1)])
        for _ in range(9)
    ],
    "preference": [
        *texts("system", "prompt", "chosen", "rejected"),
        *texts("instruction", "input", "chosen", "rejected"),
        *(
            {"prompt": prompt, "chosen": chosen, "rejected": "No."}
            for prompt in ([USER], [ANSWER], None)
            for chosen in ("Yes.", [ANSWER], [USER, ANSWER], [USER])
        ),
        {"prompt": "Why?", "chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 3},
        {"prompt": "Why?", "chosen": "a", "rejected": "b", "context": "c"},
    ],
    "hh_rlhf": [
        {"chosen": f"\n\nHuman: Why?\n\nAssistant: {text}", "rejected": "\n\nHuman: Why?\n\nAssistant: No."}
        for text in TEXTS
    ],
    "unpaired_preference": [
        {"prompt": prompt, "completion": answer, "label": label}
        for prompt in ("Why?", [USER], None)
        for answer in ("Yes.", [ANSWER], [USER, ANSWER])
        for label in (True, False, "no")
    ],
    "math_pairs": texts("rephrased_question", "rephrased_answer", "original_answer"),
    "sharegpt_pairs": [
        {"conversations": messages, "chosen": chosen, "rejected": "No."}
        for messages in ([USER], [USER, ANSWER, USER], [USER, ANSWER], "Hi")
        for chosen in ("Yes.", {"from": "gpt", "value": "Yes."}, USER)
    ],
}


def digest(formatter, tokenizer):
    """A hash of the records and token ids of the rows, and of which are bad; the wording of messages is free."""
    encoder = RowEncoder(formatter, make_encoder(tokenizer, "test"), 64)
    records = TrainingRecords(encoder)
    found = []
    for index, row in enumerate(ROWS[formatter.name]):
        batch = records.read_batch({column: [value] for column, value in row.items()}, [index])
        problems = batch[PROBLEM_COLUMN]
        batch[PROBLEM_COLUMN] = [problem is not None for problem in problems]
        batch[NOTES_COLUMN] = [notes and notes.count("\n") + 1 for notes in batch[NOTES_COLUMN]]
        found.append(batch)
        if "chosen" in batch and problems == [None]:
            found += [answer.tokens for answer in encoder.pair(row, index)[1:]]
    assert 1 < sum(batch[PROBLEM_COLUMN] != [True] for batch in found if isinstance(batch, dict)) < len(found)
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def test_rows_are_encoded_as_in_this_version(tokenizer):
    formatters = [
        *sft.built_in_sft_formatters(),
        *preference.built_in_preference_formatters(),
        *preference.built_in_unpaired_formatters(),
    ]
    found = [f"format {FORMAT_VERSION}"]
    found += sorted(f"{one.name} {one.version} {digest(one, tokenizer)}" for one in formatters)
    print("\n".join(found))
    assert found == FROZEN.read_text().splitlines(), ADVICE
