import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_results import SHOTS, lm_eval_results, write_results

from solar_plugins.cli import solar
from solar_plugins.evaluation.h6 import TASKS, as_json, as_text, h6, h6_standard_error, read_scores

SOLAR = Path(sys.executable).parent / "solar"
INSTRUCT = (0.7108, 0.8816, 0.6621, 0.7143, 0.8358, 0.6475)
"""SOLAR-Instruct's six scores; the paper's mean of them is 74.20."""


def models(tmp_path, *contents):
    return read_scores(write_results(tmp_path / f"results_{i}.json", content) for i, content in enumerate(contents))


def instruct(**options):
    return lm_eval_results(dict(zip(SHOTS, INSTRUCT, strict=True)), **options)


def test_the_paper_s_scores_give_the_paper_s_mean(tmp_path):
    [model] = models(tmp_path, instruct())
    assert round(h6(model), 2) == 74.20
    assert h6_standard_error(model) == pytest.approx(1 / 6**0.5), "six errors of one percent: sqrt(6) / 6"
    text = as_text([model])
    assert text.startswith(TABLE)
    assert "arXiv:2312.15166" in text
    assert "SFT v3 70.03, SFT v4 70.88" in text


TABLE = """\
model                     H6    ARC  HellaSwag   MMLU  TruthfulQA  Winogrande  GSM8K
shots                            25         10      5           0           5      5
------------------------------------------------------------------------------------
Mistral 7B             60.97  59.98      83.31  64.16       42.15       78.37  37.83
SOLAR 10.7B            66.04  61.95      84.60  65.48       45.04       83.66  55.50
SOLAR 10.7B-Instruct   74.20  71.08      88.16  66.21       71.43       83.58  64.75
Mixtral 8x7B-Instruct  72.62  70.22      87.63  71.16       64.58       81.37  60.73
------------------------------------------------------------------------------------
outputs/mine           74.20  71.08      88.16  66.21       71.43       83.58  64.75
  standard error       ±0.41  ±1.00      ±1.00  ±1.00       ±1.00       ±1.00  ±1.00
"""


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_missing_task_is_shown_as_missing_and_no_mean_is_made(tmp_path, task):
    scores = dict(zip(SHOTS, INSTRUCT, strict=True))
    del scores[task.name]
    [model] = models(tmp_path, lm_eval_results(scores))
    assert h6(model) is h6_standard_error(model) is None
    text = as_text([model])
    [row] = [line.split() for line in text.splitlines() if line.startswith("outputs/mine")]
    assert row[1] == "-"
    assert row[2 + TASKS.index(task)] == "-"
    assert row.count("-") == 2
    assert re.search(rf"^- outputs/mine: no H6, .*not run: {task.name}$", text, re.MULTILINE)


def test_a_part_of_a_test_set_is_marked_and_no_mean_is_made(tmp_path):
    content = instruct()
    content["n-samples"]["gsm8k"]["effective"] = 10
    content["n-samples"]["mmlu_anatomy"]["effective"] = 100
    [model] = models(tmp_path, content)
    text = as_text([model])
    assert h6(model) is None
    assert "*64.75" in text
    assert "*66.21" in text
    assert re.search(r"^\* outputs/mine: no H6, .*MMLU .*14,007 of 14,042 .*GSM8K .*10 of 1,319", text, re.MULTILINE)


def test_without_standard_errors_there_is_no_line_of_them(tmp_path):
    [model] = models(tmp_path, instruct(error="N/A"))
    assert h6_standard_error(model) is None
    assert "±" not in as_text([model])


def test_two_models_a_chat_template_and_a_name_that_would_move_the_cursor(tmp_path):
    both = models(tmp_path, instruct(), instruct(model="evil\x1b[2J\nname") | {"chat_template": "x"})
    text = as_text(both)
    assert "\nevil�[2J name  " in text
    assert re.search(
        r"^evil�\[2J name: .*chat template.*: ARC, HellaSwag, MMLU, TruthfulQA, Winogrande, GSM8K$", text, re.M
    )
    assert not re.search("outputs/mine: .*chat template", text)


def test_json_has_the_same_and_null_where_nothing_is_known(tmp_path):
    [model] = models(tmp_path, lm_eval_results({"arc_challenge": 0.625}))
    content = as_json([model])
    assert content["models"] == [
        {
            "model": "outputs/mine",
            "h6": None,
            "h6_standard_error": None,
            "scores": dict.fromkeys(task.name for task in TASKS)
            | {
                "arc_challenge": {
                    "percent": 62.5,
                    "standard_error": 1.0,
                    "examples": 1172,
                    "whole_test_set": True,
                    "file": str(tmp_path / "results_0.json"),
                }
            },
            "with_chat_template": [],
        }
    ]
    assert content["published"]["models"][1]["scores"]["gsm8k"] == 55.50
    assert content["tasks"][0] == {
        "name": "arc_challenge",
        "label": "ARC",
        "shots": 25,
        "metric": "acc_norm,none",
    }


def test_the_command_prints_the_table_and_starts_without_torch(tmp_path):
    """`python -X importtime` lists every module that is imported."""
    write_results(tmp_path / "results_1.json", instruct())
    command = [sys.executable, "-X", "importtime", str(SOLAR), "h6", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(TABLE)
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "click" in modules
    assert not modules & {"torch", "axolotl", "transformers", "numpy", "lm_eval"}


def test_an_unusable_file_is_one_paragraph_and_exit_status_1(tmp_path):
    result = CliRunner().invoke(solar, ["h6", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path}: no results_*.json in this folder")
    assert "--output_path" in result.stderr
    assert result.stdout == ""
