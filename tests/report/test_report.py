import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from solar_plugins.errors import ArgsError, CheckpointError, SolarError
from solar_plugins.report import report as report_module
from solar_plugins.report.measure import held_out_loss, load_model, load_tokenizer, token_windows
from solar_plugins.report.report import write_report


def change(recipe_path, **keys):
    recipe = yaml.safe_load(recipe_path.read_text()) | keys
    recipe_path.write_text(yaml.safe_dump({key: value for key, value in recipe.items() if value is not None}))


@pytest.fixture
def few_new_tokens(monkeypatch):
    """Short continuations, because each token takes its time."""
    monkeypatch.setattr(report_module, "MAX_NEW_TOKENS", 4)


@pytest.fixture
def nothing_measured(monkeypatch):
    """Fail where a model is measured: errors in the arguments have to be found before that."""

    def measure_model(*arguments):
        raise AssertionError("a model was measured")

    monkeypatch.setattr(report_module, "measure_model", measure_model)


def test_the_report_of_a_run(trained_recipe, tmp_path, base_directory, texts, few_new_tokens, capsys):
    output = tmp_path / "new" / "report.html"

    report = write_report(trained_recipe, held_out=None, prompts=[], output=output)

    assert [(model.name, model.num_layers) for model in report.models] == [
        ("base", 4),
        ("up-scaled", 6),
        ("trained", 6),
    ]
    windows = token_windows(load_tokenizer(base_directory), texts, 32, 8192)
    upscaled = next(path for path in (tmp_path / "cache").iterdir() if path.name.startswith("upscaled"))
    for model, directory in zip(report.models, (base_directory, upscaled, tmp_path / "trained"), strict=True):
        assert model.loss == held_out_loss(load_model(directory), windows)
    assert len({model.loss.nats_per_token for model in report.models}) == 3
    assert report.prompts[0] == "Once upon a time there were 0 little pigs who built a"
    assert len(report.prompts) == len(report.base.continuations) == 3
    assert report.curve.last_step == 2
    assert "seam: layer 2 feeds 1, distance 1" in output.read_text()
    figures = json.loads(output.with_suffix(".json").read_text())
    assert figures["models"]["trained"]["nats_per_token"] == report.trained.loss.nats_per_token
    assert sorted(path.name for path in output.parent.iterdir()) == ["report.html", "report.json"]
    assert "tiny-base: 4 to 6 layers" in capsys.readouterr().out


def test_own_texts_and_prompts_and_the_up_scaled_checkpoint_that_is_there(trained_recipe, tmp_path, few_new_tokens):
    own = tmp_path / "own.jsonl"
    own.write_text('{"text": "the wolf and the pigs"}\n')
    marker = next((tmp_path / "cache").glob("upscaled-*/solar_plan.json"))
    before = marker.stat().st_mtime_ns

    report = write_report(trained_recipe, held_out=own, prompts=["The wolf"], output=tmp_path / "r.html")

    assert report.prompts == ("The wolf",)
    assert report.conditions.held_out == str(own)
    assert len(report.base.loss.window_tokens) == 1
    assert marker.stat().st_mtime_ns == before


@pytest.mark.usefixtures("nothing_measured")
@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"solar": None}, ArgsError, "has no solar: block"),
        ({"base_model": None}, ArgsError, "base_model: None; expected"),
        ({"base_model": "./absent"}, CheckpointError, "base_model: './absent' is neither a directory"),
        ({"output_dir": "./absent"}, CheckpointError, "absent holds no trained model"),
        ({"test_datasets": None}, ArgsError, "test_datasets: missing"),
        ({"sequence_len": 1}, ArgsError, "sequence_len: 1; expected"),
        ({"solar": {"init": {"strategy": "dus", "drop_layers": 2}}}, CheckpointError, "it comes from another recipe"),
    ],
)
def test_a_recipe_that_cannot_be_reported_on(trained_recipe, tmp_path, keys, error, message):
    change(trained_recipe, **keys)

    with pytest.raises(error, match=message):
        write_report(trained_recipe, held_out=None, prompts=[], output=tmp_path / "r.html")


@pytest.mark.usefixtures("nothing_measured")
def test_a_base_that_was_up_scaled_before_is_no_base(trained_recipe, tmp_path):
    change(trained_recipe, base_model=str(tmp_path / "trained"))

    with pytest.raises(ArgsError, match=r"was up-scaled already .*the report compares with the base before that"):
        write_report(trained_recipe, held_out=None, prompts=[], output=tmp_path / "r.html")


@pytest.mark.usefixtures("nothing_measured")
@pytest.mark.parametrize(
    ("output", "message"),
    [("report.pdf", "does not end in .html"), ("folder.html", "cannot be written"), ("file/r.html", "cannot be made")],
)
def test_an_output_that_cannot_be_written_is_found_at_once(trained_recipe, tmp_path, output, message):
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").touch()

    with pytest.raises(ArgsError, match=message):
        write_report(trained_recipe, held_out=None, prompts=[], output=tmp_path / output)


@pytest.mark.usefixtures("nothing_measured")
@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_found_at_once(trained_recipe, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(SolarError, match=f"{package} is not installed"):
        write_report(trained_recipe, held_out=None, prompts=[], output=tmp_path / "r.html")


def test_a_report_that_cannot_be_finished_leaves_the_one_before(trained_recipe, tmp_path, report, monkeypatch):
    output = tmp_path / "out" / "r.html"
    output.parent.mkdir()
    output.write_text("the one before")

    def no_space(path, target):
        raise OSError(28, "No space left on device")

    made_up = {model.name: model for model in report.models}
    monkeypatch.setattr(report_module, "measure_model", lambda name, *arguments: made_up[name])
    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(SolarError, match=r"r.json: the report cannot be written \(No space left on device\)"):
        write_report(trained_recipe, held_out=None, prompts=["x", "y"], output=output)

    assert [path.name for path in output.parent.iterdir()] == ["r.html"]
    assert output.read_text() == "the one before"


def test_importing_the_report_is_cheap():
    code = (
        "import sys, solar_plugins.report.report, solar_plugins.report.plan_plot;"
        "print(*{'torch', 'transformers', 'matplotlib', 'jinja2', 'rich', 'tqdm', 'axolotl'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""
