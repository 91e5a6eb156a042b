"""Every recipe: its head comment, and each of its keys against the schema of the tool that reads it."""

import json
import re
from pathlib import Path

import pytest
import yaml
from axolotl_schema import dropped_keys, keys_that_axolotl_drops
from known_models import MISTRAL

from solar_plugins.data.mixture_args import read_mixture
from solar_plugins.errors import ArgsError
from solar_plugins.maths.recipe import read_maths
from solar_plugins.memory.memory_report import memory_of_recipe
from solar_plugins.plugins.recipe_packs import recipe_directory, recipe_files
from solar_plugins.recipe import read_recipe, read_yaml
from solar_plugins.sharing.gallery import read_gallery_file

RECIPES = sorted(recipe_directory().rglob("*.yml"))
HEAD_FIELDS = ("needs", "time", "before", "run", "after", "paper", "ours")


def name(path):
    return str(path.relative_to(recipe_directory()))


def is_merge(path):
    return "mergekit" in path.parts


def is_pipeline(path):
    return path.stem.endswith("pipeline")


def is_training(path):
    folders = set(path.relative_to(recipe_directory()).parts)
    return not {"mergekit", "eval", "mixtures"} & folders and not is_pipeline(path) and not is_maths(path)


def is_maths(path):
    return "endpoint" in read_yaml(path)


def is_mixture(path):
    return "mixtures" in path.parts


def head_of(path):
    lines = path.read_text().split("\n")
    return [line[1:].strip() for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]


@pytest.fixture
def mistral_config(tmp_path, monkeypatch):
    """A folder with the config.json of mistralai/Mistral-7B-v0.1, as far as it concerns sizes."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL))
    return tmp_path


training_recipes = pytest.mark.parametrize("path", [path for path in RECIPES if is_training(path)], ids=name)


def test_all_recipes_are_found():
    assert list(recipe_files(recipe_directory())) == RECIPES
    assert {name(path) for path in RECIPES} >= {"solar_dus.yml", "mergekit/solar_dus.yml", "smollm2/solar_dus.yml"}
    assert not list(recipe_directory().rglob("*.yaml")), "recipes end in .yml"


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_it_is_in_the_table(path):
    table = (recipe_directory() / "README.md").read_text()
    assert f"`{name(path)}`" in table or name(path).startswith("smollm2/")


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_head_comment(path):
    head = head_of(path)
    assert len(head[0]) > 20
    assert head[0].endswith(".")
    for field in HEAD_FIELDS:
        assert any(line.startswith(f"{field}:") for line in head), f"{name(path)} does not say {field}:"
    command = next(line for line in head if line.startswith("run:"))
    assert f"recipes/{name(path)}" in command, "the command runs this file"


@training_recipes
def test_an_interrupted_run_of_hours_is_resumed_by_its_command(path):
    """Without the key the same command starts at step 0 and overwrites the checkpoints."""
    assert read_recipe(path).auto_resume_from_checkpoints or "smollm2" in path.parts, "minutes long, one checkpoint"


@pytest.mark.slow
@training_recipes
def test_axolotl_accepts_it_and_drops_none_of_its_keys(path):
    """Axolotl's schema with our plugin's; a key that is missing afterwards would have been silently ignored."""
    assert keys_that_axolotl_drops(yaml.safe_load(path.read_text())) == []


def test_a_key_that_axolotl_drops_is_detected():
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    recipe = yaml.safe_load((recipe_directory() / "solar_dus.yml").read_text())
    recipe["learning_rte"] = 1
    recipe["pretraining_dataset"][0]["text_colum"] = "abc"
    validated = validate_config(DictDefault(recipe))
    assert dropped_keys(recipe, validated.to_dict()) == ["learning_rte", "pretraining_dataset.0.text_colum"]


@training_recipes
def test_what_every_training_recipe_says(path):
    recipe = read_yaml(path)
    assert "solar_plugins.SolarPlugin" in recipe["plugins"]
    assert isinstance(recipe["seed"], int), "Axolotl has no default seed"
    assert recipe["dataset_prepared_path"], (
        "Axolotl's default cache folder is shared, and ignores some of what prepared data depends on"
    )
    assert not recipe.get("trust_remote_code")
    text = path.read_text()
    banners = re.findall(r"^# --- (.*)$", text, re.MULTILINE)
    assert banners == ["model", "data", "training", "hardware", "output"]
    assert not re.search(r"^\w+:\s*$(?!\n[ -])", text, re.MULTILINE), "no empty keys"


@training_recipes
def test_the_global_batch_in_the_head_is_the_one_that_runs(path):
    head = "\n".join(head_of(path))
    match = re.search(r"global_batch: (\d+) sequences x (\d+) tokens", head)
    recipe = read_yaml(path)
    gpus = re.search(r"needs:\s+(\d+) x", head)
    devices = int(gpus[1]) if gpus else 1
    assert int(match[1]) == devices * recipe["micro_batch_size"] * recipe["gradient_accumulation_steps"]
    assert int(match[2]) == recipe["sequence_len"]


@training_recipes
def test_files_that_it_names_are_shipped(path):
    deepspeed = read_yaml(path).get("deepspeed")
    if deepspeed:
        assert (recipe_directory().parent / deepspeed).is_file()


GPU_RECIPES = [path for path in RECIPES if is_training(path) and path.parent == recipe_directory()]


@pytest.mark.parametrize("path", GPU_RECIPES, ids=name)
def test_the_memory_in_the_head_is_the_estimate_and_fits(path, mistral_config):
    """A rounded sum of parts, each of which is tested in `tests/unit/memory`; not compared with a GPU."""
    head = "\n".join(head_of(path))
    said = re.search(r"^needs: +(\d+) x (\d+) GB GPU \(.*?(\d+) GB of (each|it)\b", head, re.MULTILINE)
    assert said, "the head says how much of each GPU is used"
    report = memory_of_recipe(path, str(mistral_config), int(said[1]), float(said[2]))
    assert round(report.peak_bytes / 1e9) == int(said[3])
    assert read_gallery_file(recipe_directory()).gpus[path.name] == f"{said[1]}x{said[2]}GB"
    assert report.verdict == "fits"


@pytest.mark.parametrize("path", GPU_RECIPES, ids=name)
def test_the_hours_in_the_head_follow_from_its_arithmetic(path):
    head = " ".join(head_of(path))
    formula = (
        r"arithmetic ([\d.]+) hours \((\d) x ([\de.]+) parameters x ([\de.]+) tokens at (?:(\d+) x )?(\d+) TFLOP/s"
    )
    if said := re.search(formula, head):
        hours, per_token, parameters, tokens, gpus, teraflops = (float(group or 1) for group in said.groups())
        assert per_token * parameters * tokens / (gpus * teraflops * 1e12) / 3600 == pytest.approx(hours, rel=0.12)
    else:
        assert re.search(r"arithmetic \d+ hours(, | \(0.52e9 tokens x)", head), "the head says how long it takes"


@training_recipes
def test_a_packed_stream_is_tokenized_in_one_process(path):
    """Otherwise the first batch fails with Axolotl 0.21: "daemonic processes are not allowed to have children"."""
    recipe = read_yaml(path)
    if recipe.get("streaming") and recipe.get("sample_packing"):
        assert recipe["dataset_num_proc"] == 1


@pytest.mark.slow
def test_why_the_fsdp2_recipe_rounds_stochastically():
    """Axolotl 0.21 gives FSDP2 only bf16 weights. 100 equal steps of 2e-5 with plain AdamW and with torchao's."""
    import torch
    from torchao.optim import AdamW8bit

    recipe = read_yaml(recipe_directory() / "solar_dus_fsdp2.yml")
    assert (recipe["optimizer"], recipe["optim_args"]) == ("adamw_torch_8bit", {"bf16_stochastic_round": True})
    torch.manual_seed(0)
    start = (torch.randn(512, 512) * 0.02).bfloat16()

    def share_of_the_way(optimizer_class, **options):
        weight = torch.nn.Parameter(start.clone())
        optimizer = optimizer_class([weight], lr=recipe["learning_rate"], weight_decay=0.0, **options)
        for _ in range(100):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return (start.float() - weight.detach().float()).mean().item() / (100 * recipe["learning_rate"])

    assert share_of_the_way(torch.optim.AdamW) == pytest.approx(0.31, abs=0.01)
    assert share_of_the_way(AdamW8bit, bf16_stochastic_round=True) == pytest.approx(1.0, abs=0.01)


evaluations = [path for path in RECIPES if "eval" in path.relative_to(recipe_directory()).parts]


@pytest.mark.parametrize("path", evaluations, ids=name)
def test_the_lm_eval_plugin_knows_every_key_of_an_evaluation(path):
    """``axolotl lm-eval`` reads the file without a schema, so a misspelled key would be ignored."""
    from axolotl.integrations.lm_eval.args import LMEvalArgs
    from axolotl.utils.schemas.config import AxolotlInputConfig

    recipe = read_yaml(path)
    assert recipe["plugins"] == ["axolotl.integrations.lm_eval.LMEvalPlugin"]
    assert not recipe.keys() - LMEvalArgs.model_fields.keys() - AxolotlInputConfig.model_fields.keys()
    LMEvalArgs.model_validate(recipe, extra="ignore")


@pytest.mark.parametrize("path", [path for path in RECIPES if is_merge(path)], ids=name)
def test_mergekit_accepts_it_and_drops_none_of_its_keys(path):
    from mergekit.config import MergeConfiguration

    merge = yaml.safe_load(path.read_text())
    validated = MergeConfiguration.model_validate(merge).model_dump(exclude_none=True)
    assert dropped_keys(merge, validated) == []


mixture_recipes = pytest.mark.parametrize("path", [path for path in RECIPES if is_mixture(path)], ids=name)


@mixture_recipes
def test_a_mixture_is_valid_and_writes_the_files_that_the_next_recipe_reads(path):
    mixture = read_mixture(path)
    recipe = read_yaml(
        recipe_directory() / re.search(r"^# after: +recipes/(\S+?\.yml)", path.read_text(), re.MULTILINE)[1]
    )
    entries = [*recipe["datasets"], *recipe.get("test_datasets", [])]
    assert [data["path"] for data in entries] == [f"{mixture.output}/{name}.jsonl" for name in mixture.sets]
    kinds = re.findall(r"^  (\w+):  # type: (\S+)$", path.read_text(), re.MULTILINE)
    assert kinds == [(Path(data["path"]).stem, data["type"]) for data in entries]


def test_mixtures_have_the_row_caps_of_the_paper():
    """arXiv:2312.15166, table 1; its 20.1K math pairs are not public."""
    mixtures = {path.stem: read_mixture(path) for path in RECIPES if is_mixture(path)}
    assert {name: [one.rows for one in mixture.sets.values()] for name, mixture in mixtures.items()} == {
        "solar_sft": [52_000, 100_000, 52_000],
        "solar_sft_v4": [52_000, 52_000],
        "solar_dpo": [12_900, 60_800, 500],  # the last is held out, which the paper does not say
        "solar_sft_maths": [52_000, 100_000, 52_000],
        "solar_dpo_maths": [12_900, 60_800, 20_100, 500],
    }
    assert len({str(mixture.decontaminate) for mixture in mixtures.values()}) == 1
    assert mixtures["solar_sft_v4"].sets.items() <= mixtures["solar_sft"].sets.items(), "v4 has the same rows as v3"


@pytest.mark.parametrize("path", [path for path in RECIPES if is_maths(path)], ids=name)
def test_math_data_is_what_the_next_recipes_read(path):
    args, _ = read_maths(path)
    for after in re.findall(r"recipes/(mixtures/\w+\.yml)", "\n".join(head_of(path))):
        mixture = read_mixture(recipe_directory() / after)
        name = "preferences" if "dpo" in after else "instructions"
        assert [f"{args.output}/{name}.jsonl"] in [one.path for one in mixture.sets.values()]


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_the_variants_with_math_data_train_as_the_originals_do(name):
    original, variant = (read_yaml(recipe_directory() / f"solar_{one}.yml") for one in (name, f"{name}_maths"))
    differs = {key for key in original if original[key] != variant[key]}
    assert differs <= {"base_model", "datasets", "test_datasets", "dataset_prepared_path", "output_dir"}
    assert original.keys() == variant.keys()


@pytest.mark.parametrize(
    ("content", "fact"),
    [("- a\n", "list"), ("a: [\n", "YAML"), ("", "NoneType"), ("d: 2023-13-01\n", "YAML")],
)
def test_files_that_are_not_a_recipe(tmp_path, content, fact):
    (tmp_path / "r.yml").write_text(content)
    with pytest.raises(ArgsError, match=rf"r\.yml.*{fact}"):
        read_recipe(tmp_path / "r.yml")


@pytest.mark.parametrize("path", [path for path in RECIPES if is_training(path)], ids=name)
def test_every_training_recipe_is_parsed(path):
    recipe = read_recipe(path)
    assert (recipe.path, recipe.text) == (path, path.read_text())
    assert "solar" not in read_yaml(path) or recipe.solar is not None


def written_by(path):
    """The folder that a recipe writes: its ``output_dir``, or the one in a merge's command."""
    text = path.read_text()
    run = re.search(r"^# run: +mergekit-yaml \S+ (\S+)", text, re.MULTILINE)
    return run[1] if run else read_yaml(path).get("output_dir")


def read_by(path):
    """Every model that a recipe reads."""
    keys = re.compile(r"^[ -]*(?:base_model|lm_eval_model|model): (\S+)", re.MULTILINE)
    return set(keys.findall(path.read_text()))


NEXT = re.compile(r"(after )?recipes/([\w/]+\.yml)(?:,? with (?:base_model|lm_eval_model): (\S+?)(?=[,;.]*(?:\s|$)))?")


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if not (is_mixture(path) or is_pipeline(path) or is_maths(path))], ids=name
)
def test_the_recipe_after_it_reads_its_output(path):
    """Or the same base, for the second model of an average."""
    fields = re.split(r"^(\w+): +", "\n".join(head_of(path)), flags=re.MULTILINE)
    after = dict(zip(fields[1::2], fields[2::2], strict=False))["after"].replace("\n", " ")
    made = {written_by(path), *read_by(path)}
    for relative, recipe, base in NEXT.findall(after):
        following = recipe_directory() / recipe
        if relative or "eval" in following.parts:
            continue
        if base:
            assert base.removesuffix("/merged") in made, f"{base} is not written by {path.name} or before {recipe}"
        else:
            assert read_by(following) & made, f"{recipe} reads {read_by(following)}, not {made}"
        made.add(written_by(following))
