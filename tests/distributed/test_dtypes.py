"""The dtypes of weights, gradients and optimizer states in bf16 training are those of `solar_plugins.memory`."""

import pytest
from launchers import SHARDING, evidence, train

from solar_plugins.axolotl_adapter.precision import lost_steps
from solar_plugins.memory.estimate import memory_parts
from solar_plugins.memory.parameters import held_tensors
from solar_plugins.memory.recipe_model import model_of
from solar_plugins.memory.recipe_setup import setup_of
from solar_plugins.recipe import read_recipe

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

TEXTS = [{"text": f"The number {n} is followed by the number {n + 1}. " * 20} for n in range(10)]
KEYS = {
    "datasets": [{"path": "rows.jsonl", "ds_type": "json", "type": "completion"}],
    "max_steps": 1,
    "bf16": True,
}
RANKS = 2
BYTES = {"bfloat16": 2, "float32": 4}


def keys_of(sharding):
    keys = KEYS | SHARDING[sharding]
    if "deepspeed" in keys:
        keys["deepspeed"] = keys["deepspeed"] | {"bf16": {"enabled": True}}  # as recipes/deepspeed has it
    return keys


@pytest.mark.parametrize("sharding", [pytest.param("ddp", marks=pytest.mark.nightly), "fsdp2", "zero3"])
def test_bf16(sharding, make_training_folder, monkeypatch):
    folder = make_training_folder(TEXTS, keys_of(sharding))
    status, said = train(folder, sharding, RANKS)
    assert status == 0, said[-5000:]

    monkeypatch.chdir(folder)
    recipe = read_recipe(folder / "recipe.yml")
    setup = setup_of(recipe, RANKS)
    model = model_of(recipe, None).model
    expected = dict(zip(model.shapes, [tensor.weight_bytes for tensor in held_tensors(model, setup)], strict=True))
    parts = {part.name: part.num_bytes for part in memory_parts(model, setup)}
    for seen in evidence(folder, RANKS):
        weights, optimizer = seen["weights"], seen["optimizer"]
        assert {name: BYTES[dtype] for name, (dtype, _) in weights.items()} == expected
        assert sum(BYTES[dtype] * elements for dtype, elements in weights.values()) == parts["weights"]
        assert num_bytes(optimizer["states"]) == parts["optimizer states"]
        if sharding == "zero3":
            assert num_bytes(optimizer["updated"]) == parts["master weights"]
            assert list(optimizer["updated"]) == ["float32"]
        else:
            assert "master weights" not in parts
            assert num_bytes(optimizer["updated"]) == parts["weights"], "the weights themselves"
            assert num_bytes(seen["gradients"]) == parts["gradients"]
        assert {dtype for name, (dtype, _) in weights.items() if "_proj" in name} == {"bfloat16"}

    assert recipe.weight_precision == "bf16"
    assert (lost_steps(recipe) is not None) == (sharding != "zero3")
    assert said.count("trains bf16 weights without fp32 copies") == (sharding != "zero3"), "on one of the two ranks"


def num_bytes(elements):
    return sum(BYTES[dtype] * count for dtype, count in elements.items())
