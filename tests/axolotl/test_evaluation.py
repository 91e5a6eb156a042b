"""The shipped evaluation on a tiny model, through `axolotl lm-eval`, lm_eval's own tasks and `solar h6`.

The six test sets are synthetic: a few rows each, in the columns of the real ones, in folders that have the
hub's names. The datasets library loads such a folder as the dataset; nothing is patched.
"""

import json
import shutil

import pytest
import yaml

from solar_plugins.evaluation.h6 import TASKS
from solar_plugins.plugins.recipe_packs import recipe_directory

pytestmark = pytest.mark.slow

NUM_TEST, NUM_SHOTS = 3, 30


def arc(i):
    return {
        "id": f"q{i}",
        "question": f"What is {i} + 1?",
        "choices": {"text": [str(i + n) for n in range(4)], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    }


def hellaswag(i):
    endings = [f"counts to {i + n}." for n in range(4)]
    return {
        "activity_label": "Counting",
        "ctx_a": f"A man counts to {i}.",
        "ctx_b": "then he",
        "endings": endings,
        "label": str(i % 4),
    }


def mmlu(i):
    return {
        "question": f"Which number follows {i}?",
        "subject": "counting",
        "choices": [str(i + n) for n in range(4)],
        "answer": 1,
    }


def truthfulqa(i):
    choices = {"choices": [f"{i} is a number.", f"{i} is a cat.", "Nobody knows."], "labels": [1, 0, 0]}
    return {"question": f"What is {i}?", "mc1_targets": choices, "mc2_targets": choices}


def winogrande(i):
    return {"sentence": f"Ann gave Eve {i} nuts because _ was kind.", "option1": "Ann", "option2": "Eve", "answer": "1"}


def gsm8k(i):
    return {"question": f"Tom has {i} nuts and finds one. How many has he?", "answer": f"{i} + 1.\n#### {i + 1}"}


def subjects():
    from pathlib import Path

    import lm_eval

    files = (Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default").glob("mmlu_*.yaml")
    return sorted(yaml.safe_load(path.read_text())["dataset_name"] for path in files)


def write_dataset(folder, configs, row, splits):
    """A dataset folder as on the hub: JSON lines, and a README that assigns files to splits."""
    entries = []
    for config in configs:
        files = [{"split": split, "path": f"{config}/{split}.jsonl"} for split in splits]
        entries.append({"config_name": config, "data_files": files})
        (folder / config).mkdir(parents=True)
        for split, size in splits.items():
            rows = (json.dumps(row(i)) + "\n" for i in range(size))
            (folder / config / f"{split}.jsonl").write_text("".join(rows))
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': entries})}---\n")


@pytest.fixture
def folder_with_datasets(tmp_path):
    train = {"train": NUM_SHOTS}
    write_dataset(tmp_path / "allenai/ai2_arc", ["ARC-Challenge"], arc, train | {"test": NUM_TEST})
    write_dataset(tmp_path / "Rowan/hellaswag", ["default"], hellaswag, train | {"validation": NUM_TEST})
    write_dataset(tmp_path / "cais/mmlu", subjects(), mmlu, {"dev": 5, "test": 1})
    write_dataset(tmp_path / "truthfulqa/truthful_qa", ["multiple_choice"], truthfulqa, {"validation": NUM_TEST})
    write_dataset(tmp_path / "allenai/winogrande", ["winogrande_xl"], winogrande, train | {"validation": NUM_TEST})
    write_dataset(tmp_path / "openai/gsm8k", ["main"], gsm8k, train | {"test": NUM_TEST})
    return tmp_path


def made_model(directory, tokenizer):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 32000}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096)
    LlamaForCausalLM(config).save_pretrained(directory)
    for path in tokenizer.iterdir():
        shutil.copy(path, directory)


@pytest.mark.nightly
def test_the_recipe_runs_and_its_results_give_the_table(folder_with_datasets, sentencepiece_tokenizer, run):
    folder = folder_with_datasets
    recipe = (recipe_directory() / "eval" / "solar_h6.yml").read_text()
    (folder / "recipe.yml").write_text(recipe.replace("lm_eval_model: outputs/solar_average", "lm_eval_model: model"))
    made_model(folder / "model", sentencepiece_tokenizer)
    cache = {"HF_HOME": str(folder / "hf"), "HF_DATASETS_OFFLINE": "1"}
    evaluated = run("axolotl", "lm-eval", "recipe.yml", cwd=folder, env=cache)
    assert evaluated.returncode == 0, evaluated.stderr[-4000:]

    files = sorted((folder / "outputs/solar_h6/lm_eval_results").rglob("results_*.json"))
    contents = [json.loads(path.read_text()) for path in files]
    assert sorted(shots for content in contents for shots in set(content["n-shot"].values())) == [0, 5, 10, 25]
    shown = run("solar", "h6", "outputs/solar_h6", "--json", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    [model] = json.loads(shown.stdout)["models"]
    assert model["model"] == "model"
    assert model["h6"] is None, "not the real test sets"
    for task in TASKS:
        [value] = [c["results"][task.name][task.metric] for c in contents if task.name in c["results"]]
        score = model["scores"][task.name]
        assert score["percent"] == 100 * value
        assert score["examples"] == (57 if task.name == "mmlu" else NUM_TEST)
        assert not score["whole_test_set"]

    text = run("solar", "h6", *files, cwd=folder).stdout
    [row] = [line.split() for line in text.splitlines() if line.startswith("model ") and "H6" not in line]
    assert row[1:] == ["-", *(f"*{model['scores'][task.name]['percent']:.2f}" for task in TASKS)]
    assert "GSM8K on 3 examples (the test set has 1,319)" in text
