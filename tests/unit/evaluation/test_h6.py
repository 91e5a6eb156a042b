import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_results import SHOTS, lm_eval_results, write_results

from solar_plugins.cli import solar
from solar_plugins.evaluation.h6 import (
    TASKS,
    EvaluationError,
    as_json,
    as_text,
    h6,
    h6_standard_error,
    read_scores,
    result_files,
)

SOLAR = Path(sys.executable).parent / "solar"
INSTRUCT = (0.7108, 0.8816, 0.6621, 0.7143, 0.8358, 0.6475)
"""SOLAR-Instruct's six scores; the paper's mean of them is 74.20."""


def models(tmp_path, *contents):
    return read_scores(write_results(tmp_path / f"results_{i}.json", content) for i, content in enumerate(contents))


def instruct(**options):
    return lm_eval_results(dict(zip(SHOTS, INSTRUCT, strict=True)), **options)


def test_the_papers_scores_have_the_papers_mean(tmp_path):
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
def test_a_missing_task_means_no_h6(tmp_path, task):
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


def test_a_partial_test_set_is_marked_and_means_no_h6(tmp_path):
    content = instruct()
    content["n-samples"]["gsm8k"]["effective"] = 10
    content["n-samples"]["mmlu_anatomy"]["effective"] = 100
    [model] = models(tmp_path, content)
    text = as_text([model])
    assert h6(model) is None
    assert "*64.75" in text
    assert "*66.21" in text
    assert re.search(
        r"^\* outputs/mine: no H6, .*MMLU on 14,007 examples .*14,042.*GSM8K on 10 examples .*1,319", text, re.MULTILINE
    )


def test_no_row_of_standard_errors_without_them(tmp_path):
    [model] = models(tmp_path, instruct(error="N/A"))
    assert h6_standard_error(model) is None
    assert "±" not in as_text([model])


def test_two_models_a_chat_template_and_control_characters_in_a_name(tmp_path):
    both = models(tmp_path, instruct(), instruct(model="evil\x1b[2J\nname") | {"chat_template": "x"})
    text = as_text(both)
    assert "\nevil�[2J name  " in text
    assert re.search(
        r"^evil�\[2J name: .*chat template.*: ARC, HellaSwag, MMLU, TruthfulQA, Winogrande, GSM8K$", text, re.M
    )
    assert not re.search("outputs/mine: .*chat template", text)


def test_json_has_null_for_unknown_values(tmp_path):
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


ARC, _, MMLU, *_ = TASKS


def read(tmp_path, *contents):
    files = [write_results(tmp_path / f"results_{i}.json", content) for i, content in enumerate(contents)]
    return read_scores(files)


def test_scores_errors_and_sizes(tmp_path):
    [model] = read(tmp_path, lm_eval_results({"arc_challenge": 0.625, "mmlu": 0.5}, error=0.0125))
    assert model.model == "outputs/mine"
    assert {task.name: (score.percent, score.standard_error) for task, score in model.scores.items()} == {
        "arc_challenge": (62.5, 1.25),
        "mmlu": (50.0, 1.25),
    }
    assert model.scores[ARC].examples == 1172
    assert model.scores[MMLU].examples == 14042, "the sum over the subjects of its groups"
    assert model.scores[ARC].file == tmp_path / "results_0.json"


def test_several_files_of_one_model_and_of_two(tmp_path):
    models = read(
        tmp_path,
        lm_eval_results({"arc_challenge": 0.5}),
        lm_eval_results({"gsm8k": 0.25}),
        lm_eval_results({"gsm8k": 0.75}, model="outputs/other"),
    )
    assert [(model.model, [task.name for task in model.scores]) for model in models] == [
        ("outputs/mine", ["arc_challenge", "gsm8k"]),
        ("outputs/other", ["gsm8k"]),
    ]


@pytest.mark.parametrize("error", ["N/A", None, float("nan")])
def test_no_standard_error_and_a_chat_template(tmp_path, error):
    content = lm_eval_results({"gsm8k": 0.0}, error=error) | {"chat_template": "{{ messages }}"}
    [model] = read(tmp_path, content)
    [(task, score)] = model.scores.items()
    assert score.standard_error is None
    assert model.with_chat_template == (task,)


def test_folders_are_searched_and_a_file_given_twice_is_one(tmp_path):
    first = write_results(tmp_path / "lm_eval_results" / "20260101" / "m" / "results_1.json", lm_eval_results({}))
    second = write_results(tmp_path / "lm_eval_results" / "20260102" / "m" / "results_2.json", lm_eval_results({}))
    write_results(tmp_path / "samples_1.json", {})
    assert result_files([tmp_path, first]) == [first, second]


def changed(path, value):
    """A right file, but for one key."""
    content = lm_eval_results(dict.fromkeys(SHOTS, 0.5))
    *way, last = path
    place = content
    for key in way:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "not valid JSON (Expecting value"),
        ("[" * 100_000, "not valid JSON ("),
        ("[]", "list, expected a JSON object; use the file results_*.json"),
        ('{"base_model": "x"}', "results: missing, expected a map"),
        ('{"results": 3}', "results: is int, expected a map"),
        ('{"results": {"mmlu_pro": {}, "bbh": {}}}', "results: found bbh, mmlu_pro; expected at least one of arc_chal"),
        ('{"results": {}}', "results: found no tasks; expected at least one of arc_challenge"),
        (
            changed(["results", "arc_challenge", "acc_norm,none"], None),
            "results.arc_challenge: holds other,none; expec",
        ),
        (
            changed(["results", "gsm8k", "exact_match,strict-match"], "N/A"),
            "strict-match: 'N/A'; expected a number betw",
        ),
        (
            changed(["results", "winogrande", "acc,none"], 83.66),
            "results.winogrande.acc,none: 83.66; expected a number",
        ),
        (changed(["results", "winogrande", "acc,none"], float("nan")), "results.winogrande.acc,none: nan; expected"),
        (changed(["results", "winogrande", "acc,none"], True), "results.winogrande.acc,none: True; expected a number"),
        (changed(["results", "winogrande", "acc_stderr,none"], -1), "results.winogrande.acc_stderr,none: -1; expected"),
        (
            changed(["n-shot", "hellaswag"], 0),
            "n-shot.hellaswag: 0; expected 10",
        ),
        (
            changed(["n-shot", "mmlu_virology"], 0),
            "n-shot.mmlu_virology: 0; expected 5",
        ),
        (changed(["n-shot"], None), "n-shot.arc_challenge: None; expected 25"),
        (changed(["n-samples", "gsm8k"], None), "n-samples.gsm8k.effective: None; expected"),
        (changed(["n-samples", "gsm8k", "effective"], 0), "n-samples.gsm8k.effective: 0; expected"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "results_1.json"
    path.write_text(text)
    with pytest.raises(EvaluationError) as raised:
        read_scores([path])
    assert str(raised.value).startswith(f"{path}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_unchanged_file_is_valid(tmp_path):
    [model] = read(tmp_path, json.loads(changed(["model_name"], "m")))
    assert list(model.scores) == list(TASKS)


def test_two_scores_of_one_task_are_an_error(tmp_path):
    with pytest.raises(EvaluationError, match=r"results_1.json: gsm8k of outputs/mine is also in .*results_0.json"):
        read(tmp_path, lm_eval_results({"gsm8k": 0.5}), lm_eval_results({"gsm8k": 0.25}))


def test_paths_without_results(tmp_path):
    with pytest.raises(EvaluationError, match=r"no results_\*\.json in this folder"):
        result_files([tmp_path])
    with pytest.raises(EvaluationError, match=r"nowhere.json: cannot be read \(No such file or directory\)"):
        read_scores(result_files([tmp_path / "nowhere.json"]))


def test_cyclic_groups_end(tmp_path):
    content = lm_eval_results({"mmlu": 0.5})
    content["group_subtasks"] = {"mmlu": ["mmlu_stem"], "mmlu_stem": ["mmlu"]}
    with pytest.raises(EvaluationError, match="n-shot"):
        read(tmp_path, content)


CONFIG = {"model": "hf", "model_args": "pretrained=org/a,dtype=float16"}


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"model_name": "org/a"}, "org/a"),
        ({"model_name": "org/a", "config": CONFIG}, "org/a"),
        # lm_eval.simple_evaluate, saved with json.dump: arguments as text up to 0.4.8, as a map since
        ({"model_name": None, "config": CONFIG}, "org/a"),
        (
            {"model_name": None, "config": {"model": "hf", "model_args": {"pretrained": "org/a", "dtype": None}}},
            "org/a",
        ),
        ({"model_name": None, "config": {"model": "local-completions", "model_args": "model=org/a"}}, "org/a"),
        # a model that was handed over as an object
        ({"model_name": None, "config": {"model": "org/a", "model_args": None}}, "org/a"),
        ({"model_name": None, "config": {"model": "HFLM", "model_args": ""}}, "unnamed model of {file}"),
        ({"model_name": None}, "unnamed model of {file}"),
        ({"model_name": "", "config": []}, "unnamed model of {file}"),
        # other weights under one name
        ({"model_name": "a", "config": {"model_args": "pretrained=a,revision=s1"}}, "a (revision=s1)"),
        ({"model_name": "a", "config": {"model_args": "pretrained=a,revision=main"}}, "a"),
        ({"model_name": "ad", "config": {"model_args": "pretrained=a,peft=ad"}}, "ad"),
        ({"model_name": "a", "config": {"model_args": {"pretrained": "a", "subfolder": "x"}}}, "a (subfolder=x)"),
        ({"model_name": "a", "config": {"model_args": "pretrained=a,load_in_4bit=True"}}, "a (load_in_4bit=True)"),
        ({"model_name": "a", "config": {"model_args": {"pretrained": "a", "load_in_4bit": False}}}, "a"),
    ],
)
def test_the_name_of_a_model(tmp_path, changes, label):
    [model] = read(tmp_path, lm_eval_results({"gsm8k": 0.5}) | changes)
    assert model.model == label.format(file=tmp_path / "results_0.json")


def test_results_without_a_name_are_separate_models(tmp_path):
    halves = [dict.fromkeys(list(SHOTS)[:3], 0.5), dict.fromkeys(list(SHOTS)[3:], 0.5)]
    models = read(tmp_path, *(lm_eval_results(half, model=None) for half in halves))
    assert [len(model.scores) for model in models] == [3, 3]


@pytest.mark.parametrize("value", [[0.5], 0.5, "N/A", None, [{"acc_norm,none": 0.5}]])
def test_a_task_whose_result_is_not_a_map(tmp_path, value):
    path = tmp_path / "results_1.json"
    path.write_text(json.dumps({"results": {"arc_challenge": value}}))
    with pytest.raises(EvaluationError, match=r"results\.arc_challenge: has type \w+; expected a map"):
        read_scores([path])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_files_that_an_editor_saved(tmp_path, encoding):
    path = tmp_path / "results_1.json"
    path.write_bytes(json.dumps(lm_eval_results({"gsm8k": 0.5}, model="é"), ensure_ascii=False).encode(encoding))
    assert read_scores([path])[0].model == "é"
