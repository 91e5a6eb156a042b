import importlib.metadata
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import solar_plugins
from solar_plugins.cli import solar

SOLAR = Path(sys.executable).parent / "solar"


def invoke(*arguments):
    result = CliRunner().invoke(solar, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def recipe(base, tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_text(
        yaml.safe_dump(
            {"base_model": str(base), "solar": {"init": {"strategy": "dus", "drop_layers": 2}}, "sequence_len": 256}
        )
    )
    return path


def test_plan_as_json(base):
    report = json.loads(invoke("plan", "--base", base, "--strategy", "dus", "--drop-layers", 2, "--json"))
    assert report["base_layers"] == 8
    assert report["num_layers"] == 12
    assert report["layers"] == [{"source": i, "initialization": "copy"} for i in (*range(6), *range(2, 8))]
    assert report["seams"] == [{"position": 6, "below": 5, "above": 2, "distance": 3}]
    assert report["checkpoint_bytes"] == 2 * report["parameters"]
    assert report["dtype"] == "bfloat16"
    assert report["memory"][0]["total_bytes"] > report["memory"][0]["state_bytes"] > 0
    assert "solar plan RECIPE --memory" in report["memory_note"]


@pytest.mark.parametrize("said", ["scaled", "{initializer: scaled, factor: '0.5'}"])
def test_how_duplicates_are_initialized(base, tmp_path, said):
    """The same from the command line, for a plan and for a checkpoint, as from a recipe."""
    options = ["--base", base, "--drop-layers", 2, "--duplicates", said]
    report = json.loads(invoke("plan", *options, "--json"))
    scaled = {"initialization": "scaled", "arguments": {"factor": 0.5}}
    assert report["layers"][5:8] == [
        {"source": 5, "initialization": "copy"},
        {"source": 2} | scaled,
        {"source": 3} | scaled,
    ]
    path = tmp_path / "recipe.yml"
    init = {"strategy": "dus", "drop_layers": 2, "duplicates": {"initializer": "scaled"}}
    path.write_text(yaml.safe_dump({"base_model": str(base), "solar": {"init": init}}))
    assert json.loads(invoke("plan", path, "--json"))["layers"] == report["layers"]
    invoke("upscale", base, tmp_path / "out", "--drop-layers", 2, "--duplicates", said)
    assert "as scaled (factor 0.5)" in invoke("verify", tmp_path / "out", "--base", base)
    assert "value: 0.5" in invoke("mergekit", path)


def test_plan_of_a_recipe_is_the_same(base, recipe):
    from_recipe = json.loads(invoke("plan", recipe, "--json"))
    from_base = json.loads(invoke("plan", "--base", base, "--drop-layers", 2, "--json"))
    assert from_recipe["sequence_tokens"] == 256
    differing = {key for key in from_base if from_base[key] != from_recipe[key]}
    assert differing == {"memory", "sequence_tokens"}


def test_plan_from_config_alone_equals_the_plan_from_weights(base):
    with_weights = json.loads(invoke("plan", "--base", base, "--drop-layers", 2, "--json"))
    config_only = json.loads(invoke("plan", "--base", base / "config.json", "--drop-layers", 2, "--json"))
    assert (with_weights.pop("weights_checked"), config_only.pop("weights_checked")) == (True, False)
    assert {**with_weights, "base": ""} == {**config_only, "base": ""}
    assert "not checked" in invoke("plan", "--base", base / "config.json", "--drop-layers", 2)


def test_plan_from_a_config_that_does_not_tell_the_parameters(tmp_path):
    config = {
        "model_type": "gpt_oss",
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = json.loads(invoke("plan", "--base", tmp_path / "config.json", "--drop-layers", 1, "--json"))
    assert report["num_layers"] == 6
    assert report["parameters"] is report["checkpoint_bytes"] is None
    assert report["memory"] == []
    text = invoke("plan", "--base", tmp_path / "config.json", "--drop-layers", 1)
    assert "for model_type 'gpt_oss' config.json alone is not enough; give the folder with its weights" in text
    assert "seam: layer 2 feeds layer 1, distance 1" in text


@pytest.mark.parametrize("option", [["--revision", "main"], ["--strategy", "dus"], ["--trust-remote-code"]])
def test_plan_of_a_recipe_takes_no_option_that_the_recipe_says(recipe, option):
    result = CliRunner().invoke(solar, ["plan", str(recipe), *option])
    assert result.exit_code == 2
    assert "conflict with RECIPE; use --base" in result.stderr


def test_a_base_with_its_own_code_must_be_trusted(base, tmp_path):
    config = json.loads((base / "config.json").read_text()) | {"auto_map": {"AutoModelForCausalLM": "mine.Mine"}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "mine.py").write_text("raise SystemExit('never run')")
    refused = CliRunner().invoke(solar, ["upscale", str(base), str(tmp_path / "out"), "--drop-layers", "2"])
    assert refused.exit_code == 1
    assert "auto_map" in refused.stderr
    invoke("upscale", base, tmp_path / "out", "--drop-layers", 2, "--trust-remote-code")
    assert (tmp_path / "out" / "mine.py").is_file()


def test_plan_as_text_shows_the_new_model_with_its_top_on_top(recipe):
    lines = invoke("plan", recipe).splitlines()
    assert "8 -> 12 layers by dus" in lines[0]
    assert "new     6..11   = base 2..7" in lines[4]
    assert "seam: layer 5 feeds layer 2, distance 3" in lines[5]
    assert "new      0..5   = base 0..5" in lines[6]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plan_draws(recipe, tmp_path, suffix):
    invoke("plan", recipe, "--plot", tmp_path / f"plan.{suffix}")
    start = (tmp_path / f"plan.{suffix}").read_bytes()[:200]
    assert start.startswith(b"\x89PNG") or b"<svg" in start or b"<?xml" in start


def test_plan_needs_a_recipe_or_a_base(recipe, base):
    for arguments in ([], [recipe, "--base", base], [recipe, "--drop-layers", "2"]):
        assert CliRunner().invoke(solar, ["plan", *map(str, arguments)]).exit_code == 2


def test_plan_of_the_memory_of_a_recipe(recipe):
    report = json.loads(invoke("plan", recipe, "--memory", "--gpus", 2, "--gpu-memory", 24, "--json"))
    assert (report["num_layers"], report["gpus"], report["gpu_memory_bytes"]) == (12, 2, 24_000_000_000)
    text = invoke("plan", recipe, "--memory", "--gpus", 2, "--gpu-memory", 24)
    assert "GPUs        2, 24 GB each (from --gpus)" in text
    assert "\nweights " in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory"], "--memory needs a RECIPE"),
        (["{recipe}", "--memory", "--drop-layers", "2"], "--memory needs a RECIPE"),
        (["{recipe}", "--memory", "--plot", "p.png"], "--memory needs a RECIPE"),
        (["{recipe}", "--gpus", "2"], "--gpus and --gpu-memory require --memory"),
    ],
)
def test_options_that_do_not_go_with_memory(recipe, options, message):
    result = CliRunner().invoke(solar, ["plan", *(option.format(recipe=recipe) for option in options)])
    assert result.exit_code == 2
    assert message in result.stderr


def test_an_upscaled_base_is_rejected_for_the_merge(base, recipe, tmp_path):
    invoke("upscale", base, tmp_path / "grown", "--drop-layers", 2)
    content = yaml.safe_load(recipe.read_text()) | {"base_model": str(tmp_path / "grown")}
    recipe.write_text(yaml.safe_dump(content))
    result = CliRunner().invoke(solar, ["mergekit", str(recipe)])
    assert result.exit_code == 1
    assert re.search(r"base_model: .*grown was already upscaled by this plan; give the base", result.stderr)
    assert json.loads(invoke("plan", recipe, "--memory", "--gpus", 1, "--json"))["num_layers"] == 12


def test_upscale_writes_a_checkpoint_and_says_so(base, tmp_path):
    out = tmp_path / "out"
    command = ["upscale", base, out, "--strategy", "slices", "--slices", "0:6,2:8"]
    assert invoke(*command).endswith(f"{out}: 8 -> 12 layers: [0..5] + [2..7]\n")
    assert "already there" in invoke(*command)
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 12


def test_mergekit_prints_yaml(base, recipe):
    merge = yaml.safe_load(invoke("mergekit", recipe))
    assert merge["slices"][1]["sources"] == [{"model": str(base), "layer_range": [2, 8]}]


def test_every_argument_of_every_strategy_is_an_option():
    text = invoke("plan", "--help")
    assert all(option in text for option in ("--drop-layers", "--target-layers", "--slices", "[dus]", "[slices]"))


def test_recipes_are_listed_and_copied(tmp_path):
    listed = invoke("recipes", "list")
    assert "solar_plugins/solar_dus.yml  SOLAR 10.7B, stage 1" in listed
    invoke("recipes", "copy", tmp_path / "recipes")
    assert (tmp_path / "recipes" / "deepspeed" / "zero3_bf16.json").is_file()
    (tmp_path / "recipes" / "solar_dus.yml").write_text("mine")
    refused = CliRunner().invoke(solar, ["recipes", "copy", str(tmp_path / "recipes")])
    assert refused.exit_code == 1
    assert "solar_dus.yml: exists with other content; nothing was copied" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--base", "{base}", "--drop-layers", "9"], "drop_layers: 9 is impossible for a base of 8 layers"),
        (["plan", "--base", "./nowhere", "--drop-layers", "1"], "base_model: './nowhere' is neither a local directory"),
        (["plan", "missing.yml"], "missing.yml: cannot be read (No such file or directory)"),
        (["upscale", "{base}", "{base}/out", "--strategy", "dsu"], "strategy: 'dsu' is not a registered strategy"),
        (["recipes", "copy", "{base}/config.json"], "{base}/config.json: is a file, not a directory"),
        (["plan", "--base", "{base}", "--slices", "0:4"], "slices: unknown key; known: drop_layers, target_layers"),
    ],
)
def test_an_error_is_one_paragraph_and_exit_status_1(base, arguments, message):
    result = CliRunner().invoke(solar, [argument.format(base=base) for argument in arguments])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {message.format(base=base)}")
    assert result.stdout == ""


def test_with_the_debug_switch_an_error_has_its_traceback(base, monkeypatch):
    monkeypatch.setenv("SOLAR_PLUGINS_DEBUG", "1")
    result = CliRunner().invoke(solar, ["plan", "--base", str(base), "--drop-layers", "9"])
    assert result.exit_code == 1
    trace, message = result.stderr.split("\nError: ")
    assert trace.startswith("Traceback (most recent call last)")
    assert "in plan_depth_up_scaling" in trace
    assert message.startswith("drop_layers: 9 is impossible")


@pytest.mark.parametrize("options", [["--base", "{base}", "--drop-layers", "2"], ["{recipe}", "--memory"]])
def test_plan_starts_at_once_and_loads_neither_torch_nor_axolotl(base, recipe, options):
    """`python -X importtime` lists every module that is imported; the CPU time is printed for people, not asserted."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    options = [option.format(base=base, recipe=recipe) for option in options]
    command = [sys.executable, "-X", "importtime", str(SOLAR), "plan", *options]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"CPU seconds: {after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime:.2f}")
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "click" in modules
    heavy = {"torch", "axolotl", "transformers", "numpy", "matplotlib", "huggingface_hub", "jinja2", "filelock", "tqdm"}
    assert not modules & heavy
    assert ("rich" in modules) == ("--memory" in options), "only a table needs it"


def test_mix_makes_the_data_and_prints_what_became_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"text": "one two three"}\n{"text": "four"}\n{}\n')
    Path("bench.txt").write_text("Two, three!\n")
    mixture = {
        "output": "mixed",
        "sets": {"a": {"path": "rows.jsonl", "text_columns": "text"}},
        "decontaminate": {"ngram": 2, "against": [{"path": "bench.txt"}]},
    }
    Path("mix.yml").write_text(yaml.safe_dump(mixture))
    result = CliRunner().invoke(solar, ["mix", "mix.yml"], catch_exceptions=False)
    assert re.search(r"^\W*a\W+3\W+0\W+1\W+0\W+1\W+0\W+1\W+100\.0%", result.stdout, re.MULTILINE)
    assert Path("mixed/a.jsonl").read_text() == '{"text": "four"}\n'
    again = CliRunner().invoke(solar, ["mix", "mix.yml", "--json"], catch_exceptions=False)
    assert json.loads(again.stdout)["sets"]["a"]["rows_kept"] == 1
    Path("rows.jsonl").unlink()
    failed = CliRunner().invoke(solar, ["mix", "mix.yml"])
    assert failed.exit_code == 1
    assert failed.stderr.startswith("Error: rows.jsonl: ")


def test_mix_needs_nothing_heavy_for_json_lines(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "four"}\n')
    (tmp_path / "mix.yml").write_text("output: out\nsets: {a: {path: rows.jsonl, text_columns: text}}\n")
    command = [sys.executable, "-X", "importtime", str(SOLAR), "mix", "mix.yml"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "tqdm" in modules
    assert not modules & {"torch", "axolotl", "transformers", "numpy", "pyarrow", "datasets", "matplotlib"}


def test_versions():
    assert invoke("--version").split()[-1] == solar_plugins.__version__
    said = invoke("--version", "--verbose").splitlines()
    assert said[0] == f"solar_plugins {solar_plugins.__version__}"
    assert f"transformers {importlib.metadata.version('transformers')}" in said
    assert "flash-attn not installed" in said


def test_without_a_command_the_help_is_shown_and_verbose_alone_is_refused():
    helped, refused = (CliRunner().invoke(solar, arguments) for arguments in ([], ["--verbose"]))
    assert (helped.exit_code, helped.output.split()[0]) == (2, "Usage:")
    assert "--verbose requires --version" in refused.output


def test_mergekit_of_a_base_is_that_of_a_recipe(base, recipe):
    assert invoke("mergekit", "--base", base, "--drop-layers", 2) == invoke("mergekit", recipe)


def test_plugins_lists_everything_that_is_registered():
    said = invoke("plugins")
    for name in ("dus", "scaled", "alpaca", "hh_rlhf", "unpaired_preference", "sdpo", "solar_plugins"):
        assert f"\n  {name} " in said, name


def test_a_closed_pipe_ends_a_command_silently(base):
    command = f"{sys.executable} -c 'from solar_plugins.cli import solar; solar()' plugins | head -n 1"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (ended.stdout.count("\n"), ended.stderr) == (1, "")
