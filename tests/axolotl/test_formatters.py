"""`axolotl.cli.train` itself, on datasets with our formatters: ids, template, reports, errors and losses."""

import json
import math
import re

import pytest

pytestmark = pytest.mark.slow

ALPACA = [{"instruction": f"Add {n} and 1.", "input": "", "output": f"The sum is {n + 1}."} for n in range(200)]
PAIRS = [
    {"system": "", "question": f"Add {n} and 1.", "chosen": f"It is {n + 1}.", "rejected": f"It is {n}."}
    for n in range(60)
]
GROWING = """\
solar:
  init: {strategy: dus, drop_layers: 2}
  cache_dir: cache
"""


@pytest.fixture
def train(training_folder, run_warm):
    """Train the tiny recipe on a dataset; returns exit status, output and losses."""

    def train_on(rows, kind, extra="", command="train", grow=False):
        (training_folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = (training_folder / "recipe.yml").read_text()
        assert GROWING in recipe
        recipe = recipe if grow else recipe.replace(GROWING, "")
        recipe = recipe.replace("train.jsonl", "rows.jsonl").replace("type: completion", f"type: solar_plugins.{kind}")
        (training_folder / "tuning.yml").write_text(recipe + extra)
        result = run_warm("python", "-m", f"axolotl.cli.{command}", "tuning.yml", cwd=training_folder)
        said = result.stdout + result.stderr
        return result.returncode, said, [float(loss) for loss in re.findall(r"'loss': '([\d.e+-]+)'", said)]

    return train_on


def test_sft_with_bad_rows_and_several_processes(train, training_folder):
    bad = [{"instruction": "x", "input": "", "output": ""}, {"instruction": "x", "input": "", "output": "y" * 999}]
    status, said, losses = train([*ALPACA, *bad], "alpaca", "dataset_num_proc: 2\n")
    assert status == 0, said
    line = (
        "datasets[0] (rows.jsonl) as alpaca: 202 rows read, 200 kept, 2 dropped: 1 output is empty (row 201); "
        "1 longer than sequence_len 128 (row 202)"
    )
    assert said.count(line) == 2, "when it is read, and at the end of the log"
    assert said.index("train_runtime") < said.rindex(line)
    assert abs(losses[0] - math.log(32000)) < 1, "a random model"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(training_folder / "out")
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "### System:\ns\n\n### User:\nu\n\n### Assistant:\n", "the saved tokenizer has the template"


def test_sft_after_upscaling_and_from_prepared_rows(train, training_folder):
    status, said, _ = train(ALPACA, "alpaca", command="preprocess", grow=True)
    assert status == 0, said
    for rows, count in ((ALPACA, 200), (ALPACA[:50], 50)):
        status, said, _ = train(rows, "alpaca", grow=True)
        assert status == 0, said
        assert f"as alpaca: {count} rows read, {count} kept" in said, (
            "from the cache too, and a changed file is read again"
        )
        assert json.loads((training_folder / "out" / "config.json").read_text())["num_hidden_layers"] == 12


@pytest.mark.parametrize(
    ("method", "needs", "first_loss"),
    [
        ("dpo", "", math.log(2)),
        pytest.param("ipo", "", None, marks=pytest.mark.nightly),
        ("orpo", "", None),
        pytest.param("simpo", "simpo_gamma: 0.5\n", None, marks=pytest.mark.nightly),
        ("kto", "remove_unused_columns: false\n", 0.5),  # 1 - sigmoid(0), while policy and reference are equal
    ],
)
def test_preference_training(train, training_folder, method, needs, first_loss):
    status, said, losses = train(PAIRS, "orca_dpo_pairs", f"rl: {method}\nrl_beta: 0.1\n{needs}")
    assert status == 0, said
    assert "datasets[0] (rows.jsonl) as orca_dpo_pairs: 60 rows read, 60 kept" in said
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    if first_loss is not None:
        assert losses[0] == pytest.approx(first_loss, abs=1e-4)
    assert (training_folder / "out" / "chat_template.jinja").is_file()


@pytest.mark.parametrize(
    ("rows", "kind", "extra", "words"),
    [
        (PAIRS, "alpaca", "", "datasets[0] (rows.jsonl): has no column instruction, output"),
        (PAIRS, "orca_dpo_pairs", "", "datasets[0].type: solar_plugins.orca_dpo_pairs yields preference pairs"),
        (
            [{"instruction": "x", "input": "", "output": ""}],
            "alpaca",
            "",
            "datasets[0] (rows.jsonl): 1 of 1 rows cannot be read",
        ),
        (ALPACA, "alpaca", "train_on_inputs: true\n", "train_on_inputs: True "),
    ],
)
def test_an_error_ends_the_run_with_its_message(train, training_folder, rows, kind, extra, words):
    status, said, losses = train(rows, kind, extra)
    assert status == 1
    assert f"\nsolar_plugins: {words}" in said
    assert "Traceback" not in said
    assert losses == []
    assert not list(training_folder.glob("out/*.safetensors"))


def test_axolotl_evaluate_reads_the_rows_too(train, training_folder):
    extra = "test_datasets:\n  - {path: rows.jsonl, ds_type: json, type: solar_plugins.alpaca, split: train}\n"
    for count in (20, 10):
        status, said, _ = train(ALPACA[:count], "alpaca", extra, command="evaluate")
        assert status == 0, said
        assert f"as alpaca: {count} rows read, {count} kept" in said, "a changed file is read again"
        assert re.search(r"eval_loss", said)
