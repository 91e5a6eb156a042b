"""Problems -> endpoint -> checked rows -> mixtures -> SFT and DPO of a tiny model, in one pipeline file."""

import json
import sys
from itertools import pairwise

import commands
import pytest
import yaml
from commands import PROGRAMS
from stand_in_endpoint import KEY, MODEL, problem, stand_in_endpoint, write_problems


def write(path, content):
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def write_pipeline(folder, url):
    """The files of every stage; the first problem's solution is a benchmark text, which must not be trained on."""
    write_problems(folder / "problems.jsonl", 12)
    (folder / "benchmark.txt").write_text(problem(0)["answer"].partition("\n")[0])
    tiny = yaml.safe_load((folder / "recipe.yml").read_text())
    del tiny["solar"]["init"], tiny["datasets"], tiny["output_dir"]
    tiny |= {"sequence_len": 384, "micro_batch_size": 1, "learning_rate": 1.0e-3}
    write(
        folder / "maths.yml",
        {
            "seeds": {"path": "problems.jsonl", "license": "cc0-1.0"},
            "endpoint": {"base_url": url, "model": MODEL, "key_variable": "STAND_IN_KEY"},
            "kinds": {"rephrase": {"samples": 2}, "solve": {"votes": 2, "agree": 2}, "fobar": None},
            "output": "data/maths",
        },
    )
    for stage, file, columns in (
        ("sft", "instructions", ["query", "response"]),
        ("dpo", "preferences", ["rephrased_question", "rephrased_answer", "original_answer"]),
    ):
        one = {"path": f"data/maths/{file}.jsonl", "rows": 20, "text_columns": columns}
        against = [{"path": "benchmark.txt"}]
        write(
            folder / f"{stage}_data.yml",
            {"output": f"data/{stage}", "sets": {"maths": one}, "decontaminate": {"against": against, "ngram": 9}},
        )
    base = yaml.safe_load((folder / "recipe.yml").read_text())
    write(folder / "dus.yml", base | {"output_dir": "outputs/dus", "max_steps": 1})
    entry = {"path": "data/sft/maths.jsonl", "ds_type": "json", "type": "solar_plugins.metamath"}
    sft = tiny | {"base_model": "outputs/dus", "datasets": [entry], "output_dir": "outputs/sft", "max_steps": 4}
    write(folder / "sft.yml", sft | {"solar": {"data": {"bad_rows": "stop"}}})
    entry = {"path": "data/dpo/maths.jsonl", "split": "train", "type": "solar_plugins.math_pairs"}
    dpo = tiny | {"base_model": "outputs/sft", "rl": "dpo", "datasets": [entry], "output_dir": "outputs/dpo"}
    write(folder / "dpo.yml", dpo | {"solar": {"dpo": "zephyr_2023_11"}, "max_steps": 3})
    launch = f"{sys.executable} -I -S {commands.HERE / 'warm_client.py'} {commands.warm_server().name}"
    stages = [
        {"name": "dus", "recipe": "dus.yml"},
        {
            "name": "maths",
            "command": f"{PROGRAMS / 'solar'} maths maths.yml",
            "inputs": ["maths.yml", "problems.jsonl"],
            "outputs": ["data/maths"],
        },
        {"name": "sft_data", "mixture": "sft_data.yml"},
        {"name": "sft", "recipe": "sft.yml"},
        {"name": "dpo_data", "mixture": "dpo_data.yml"},
        {"name": "dpo", "recipe": "dpo.yml"},
    ]
    write(folder / "pipeline.yml", {"records": "records", "launch": launch, "stages": stages})


@pytest.mark.slow
def test_from_problems_to_a_preference_trained_model(training_folder, run):
    from safetensors.torch import load_file

    def wrong(number, prompt, seed):
        return "wrong" if "Ada" in prompt else None

    with stand_in_endpoint(fault=wrong) as endpoint:
        write_pipeline(training_folder, endpoint.url)
        env = commands.environment(STAND_IN_KEY=KEY)
        first = run("solar", "run", "pipeline.yml", cwd=training_folder, env=env)
        assert first.returncode == 0, first.stdout + first.stderr
        asked = endpoint.asked.total()
        again = run("solar", "run", "pipeline.yml", cwd=training_folder, env=env)
        assert again.returncode == 0, again.stderr
        assert (again.stdout + again.stderr).count(": done") >= 6
        assert endpoint.asked.total() == asked

    def rows(name):
        return [json.loads(line) for line in (training_folder / "data" / name).read_text().splitlines()]

    made = rows("maths/instructions.jsonl")
    assert {row["type"] for row in made} == {"rephrase", "solve", "fobar"}
    assert not any("Ada" in row["query"] for row in made), "her answers are wrong"
    assert len(rows("sft/maths.jsonl")) == 20
    assert 0 < len(rows("dpo/maths.jsonl")) < 20
    dropped = rows("dpo/dropped.jsonl")
    assert {row["reason"] for row in dropped} == {"benchmark_overlap"}, "the first problem's answer is a benchmark text"
    models = [load_file(training_folder / "outputs" / stage / "model.safetensors") for stage in ("dus", "sft", "dpo")]
    for before, after in pairwise(models):
        assert any(not before[name].equal(after[name]) for name in before)
    text = first.stdout + first.stderr
    assert KEY not in text
    assert not [path for path in (training_folder / "records").rglob("*") if path.is_file() and KEY in path.read_text()]
