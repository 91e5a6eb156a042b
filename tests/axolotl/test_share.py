"""A recipe goes from a finished run through the Hub to another folder with another HF_HOME, and is reproduced there."""

import json
import shutil
import sys

import commands
import pytest
import yaml
from commands import HERE, PROGRAMS
from doc_blocks import blocks_of, commands_of

REPOSITORY = HERE.parent
TITLES = ("Share a recipe", "Reproduce a recipe")


def launch():
    return f"{sys.executable} -I -S {HERE / 'warm_client.py'} {commands.warm_server().name}"


def solar(*arguments, **options):
    return commands.run([str(PROGRAMS / "solar"), *map(str, arguments)], **options)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def here(training_folder):
    """A tiny pipeline: upscale and pretrain, then instruction tuning."""
    recipe = yaml.safe_load((training_folder / "recipe.yml").read_text()) | {"max_steps": 6, "save_strategy": "no"}
    (training_folder / "dus.yml").write_text("# The first stage.\n" + yaml.safe_dump(recipe))
    rows = [{"instruction": f"What follows {i}?", "input": "", "output": f"{i + 1}"} for i in range(20)]
    write_rows(training_folder / "questions.jsonl", [*rows, {"instruction": "", "input": "", "output": ""}])
    later = {key: recipe[key] for key in recipe if key not in ("solar", "datasets")}
    later |= {
        "base_model": "out",
        "output_dir": "sft",
        "chat_template": "solar",
        "solar": {"data": {"max_bad_share": 0.1}},
    }
    later["datasets"] = [{"path": "questions.jsonl", "ds_type": "json", "type": "solar_plugins.alpaca"}]
    (training_folder / "sft.yml").write_text(yaml.safe_dump(later))
    stages = [{"name": "dus", "recipe": "dus.yml"}, {"name": "sft", "recipe": "sft.yml"}]
    pipeline = {"records": "records", "launch": launch(), "stages": stages}
    (training_folder / "pipeline.yml").write_text(yaml.safe_dump(pipeline))
    return training_folder


def commands_of_the_guide():
    """The commands of the guide's two sections: on the machine of the run, and on another one."""
    page = REPOSITORY / "docs" / "guides" / "share.md"
    start, turn = (page.read_text()[: page.read_text().index(f"## {title}")].count("\n") for title in TITLES)
    found = {block.line > turn: [] for block in blocks_of(page) if block.line > start}
    for block in blocks_of(page):
        if block.line > start and block.language == "bash":
            found[block.line > turn] += [command.words for command in commands_of(block)]
    return found[False], found[True]


@pytest.mark.slow
def test_a_recipe_goes_through_the_hub_and_is_reproduced_elsewhere(here, hub, tmp_path_factory):
    """By the commands of the guide, with a folder, an HF_HOME and data of its own on each side."""
    on_this_machine, elsewhere = commands_of_the_guide()
    hub.organizations.append("your-name")
    one, other = (hub.environment(tmp_path_factory.mktemp(name)) for name in ("one", "other"))
    for words in on_this_machine:
        done = solar(*words[1:], cwd=here, env={} if "run" in words else one)
        assert done.returncode == 0, done.stdout + done.stderr
    repo = hub.repos["model", "your-name/solar-recipe"]
    assert repo.private
    assert len(repo.commits) == 2, "the first one is the Hub's own"

    there = tmp_path_factory.mktemp("there")
    (there / "data").mkdir()
    for name in ("base", "train.jsonl", "questions.jsonl"):
        shutil.move(here / name, there / "data" / name)
    shutil.rmtree(here)
    fetch, check, reproduce = elsewhere
    for words in (fetch, check):
        done = solar(*words[1:], cwd=there, env=other)
        assert done.returncode == 0, done.stdout + done.stderr
    fetched = [path for path in (there / "solar-recipe").rglob("*") if path.is_file()]
    assert len(fetched) > 10
    for path in fetched:
        assert str(here).encode() not in path.read_bytes(), path

    without = [word for word in reproduce[1:] if word != "--set" and "=" not in word]
    refused = solar(*without, cwd=there, env=other)
    assert refused.returncode == 1
    assert "--set BASE_MODEL=... --set QUESTIONS=... --set TRAIN=..." in refused.stderr
    same = solar(*reproduce[1:], "--stage", "dus", "--launch", "python", cwd=there, env=other)
    assert same.returncode == 0, same.stdout + same.stderr
    for said in (
        "The same packages and devices here",
        "dus: the same data and base here",
        "5 steps of 10 rows  same    5 losses exactly equal",
        "Reproduced",
    ):
        assert said in same.stdout
    log = json.loads((there / "reproduction" / "dus" / "solar_run" / "log.json").read_text())
    assert (log["global_step"], log["max_steps"]) == (5, 6), "the schedule is that of the entire run"


@pytest.mark.slow
@pytest.mark.nightly
def test_a_pipeline_is_reproduced_and_a_changed_data_file_is_caught(here):
    """After a few steps of the first stage, the base of the second is another one; after all steps it is the same."""
    assert solar("run", "pipeline.yml", cwd=here).returncode == 0
    built = solar("recipes", "share", "pipeline.yml", "--to", "org/tiny", cwd=here)
    assert built.returncode == 0, built.stdout + built.stderr

    def repeat(*options, rows="train.jsonl"):
        values = [f"--set={value}" for value in ("BASE_MODEL=base", f"TRAIN={rows}", "QUESTIONS=questions.jsonl")]
        return solar("recipes", "reproduce", "tiny", "--launch", launch(), *values, *options, cwd=here)

    entire = repeat()
    assert entire.returncode == 0, entire.stdout + entire.stderr
    assert entire.stdout.count("6 losses exactly equal") == 2

    few = repeat("--steps", 2, "--output", "few")
    assert few.returncode == 0, few.stdout + few.stderr
    assert "2 steps of 4 rows  same          2 losses exactly equal" in few.stdout
    assert "2 steps of 4 rows  not compared  the base is not that of the bundle" in few.stdout

    second = repeat("--set", "DUS=out", "--stage", "sft", "--steps", 1, "--output", "second")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "1 loss exactly equal" in second.stdout

    rows = (here / "train.jsonl").read_text().splitlines(keepends=True)
    (here / "changed.jsonl").write_text("".join(reversed(rows)))
    changed = repeat("--steps", 1, "--stage", "dus", "--output", "changed", rows="changed.jsonl")
    assert changed.returncode == 1
    assert "dus datasets[0] (train.jsonl)  40 rows, hash" in changed.stdout
    assert "differ  from step 1 on" in changed.stdout
    assert "not reproduced" in changed.stderr
