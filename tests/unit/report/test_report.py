import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from solar_plugins.errors import ArgsError, CheckpointError, DataError, SolarError
from solar_plugins.evaluation.measure import continuation, held_out_loss, token_windows
from solar_plugins.evaluation.models import load_model, load_tokenizer
from solar_plugins.report import report as report_module
from solar_plugins.report.report import write_report

pytestmark = pytest.mark.slow  # Each loads models and measures them.


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
        ("upscaled", 6),
        ("trained", 6),
    ]
    windows = token_windows(load_tokenizer(base_directory), texts, 32, 8192)
    upscaled = next(path for path in (tmp_path / "cache").iterdir() if path.name.startswith("upscaled"))
    for model, directory in zip(report.models, (base_directory, upscaled, tmp_path / "trained"), strict=True):
        assert model.loss == held_out_loss(load_model(directory), windows)
    assert len({model.loss.nats_per_token for model in report.models}) == 3
    assert report.prompts[0] == "Once upon a time there were 0 little pigs who built a"
    assert len(report.prompts) == len(report.base.continuations) == 3
    assert report.stages[0].log.last_step == 2
    assert "seam: layer 2 feeds 1, distance 1" in output.read_text()
    figures = json.loads(output.with_suffix(".json").read_text())
    assert figures["models"]["trained"]["nats_per_token"] == report.models[2].loss.nats_per_token
    assert sorted(path.name for path in output.parent.iterdir()) == ["report.html", "report.json"]
    assert "tiny-base: 4 to 6 layers" in capsys.readouterr().out


def test_own_texts_and_prompts_and_the_upscaled_checkpoint_that_is_there(trained_recipe, tmp_path, few_new_tokens):
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
        ({"solar": {"dpo": "sdpo"}}, ArgsError, "has no solar: block with init"),
        ({"base_model": None}, ArgsError, "base_model: None; expected"),
        ({"base_model": "./absent"}, CheckpointError, "base_model: './absent' is neither a local directory"),
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


OWN_CODE = """\
from transformers import LlamaForCausalLM

class MineForCausalLM(LlamaForCausalLM):
    pass
"""


def test_a_base_with_code_of_its_own_is_measured_where_the_recipe_trusts_it(
    trained_recipe, base_directory, tmp_path, few_new_tokens, monkeypatch
):
    """Once the report rejected it, and told the user to set the key that was set."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    own = Path(shutil.copytree(base_directory, tmp_path / "own"))
    (own / "modeling_mine.py").write_text(OWN_CODE)
    config = json.loads((own / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    (own / "config.json").write_text(json.dumps(config))
    change(trained_recipe, base_model=str(own))
    with pytest.raises(CheckpointError, match=r"auto_map .* trust_remote_code: true"):
        write_report(trained_recipe, held_out=None, prompts=["The wolf"], output=tmp_path / "r.html")

    change(trained_recipe, trust_remote_code=True)
    report = write_report(trained_recipe, held_out=None, prompts=["The wolf"], output=tmp_path / "r.html")
    assert [model.num_layers for model in report.models] == [4, 6, 6]


@pytest.mark.usefixtures("nothing_measured")
def test_an_upscaled_base_is_rejected(trained_recipe, tmp_path):
    change(trained_recipe, base_model=str(tmp_path / "trained"))

    with pytest.raises(ArgsError, match=r"was upscaled already .*the report compares with the base before that"):
        write_report(trained_recipe, held_out=None, prompts=[], output=tmp_path / "r.html")


@pytest.mark.usefixtures("nothing_measured")
@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("report.pdf", "does not end in .html"),
        ("folder.html", "cannot be written"),
        ("file/r.html", "cannot be created"),
    ],
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

    with pytest.raises(SolarError, match=f"solar report needs {package} "):
        write_report(trained_recipe, held_out=None, prompts=[], output=tmp_path / "r.html")


def test_a_report_that_cannot_be_finished_leaves_the_one_before(trained_recipe, tmp_path, report, monkeypatch):
    output = tmp_path / "out" / "r.html"
    output.parent.mkdir()
    output.write_text("the one before")

    def no_space(path, target):
        raise OSError(28, "No space left on device")

    made_up = {model.name: model for model in report.models}
    monkeypatch.setattr(report_module, "measure_model", lambda name, directory, task: made_up[name])
    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(SolarError, match=r"r.json: the report could not be written \(No space left on device"):
        write_report(trained_recipe, held_out=None, prompts=["x", "y"], output=output)

    assert [path.name for path in output.parent.iterdir()] == ["r.html"]
    assert output.read_text() == "the one before"


def test_a_file_name_that_is_no_utf_8_does_not_cost_the_report(trained_recipe, tmp_path, report, monkeypatch):
    odd = tmp_path / b"caf\xe9.jsonl".decode("utf-8", "surrogateescape")
    (tmp_path / "held_out.jsonl").rename(odd)
    made_up = {model.name: model for model in report.models}
    monkeypatch.setattr(report_module, "measure_model", lambda name, directory, task: made_up[name])

    write_report(trained_recipe, held_out=odd, prompts=["x", "y"], output=tmp_path / "r.html")

    assert r"caf\udce9.jsonl" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["conditions"]["held_out"] == str(odd)


def test_importing_the_report_is_cheap():
    code = (
        "import sys, solar_plugins.report.report, solar_plugins.report.plan_picture;"
        "print(*{'torch', 'transformers', 'matplotlib', 'jinja2', 'rich', 'tqdm', 'axolotl'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""


def test_the_report_of_a_chain(trained_chain, tmp_path, tokenizer, few_new_tokens):
    recipe, *later = trained_chain

    report = write_report(recipe, later, held_out=None, prompts=[], output=tmp_path / "r.html")

    names = ["base", "upscaled", "recipe", "sft", "dpo", "mean"]
    assert [model.name for model in report.models] == names
    assert [stage.name for stage in report.stages] == names[2:]
    sft = load_model(tmp_path / "sft")
    assert report.models[3].loss == held_out_loss(sft, token_windows(tokenizer, report_texts(tmp_path), 32, 8192))
    assert report.prompts == (
        "Who built a house of straw?",
        "Add.\n\n1, 2",
        "Who came by?",  # The third does not fit.
    )
    asked = "### User:\nWho came by?\n\n### Assistant:\n"
    assert report.models[3].continuations[2] == continuation(sft, tokenizer, asked, 4)
    assert len(report.models[0].answers.window_tokens) == 4
    assert len(report.models[0].pairs.chosen) == 2
    assert len({(model.answers, model.pairs) for model in report.models}) == 6
    assert "5 rows read, 4 kept, 1 dropped: 1 longer than sequence_len 64 (row 3)" in report.conditions.answers.sets[0]
    figures = json.loads((tmp_path / "r.json").read_text())
    assert list(figures["models"]) == names
    assert figures["later_stages"][1]["loss_curve"]["accuracies"]["held_out"] == [[2, 0.5]]
    assert "Who came by?" in (tmp_path / "r.html").read_text()


def test_two_plans_of_one_base(trained_chain, other_plan, tmp_path, few_new_tokens):
    """The other plan's model is measured before its training too, and the chain after it starts where it did."""
    recipe, *later = trained_chain
    report = write_report(recipe, [other_plan, *later], held_out=None, prompts=[], output=tmp_path / "r.html")

    names = ["base", "upscaled", "recipe", "other, upscaled", "other", "sft", "dpo", "mean"]
    assert [model.name for model in report.models] == names
    assert report.roles == ("base", "upscaled", "trained", "upscaled", *["trained"] * 4)
    assert report.before_chat == names[:5]
    untrained, trained = (report.model(name).loss for name in names[3:5])
    assert untrained == trained, "the run of this test changed nothing"
    assert untrained != report.model("upscaled").loss
    page, metrics = (tmp_path / "r.html").read_text(), json.loads((tmp_path / "r.json").read_text())
    assert "By another plan (other: 4 -&gt; 6 layers: [0..1] + [0..3])" in page
    assert metrics["later_stages"][0]["plan"] != metrics["plan"]


def report_texts(folder):
    return [json.loads(line)["text"] for line in (folder / "held_out.jsonl").read_text().splitlines()]


def test_own_questions_are_asked_in_the_chat_format(trained_chain, tmp_path, tokenizer, few_new_tokens):
    recipe, sft, *_ = trained_chain

    report = write_report(recipe, [sft], held_out=None, prompts=["Why?"], output=tmp_path / "r.html")

    said = continuation(load_model(tmp_path / "sft"), tokenizer, "### User:\nWhy?\n\n### Assistant:\n", 4)
    assert report.prompts == ("Why?",)
    assert report.models[3].continuations == (said,)
    assert report.models[3].pairs is None


def test_a_chain_without_held_out_instructions_goes_on_with_texts(trained_chain, tmp_path, few_new_tokens):
    recipe, *_, folder = trained_chain

    report = write_report(recipe, [folder], held_out=None, prompts=[], output=tmp_path / "r.html")

    assert report.prompts[0] == "Once upon a time there were 0 little pigs who built a"
    assert report.models[0].answers is report.models[0].pairs is None
    assert "Sample continuations" in (tmp_path / "r.html").read_text()


@pytest.mark.usefixtures("nothing_measured")
@pytest.mark.parametrize(
    ("place", "keys", "error", "message"),
    [
        (1, {"output_dir": "./absent"}, CheckpointError, r"solar_sft.yml: output_dir: absent holds no trained model"),
        (2, {"solar": {"dpo": "unheard_of"}}, SolarError, r"solar_dpo.yml: solar.dpo: 'unheard_of' is not"),
        (
            2,
            {"test_datasets": [{"path": "a.jsonl", "type": "solar_plugins.math_pairs"}]},
            DataError,
            "cannot be loaded",
        ),
        (1, {"sequence_len": 1}, ArgsError, "solar_sft.yml: sequence_len: 1; expected"),
    ],
)
def test_a_chain_that_cannot_be_reported_on(trained_chain, tmp_path, place, keys, error, message):
    change(trained_chain[place], **keys)
    recipe, *later = trained_chain

    with pytest.raises(error, match=message):
        write_report(recipe, later, held_out=None, prompts=[], output=tmp_path / "r.html")


@pytest.mark.usefixtures("nothing_measured")
def test_a_stage_of_another_tokenizer_is_refused(trained_chain, tmp_path, plain_tokenizer):
    plain_tokenizer.save_pretrained(tmp_path / "mean")  # The same words, but it does not begin texts with <s>.
    recipe, *later = trained_chain

    with pytest.raises(CheckpointError, match=r"mean: the tokenizer of the stage mean differs from the base's"):
        write_report(recipe, later, held_out=None, prompts=[], output=tmp_path / "r.html")


@pytest.mark.usefixtures("nothing_measured")
def test_the_command_takes_the_stages_and_says_what_is_wrong(trained_chain, tmp_path):
    from click.testing import CliRunner

    from solar_plugins.cli import solar

    arguments = [*map(str, trained_chain), str(tmp_path / "absent"), "--output", str(tmp_path / "r.html")]
    result = CliRunner().invoke(solar, ["report", *arguments])

    assert result.exit_code == 1
    assert "absent: neither a recipe nor a folder" in result.stderr
