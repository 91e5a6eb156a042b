"""The gallery: what its rows say, what it never does, and that it holds what any file can contain."""

import hashlib
import html
import json
import os
import re
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from known_models import MISTRAL

from solar_plugins.cli import solar
from solar_plugins.errors import ArgsError
from solar_plugins.memory.memory_report import memory_of_recipe
from solar_plugins.plugins.recipe_packs import recipe_directory, recipe_files
from solar_plugins.sharing.bundle import (
    METRICS,
    PLANS,
    BundleStage,
    Metric,
    StagePlan,
    Variable,
    stages_json,
    write_bundle,
)
from solar_plugins.sharing.gallery import (
    GALLERY_FILE,
    MAX_RECIPES,
    MAX_TEXT,
    Entry,
    entries_of,
    read_gallery_file,
    render,
    shown,
    strip_of,
)
from solar_plugins.sharing.sources import stages_of
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.estimates import size_from_config
from solar_plugins.upscaling.layer_plan import Donor, LayerPlan, PlannedLayer

ROOT = Path(__file__).parents[3]
OURS = recipe_directory()
EVIL = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)> \u202e\x1b[31m\x00 javascript:alert(1) \" onload='x"
)


@pytest.fixture(scope="module")
def ours():
    return {entry.name: entry for entry in entries_of(OURS, "solar_plugins")}


def write(folder, name, content):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return folder / name


# --- our own recipes


def test_every_recipe_has_a_row_and_nothing_is_unknown(ours):
    assert {str(path.relative_to(OURS)) for path in recipe_files(OURS)} == set(ours)
    assert [
        (name, entry.problem, entry.unknown) for name, entry in ours.items() if entry.problem or entry.unknown
    ] == []
    assert all(entry.ran for entry in ours.values()), "recipes/gallery.json says what was run of each"


@pytest.mark.parametrize(
    ("name", "stages", "layers"),
    [
        ("solar_dus.yml", ("upscale", "pretrain"), (32, 48)),
        ("solar_dus_qlora.yml", ("upscale", "pretrain", "QLoRA"), (32, 48)),
        ("block_expansion.yml", ("upscale", "pretrain"), (32, 40)),
        ("smollm2/solar_dus.yml", ("upscale", "pretrain"), (30, 48)),
        ("mergekit/solar_dus.yml", ("upscale", "merge"), (32, 48)),
        ("solar_sft.yml", ("SFT",), (None, 48)),
        ("solar_sft_lora.yml", ("SFT", "LoRA"), (None, 48)),
        ("solar_dpo.yml", ("DPO",), (None, 48)),
        ("solar_sdpo_1.yml", ("sDPO",), (None, 48)),
        ("mergekit/solar_average.yml", ("merge",), (None, None)),
        ("mixtures/solar_sft.yml", ("mixture",), (None, None)),
        ("eval/solar_h6.yml", ("evaluation",), (None, None)),
        ("solar_pipeline.yml", ("pipeline",), (32, 48)),
    ],
)
def test_stages_and_layers(ours, name, stages, layers):
    assert (ours[name].stages, (ours[name].layers_before, ours[name].layers)) == (stages, layers)


def test_a_recipe_after_the_first_stage_names_both_bases(ours):
    assert ours["solar_sft.yml"].base == "outputs/solar_dus"
    assert ours["solar_sft.yml"].origin == "mistralai/Mistral-7B-v0.1"


def test_memory_is_that_of_solar_plan(ours, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL))
    for name, gpus in (("solar_dus.yml", (8, 80)), ("solar_dpo_qlora.yml", (1, 24))):
        report = memory_of_recipe(OURS / name, str(tmp_path), *gpus)
        assert ours[name].memory.peak_bytes == report.peak_bytes
        assert ours[name].memory.devices == report.devices
    stages = [ours[name].memory.peak_bytes for name in ("solar_dus.yml", "solar_sft.yml", "solar_dpo.yml")]
    assert ours["solar_pipeline.yml"].memory.peak_bytes == max(stages)


def test_the_config_that_we_declare_is_that_of_the_base():
    declared = read_gallery_file(OURS).bases
    assert declared["mistralai/Mistral-7B-v0.1"] == MISTRAL
    small = declared["runs/smollm2/SmolLM2-135M"]
    assert size_from_config(Decoder.of(small), 30).parameters == 134_515_008, "README: 134.5 M"


# --- what is declared


ALIGNMENT, TUTORIAL, GPU = "docs/guides/alignment.md", "docs/tutorial.md", "docs/gpu/gpu.md"
MEASURED = {
    "smollm2/solar_dus.yml": [
        (TUTORIAL, "DUS, after 90", ["3.200"]),
        (TUTORIAL, "base, SmolLM2-135M", ["3.078"]),
        (TUTORIAL, "DUS, not trained", ["3.851"]),
    ],
    "smollm2/solar_probe_plan.yml": [
        (TUTORIAL, "the probe's plan, after", ["3.071"]),
        (TUTORIAL, "base, SmolLM2-135M", ["3.078"]),
        (TUTORIAL, "the probe's plan, not trained", ["3.433"]),
    ],
    "smollm2/solar_sft.yml": [(ALIGNMENT, "sft", ["3.189", "1.967"])],
    "smollm2/solar_dpo.yml": [(ALIGNMENT, "dpo", ["3.188", "1.966", "10 of 13"])],
    "smollm2/solar_sdpo_1.yml": [(ALIGNMENT, "sdpo_1", ["3.189", "1.972", "8 of 13"])],
    "smollm2/solar_sdpo_2.yml": [(ALIGNMENT, "sdpo_2", ["3.190", "1.969", "11 of 13"])],
    "smollm2/mergekit/solar_average.yml": [(ALIGNMENT, "average", ["3.189", "1.967", "11 of 13"])],
    "block_expansion.yml": [
        (GPU, "block expansion, new layers only", ["2.469"]),
        (GPU, "the base, equal tokens", ["2.434"]),
    ],
    "solar_dus_seam.yml": [(GPU, "DUS, seam only", ["2.674"]), (GPU, "DUS |", ["2.453"])],
}
"""Where each result that recipes/gallery.json states was published: a page, the start of a row, and its values."""


def test_every_result_is_one_of_the_docs():
    declared = read_gallery_file(OURS).recipes
    assert {name for name, ran in declared.items() if ran.results} == set(MEASURED)
    for name, sources in MEASURED.items():
        values = [value for _, _, some in sources for value in some]
        assert list(declared[name].results.values()) == values, name
        for page, row, some in sources:
            lines = [line for line in (ROOT / page).read_text().splitlines() if line.startswith(f"| {row}")]
            assert any(all(re.search(rf"\b{re.escape(value)}\b", line) for value in some) for line in lines), (
                name,
                row,
            )


def test_what_was_run_is_what_the_table_of_the_recipes_says():
    """Each name in recipes/README.md's table of what was tested, and nothing else, was run or tested."""
    table = (OURS / "README.md").read_text().partition("| recipes | tested on CPUs |")[2].partition("\n\n")[0]
    words = {"validated": r"only validated|--dry-run. only", "run": r"make demo|make pipeline|on that model"}
    found = {}
    for names, said in re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE):
        status = next((status for status, pattern in words.items() if re.search(pattern, said)), "tested")
        folder = "smollm2/" if "`smollm2/" in names else ""
        for name in re.findall(r"`([^`]+)`", names):
            pattern = name if name.startswith(folder) else folder + name
            found |= {str(path.relative_to(OURS)): status for path in OURS.glob(pattern)}
    assert len(found) > 20
    declared = {name: ran.status for name, ran in read_gallery_file(OURS).recipes.items()}
    assert found == {name: declared[name] for name in found}
    assert {declared[name] for name in declared.keys() - found.keys()} == {"validated"}


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("[", ["JSON"]),
        ('{"format": 2}', ["format", "2", "1"]),
        ('{"format": 1, "recipe": {}}', ["recipe", "did you mean recipes"]),
        ('{"format": 1, "recipes": {"a.yml": {"status": "ran"}}}', ["recipes.a.yml.status", "'ran'", "'run'"]),
        ('{"format": 1, "recipes": {"a.yml": {"status": "run", "date": "soon"}}}', ["recipes.a.yml.date", "'soon'"]),
    ],
)
def test_a_file_that_says_something_else(tmp_path, content, facts):
    (tmp_path / GALLERY_FILE).write_text(content)
    result = CliRunner().invoke(solar, ["recipes", "gallery", str(tmp_path), "--output", str(tmp_path / "page.html")])
    assert result.exit_code == 1
    assert GALLERY_FILE in result.stderr
    assert all(fact in result.stderr for fact in facts), result.stderr
    assert not (tmp_path / "page.html").exists()


# --- any folder


def test_a_base_that_is_not_at_hand_is_unknown_and_never_fetched(tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    recipe = {"base_model": "nobody/nothing", "solar": {"init": {"strategy": "dus", "drop_layers": 1}}}
    write(tmp_path, "a.yml", recipe)
    donor = {"strategy": "slices", "slices": [[0, 20], {"model": "nobody/donor", "layers": [2, 10]}]}
    write(tmp_path, "b.yml", {"base_model": "org/known", "solar": {"init": donor}})
    (tmp_path / GALLERY_FILE).write_text(json.dumps({"format": 1, "bases": {"org/known": MISTRAL}}))
    unknown, donors = entries_of(tmp_path)
    assert (unknown.layers, unknown.memory, unknown.unknown) == (
        None,
        None,
        "the config.json of nobody/nothing is not available here",
    )
    assert (donors.layers, donors.memory) == (28, None)
    assert "nobody/donor" in donors.unknown
    page = render([unknown], "Recipes")
    assert page.count(">unknown<") == 2


def test_a_config_in_the_hub_cache_is_used(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub/models--org--base/snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(MISTRAL))
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    write(
        tmp_path, "recipes/a.yml", {"base_model": "org/base", "solar": {"init": {"strategy": "dus", "drop_layers": 8}}}
    )
    (entry,) = entries_of(tmp_path / "recipes")
    assert (entry.layers_before, entry.layers) == (32, 48)
    assert entry.memory is not None


def test_other_yaml_files_are_left_out_and_broken_ones_say_why(tmp_path):
    write(tmp_path, "mkdocs.yml", {"site_name": "Docs"})
    write(tmp_path, ".git/a.yml", {"base_model": "a/b"})
    write(tmp_path, "list.yaml", [1])
    write(tmp_path, "bad.yml", "secret line: [\n")
    write(tmp_path, "large.yml", "# " + "x" * 1_000_001)
    write(tmp_path, "wrong.yml", {"base_model": "a/b", "solar": {"init": {"strateg": "dus"}}})
    entries = {entry.name: entry for entry in entries_of(tmp_path)}
    assert set(entries) == {"list.yaml", "bad.yml", "large.yml", "wrong.yml"}
    assert all(entry.problem for entry in entries.values())
    assert "secret line" not in entries["bad.yml"].problem
    assert "strateg" in entries["wrong.yml"].problem
    assert not any(str(tmp_path) in entry.problem for entry in entries.values())


def test_too_many_files_and_no_folder(tmp_path):
    with pytest.raises(ArgsError, match="is not a folder"):
        entries_of(tmp_path / "missing")
    for number in range(MAX_RECIPES + 1):
        (tmp_path / f"{number}.yml").touch()
    with pytest.raises(ArgsError, match="501 YAML files, expected at most 500"):
        entries_of(tmp_path)


def test_nothing_outside_the_folder_is_read(tmp_path):
    outside = write(tmp_path, "outside/private.yml", {"base_model": "private/base"})
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.yml").symlink_to(outside)
    (inside / GALLERY_FILE).symlink_to(outside)
    write(inside, "pipeline.yml", {"records": "r", "stages": [{"name": "a", "recipe": "../outside/private.yml"}]})
    (pipeline,) = entries_of(inside)
    assert "outside" in pipeline.problem
    assert "private/base" not in render([pipeline], "Recipes")


def test_paths_of_the_machine_and_secrets_are_not_shown(tmp_path):
    write(tmp_path, "a.yml", {"base_model": "/home/someone/models/llama"})
    write(tmp_path, "b.yml", "# Uses hf_" + "a" * 34 + "\nbase_model: a/b\n")
    page = render(entries_of(tmp_path), "Recipes")
    assert "someone" not in page
    assert "hf_aaa" not in page
    assert "solar recipes check" in page


def test_a_secret_in_the_gallery_file_stops_it(tmp_path):
    ran = {"status": "run", "command": "HF_TOKEN=hf_" + "a" * 34 + " make"}
    (tmp_path / GALLERY_FILE).write_text(json.dumps({"format": 1, "recipes": {"a.yml": ran}}))
    with pytest.raises(ArgsError, match=r"gallery.json: recipes.a.yml.command: .*token") as error:
        entries_of(tmp_path)
    assert "hf_aaa" not in str(error.value)


def test_unknown_gpus_in_the_gallery_file(tmp_path):
    (tmp_path / GALLERY_FILE).write_text(json.dumps({"format": 1, "gpus": {"a.yml": "8xH1000"}}))
    with pytest.raises(ArgsError, match=r"gallery.json: gpus.a.yml: '8xH1000'; expected .*H100"):
        entries_of(tmp_path)


def test_no_comment_says_how_many_gpus(tmp_path):
    """The pipeline's keys do, and gallery.json."""
    base = {"base_model": str(tmp_path / "base"), "sequence_len": 8}
    write(tmp_path, "base/config.json", json.dumps(MISTRAL))
    for name in ("a.yml", "b.yml"):
        write(tmp_path, name, "# A.\n#\n# needs: 4 x 24 GB GPU\n" + json.dumps(base))
    stages = [{"name": "one", "recipe": "a.yml"}]
    write(tmp_path, "p.yml", {"records": "r", "gpus": 2, "gpu_memory": 40, "stages": stages})
    (tmp_path / GALLERY_FILE).write_text(json.dumps({"format": 1, "gpus": {"b.yml": "8xH100"}}))
    found = {entry.name: entry.memory.devices for entry in entries_of(tmp_path) if entry.memory}
    assert {name: (devices.gpus, devices.memory_bytes) for name, devices in found.items()} == {
        "a.yml": (1, None),
        "b.yml": (8, 80e9),
        "p.yml": (2, 40e9),
    }


@pytest.mark.parametrize("name", ["a\0b", "~nobody-here/x", "x" * 5000, "..", "${BASE}", "\udcff"])
def test_odd_names_of_models_and_files(tmp_path, name):
    write(tmp_path, "a.yml", {"base_model": name, "deepspeed": name})
    write(tmp_path, "b.yml", {"records": "r", "stages": [{"name": "a", "recipe": name}]})
    write(
        tmp_path,
        "c.yml",
        {"merge_method": "passthrough", "slices": [{"sources": [{"model": name, "layer_range": [0, 1]}]}]},
    )
    write(tmp_path, "d.yml", {"lm_eval_tasks": [], "lm_eval_model": name})
    entries = entries_of(tmp_path)
    assert len(entries) == 4
    assert render(entries, "Recipes").encode()


def test_names_and_texts_of_recipes_stay_text(tmp_path):
    write(
        tmp_path,
        "<img src=x onerror=alert(1)>.yml",
        f"# {EVIL}".replace("\x00", "").replace("\x1b", "") + "\nbase_model: a/b\n",
    )
    write(tmp_path, "b.yml", {"base_model": EVIL, "rl": EVIL, "adapter": EVIL})
    write(tmp_path, "c.yml", {"merge_method": EVIL, "models": [{"model": EVIL}]})
    write(tmp_path, "d.yml", {"base_model": "b", "solar": {"init": {"strategy": EVIL}}})
    ran = {"status": "run", "machine": EVIL, "command": EVIL, "note": EVIL, "results": {EVIL: EVIL}}
    (tmp_path / GALLERY_FILE).write_text(json.dumps({"format": 1, "recipes": {"b.yml": ran}}))
    entries = entries_of(tmp_path, EVIL)
    page = render(entries, EVIL)
    found = Page(page)
    assert found.tags.count("script") == 1
    assert not {"img", "a", "iframe", "object", "link", "base"} & set(found.tags)
    assert not [name for name in found.attributes if name.startswith("on") or name in ("href", "src")]
    assert not any(letter in page for letter in "\u202e\x1b\x00")
    assert page.count("alert(1)") > 10, "the texts are there"


class Page(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def test_only_its_own_script_may_run(ours):
    page = render([*ours.values()], "Recipes")
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "http:" not in page
    assert "https:" not in page


def test_long_texts_are_cut():
    assert len(shown("x" * 10_000)) == MAX_TEXT
    assert shown("a\n b\u202e") == "a b\ufffd"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "base_model", "solar", "stages", "sets", "output", "merge_method", "slices", "models", "datasets", "rl", "adapter",
    "pretraining_dataset", "lm_eval_tasks", "lm_eval_model", "sequence_len", "micro_batch_size", "deepspeed",
)  # fmt: skip
SOURCE = st.fixed_dictionaries({"model": values, "layer_range": values})
NESTED = {
    "slices": st.lists(st.fixed_dictionaries({"sources": st.lists(SOURCE, max_size=2) | values}), max_size=3),
    "stages": st.lists(st.dictionaries(st.sampled_from(["name", "recipe", "merge", "overrides"]), values), max_size=3),
    "solar": st.fixed_dictionaries({"init": st.fixed_dictionaries({"strategy": st.just("slices"), "slices": values})}),
}


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@example(content={"merge_method": "linear", "models": 1})
@given(content=st.fixed_dictionaries({}, optional={key: NESTED.get(key, values) | values for key in KEYS}))
def test_any_content_gives_a_page(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (folder / GALLERY_FILE).write_text(json.dumps({"format": 1, "bases": {"": MISTRAL, "0": MISTRAL}}))
    assert "<!doctype html>" in render(entries_of(folder), "Recipes")


# --- strips


def test_the_strip_has_every_layer_and_seam():
    plan = LayerPlan.from_sources(32, [*range(24), *range(8, 32)])
    strip = strip_of(plan)
    base, new = ([box for box in strip.boxes if (box.y == 0) is above] for above in (True, False))
    assert (len(base), len(new)) == (32, 48)
    assert [box.color for box in new] == [base[layer].color for layer in plan.sources]
    assert strip.seams == [pytest.approx(strip.width / 2)]
    assert max(box.x + box.width for box in strip.boxes) == pytest.approx(strip.width)
    assert not any(box.hollow for box in strip.boxes)


def test_new_layers_are_hollow_and_donors_have_their_own_color():
    layers = (PlannedLayer(0), PlannedLayer(0, "identity"), PlannedLayer(1, model=1))
    strip = strip_of(LayerPlan(2, layers, (Donor("org/b", None, 3),)))
    below = [box for box in strip.boxes if box.y > 0]
    assert [box.hollow for box in below] == [False, True, False]
    assert len(strip.boxes) == 2 + 3 + 3
    assert below[2].color not in {box.color for box in strip.boxes[:2]}


def test_a_deep_model_is_drawn_in_blocks():
    strip = strip_of(LayerPlan.from_sources(5000, [*range(5000), *range(5000)]))
    assert len(strip.boxes) < 500
    assert len(strip.seams) == 1


def test_the_row_of_a_plan_names_it_for_screen_readers(ours):
    page = render([ours["solar_dus.yml"]], "Recipes")
    assert f'aria-label="{html.escape(str(ours["solar_dus.yml"].plan))}"' in page


# --- the command


def test_the_command_writes_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(solar, ["recipes", "gallery", "--output", "new/page.html"], catch_exceptions=False)
    count = len(list(recipe_files(OURS)))
    assert result.output == f"new/page.html: {count} recipes\n"
    assert os.listdir("new") == ["page.html"]
    page = (tmp_path / "new/page.html").read_text()
    assert page.count("<tr data-pack") == count


def test_a_page_without_recipes():
    assert "0 recipes" in render([], "Recipes")
    assert stages_of({}) is None
    assert "cannot be used" in render([Entry("pack", "a.yml", problem="cannot be used")], "Recipes")


# --- bundles


GROWS = 'base_model: "${BASE_MODEL}"\nsolar: {init: {strategy: dus, drop_layers: 8}}\noutput_dir: "${OUTPUTS}/dus"\n'
TUNES = 'base_model: "${OUTPUTS}/dus"\ndatasets: [{path: org/chats, type: chat}]\noutput_dir: "${OUTPUTS}/sft"\n'


@pytest.fixture
def bundle(tmp_path):
    """A bundle of two stages, with a plan and metrics, in a folder of fetched recipes."""
    plan = LayerPlan.from_sources(32, [*range(24), *range(8, 32)])
    plans = {name: StagePlan(text=str(plan), plan=plan.to_dict()) for name in ("dus", "sft")}
    files = {
        "recipes/dus.yml": GROWS.encode(),
        "recipes/sft.yml": TUNES.encode(),
        PLANS: stages_json(plans),
        METRICS: stages_json({"sft": [Metric(name="eval_loss", value=1.23456, step=9, how="measured <b>well</b>")]}),
    }
    stages = [
        BundleStage(name=name, kind="recipe", file=f"recipes/{name}.yml", processes=2, device="NVIDIA H100", base=base)
        for name, base in (("dus", "org/base"), ("sft", "outputs/dus"))
    ]
    variables = {
        "BASE_MODEL": Variable(meaning="the base", example="org/base"),
        "OUTPUTS": Variable(meaning="where the run writes", example="outputs", kind="output"),
    }
    write_bundle(tmp_path / "fetched/run", files, name="run", stages=stages, variables=variables)
    return tmp_path / "fetched/run"


def test_a_bundle_says_what_was_run(bundle):
    grown, tuned = entries_of(bundle.parent)
    assert (grown.name, grown.base, grown.layers_before, grown.layers) == ("run/recipes/dus.yml", "org/base", 32, 48)
    assert grown.plan is not None
    assert (tuned.stages, tuned.base, tuned.layers, tuned.plan) == (("SFT",), "outputs/dus", 48, None)
    assert (tuned.ran.status, tuned.ran.machine, tuned.ran.results) == (
        "run",
        "2 x NVIDIA H100",
        {"eval_loss": "1.235"},
    )
    assert grown.ran.results == {}


def test_what_was_fetched_says_from_where(bundle):
    folder = bundle.parent
    (folder / "run" / "ORIGIN.json").write_text(
        json.dumps({"source": "org/model", "commit": "0123456789ab" + "c" * 28})
    )
    write(folder, "mine.yml", {"base_model": "a/b"})
    mine, *fetched = sorted(entries_of(folder), key=lambda entry: entry.fetched_from)
    assert (mine.name, mine.fetched_from) == ("mine.yml", "")
    assert {entry.fetched_from for entry in fetched} == {"org/model at 0123456789ab"}
    assert "fetched from org/" in render(fetched, "Recipes").replace("<wbr>", "")
    (folder / "run" / "ORIGIN.json").write_text("[")
    assert {entry.fetched_from for entry in entries_of(folder)} == {""}


def test_a_bundle_that_was_changed_is_named(bundle):
    (bundle / "recipes/dus.yml").write_text(GROWS + "learning_rate: 1\n")
    for entry in entries_of(bundle.parent):
        assert "was changed" in entry.problem
        assert entry.ran is None
        assert str(bundle) not in entry.problem
