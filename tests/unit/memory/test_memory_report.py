import pytest
import yaml

from solar_plugins.errors import ArgsError
from solar_plugins.memory.memory_report import as_json, as_text, memory_of_recipe
from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import write_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture
def solar(mistral_config):
    def report(name="solar_dus.yml", **options):
        options = {"gpus": 8, "gpu_gigabytes": 80} | options
        return memory_of_recipe(recipe_directory() / name, str(mistral_config), **options)

    return report


def test_solar_on_8_gpus(solar):
    """By hand: 16 P / 8, 2 GB gathered, 13.27 GB at the loss. No GPU was available to compare with."""
    report = as_json(solar())
    assert report["parameters"] == 10_731_524_096
    assert (report["gpus"], report["gpus_from"], report["gpu_memory_bytes"]) == (8, "--gpus", 80_000_000_000)
    at_loss = 16 * 10_731_524_096 // 8 + 2_000_000_000 + 16_384 * (48 * 8192 + 12 * 32_000 + 8 * 4096)
    assert report["moments"]["loss"] == report["peak_bytes"] == at_loss
    assert report["share"] == at_loss / 80e9
    assert sum(part["num_bytes"] for part in report["parts"] if "loss" in part["moments"]) == at_loss
    assert all(part["arithmetic"] and part["reason"] for part in report["parts"])


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({}, "fits"),
        ({"gpu_gigabytes": None}, "unknown: give the GPU's memory with --gpu-memory"),
        ({"gpu_gigabytes": 40}, "tight"),
        ({"gpus": 2}, "does not fit"),
        ({"gpu_gigabytes": 24}, "does not fit"),
    ],
)
def test_the_verdict(solar, options, verdict):
    assert solar(**options).verdict == verdict


def test_named_settings_are_used(solar):
    """``solar.dpo: zephyr_2023_11`` sets rmsprop: one state, not two."""
    report = as_json(solar("solar_dpo.yml"))
    parts = {part["name"]: part["num_bytes"] for part in report["parts"]}
    assert report["optimizer"] == "rmsprop"
    assert parts["optimizer states"] == parts["master weights"] == 4 * 10_731_524_096 // 8
    assert parts["reference model"] == 2 * 10_731_524_096 // 8


def test_the_text_shows_every_part_with_its_arithmetic(solar):
    report = solar()
    text = as_text(report)
    for part in report.parts:
        assert f"\n{part.name} " in text
        assert f"\n{part.name}: {part.arithmetic}\n" in text
    assert "optimizer states: 8 x 10,731,524,096 / 8" in text
    assert "1.14 to 1.17 times" in " ".join(text.split())
    assert text.split("peak ")[1].split("\n")[0].endswith("fits")
    assert max(map(len, text.splitlines())) <= 120


def test_settings_that_are_not_estimated_are_listed_in_the_text(base, tmp_path):
    recipe = {"base_model": str(base), "sequence_len": 8, "context_parallel_size": 2}
    (tmp_path / "r.yml").write_text(yaml.safe_dump(recipe))
    report = memory_of_recipe(tmp_path / "r.yml", None, None, None)
    assert report.verdict.startswith("unknown: give the GPU's memory with --gpu-memory")
    assert "Note: not estimated: the effect of context_parallel_size: 2" in as_text(report)


def test_another_model_type_is_noted(tiny_model, tmp_path):
    tiny_model(tmp_path / "qwen", kind="qwen2")
    (tmp_path / "r.yml").write_text(yaml.safe_dump({"base_model": str(tmp_path / "qwen"), "sequence_len": 8}))
    report = memory_of_recipe(tmp_path / "r.yml", None, None, None)
    (note,) = report.notes
    assert "qwen2" in note
    assert "Llama" in note


def test_a_base_that_was_already_upscaled_is_noted(base, tmp_path):
    plan = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
    write_checkpoint(find_base(str(base)), plan, tmp_path / "grown")
    recipe = {"base_model": str(tmp_path / "grown"), "solar": {"init": {"strategy": "dus", "drop_layers": 2}}}
    (tmp_path / "r.yml").write_text(yaml.safe_dump(recipe | {"sequence_len": 8, "micro_batch_size": 1}))
    report = memory_of_recipe(tmp_path / "r.yml", None, gpus=1, gpu_gigabytes=None)
    model = as_text(report).splitlines()[1]
    assert str(tmp_path / "grown") in model
    assert "already upscaled" in model
    assert model.endswith("-> r.yml")
    assert (as_json(report)["already_grown"], as_json(report)["num_layers"]) == (True, 12)


def test_a_missing_recipe(tmp_path):
    with pytest.raises(ArgsError, match="cannot be read"):
        memory_of_recipe(tmp_path / "r.yml", None, None, None)


def test_parameters_frozen_by_solar_train_have_no_gradients(solar):
    """By hand: eight layers of 218,112,000 parameters, the new ones or those around the seam."""
    for name in ("block_expansion.yml", "solar_dus_seam.yml"):
        parts = {part["name"]: part["num_bytes"] for part in as_json(solar(name, gpus=1))["parts"]}
        assert parts["gradients"] == 2 * 8 * 218_112_000
        assert parts["optimizer states"] == 8 * 8 * 218_112_000


def test_an_adapter_on_some_layers(solar, tmp_path, mistral_config):
    recipe = yaml.safe_load((recipe_directory() / "solar_dus_lora.yml").read_text())
    recipe["solar"]["train"] = {"layers": "new"}
    (tmp_path / "some.yml").write_text(yaml.safe_dump(recipe))
    some, every = (
        as_json(memory_of_recipe(path, str(mistral_config), gpus=1, gpu_gigabytes=80))["parts"]
        for path in (tmp_path / "some.yml", recipe_directory() / "solar_dus_lora.yml")
    )
    sizes = [{part["name"]: part["num_bytes"] for part in parts} for parts in (some, every)]
    assert sizes[0]["optimizer states"] == sizes[1]["optimizer states"] * 16 // 48


def test_changes_that_make_a_recipe_fit(solar):
    """24 GB: micro batches of 1, then LoRA, then a base in 4 bits, which fits."""
    report = solar(gpus=1, gpu_gigabytes=24)
    keys = [change.keys for change in report.changes]
    assert [key.split(",")[0] for key in keys] == ["micro_batch_size: 1", "adapter: lora", "adapter: qlora"]
    peaks = [report.peak_bytes, *(change.peak_bytes for change in report.changes)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < 0.85 * 24e9 < peaks[-2]
    assert all(key in as_text(report) for key in keys)
    assert as_json(report)["changes"][-1] == {"keys": keys[-1], "peak_bytes": peaks[-1]}
    assert solar().changes == []


def test_no_change_is_listed_after_the_one_that_is_enough(solar):
    (change,) = solar(gpu_gigabytes=40).changes
    assert change.keys.startswith("micro_batch_size: 1")
    assert change.peak_bytes < 0.85 * 40e9


def test_a_changed_recipe_has_the_memory_of_its_change(solar, tmp_path, mistral_config):
    (change,) = solar(gpu_gigabytes=40).changes
    recipe = yaml.safe_load((recipe_directory() / "solar_dus.yml").read_text()) | {"micro_batch_size": 1}
    recipe["deepspeed"] = str(recipe_directory() / "deepspeed" / "zero3_bf16.json")
    (tmp_path / "small.yml").write_text(yaml.safe_dump(recipe))
    changed = memory_of_recipe(tmp_path / "small.yml", str(mistral_config), gpus=8, gpu_gigabytes=40)
    assert (changed.peak_bytes, changed.verdict) == (change.peak_bytes, "fits")
