import pytest
import torch
import yaml

from solar_plugins.axolotl_adapter import plugin as axolotl_plugin
from solar_plugins.axolotl_adapter.precision import DEFAULT_OPTIMIZER, lost_steps
from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.recipe import parse_recipe, read_recipe, read_yaml

BF16 = {"bf16": True}
FSDP2 = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}


@pytest.mark.parametrize("where", [{}, FSDP2, {"ddp": True}, {"unfrozen_parameters": ["model.layers.4."]}])
@pytest.mark.parametrize(
    "optimizer",
    [
        {},
        {"optimizer": "adamw_torch_fused"},
        {"optimizer": "adamw_bnb_8bit", "optim_args": {"bf16_stochastic_round": True}},
        {"optimizer": "adamw_torch_8bit"},
        {"optimizer": "adamw_torch_8bit", "optim_args": {"bf16_stochastic_round": False}},
        {"optimizer": "adamw_torch_8bit", "optim_args": "block_size=256, bf16_stochastic_round=False"},
        {"optimizer": "optimi_adamw", "optim_args": {"kahan_sum": False}},
        {"optimizer": "flash_adamw", "optim_args": {"master_weight_bits": None}},
    ],
)
def test_small_steps_are_lost(where, optimizer):
    assert "rounded away" in lost_steps(parse_recipe(BF16 | where | optimizer))
    assert lost_steps(parse_recipe(where | optimizer)), "bf16: auto is Axolotl's default"


@pytest.mark.parametrize(
    "recipe",
    [
        {"bf16": False},
        {"bf16": False, "fp16": True},
        {"deepspeed": "recipes/deepspeed/zero2_bf16.json"},
        {"deepspeed": {"zero_optimization": {"stage": 3}}},
        {"adapter": "lora"},
        {"adapter": "qlora", **FSDP2},
        {"optimizer": "adamw_torch_8bit", "optim_args": {"bf16_stochastic_round": True}, **FSDP2},
        {"optimizer": "adamw_torch_4bit", "optim_args": "block_size=256, bf16_stochastic_round=True"},
        {"optimizer": "optimi_adamw"},
        {"optimizer": "flash_adamw"},
    ],
)
def test_small_steps_are_kept(recipe):
    assert lost_steps(parse_recipe(BF16 | recipe)) is None


@pytest.mark.parametrize(
    ("recipe", "fix"),
    [
        (
            {},
            "or set optimizer: adamw_torch_8bit with optim_args: {bf16_stochastic_round: true}, as in recipes/solar",
        ),
        ({"optimizer": "ao_adamw_fp8"}, "or set optim_args: {bf16_stochastic_round: true}"),
        ({"optimizer": "optimi_adamw", "optim_args": "kahan_sum=false"}, "or remove kahan_sum from optim_args"),
    ],
)
def test_lost_steps_come_with_a_fix(recipe, fix):
    said = lost_steps(parse_recipe(BF16 | recipe))
    assert fix in said
    assert str(recipe.get("optimizer", DEFAULT_OPTIMIZER)) in said
    assert "deepspeed: recipes/deepspeed/zero2_bf16.json" in said
    for name in ("solar_dus_fsdp2.yml", "deepspeed/zero2_bf16.json", "deepspeed/zero3_bf16.json"):
        assert (recipe_directory() / name).is_file()


def test_no_shipped_recipe_loses_small_steps():
    paths = [path for path in recipe_directory().rglob("*.yml") if "solar" in yaml.safe_load(path.read_text())]
    assert len(paths) >= 17
    assert {path.name: said for path in paths if (said := lost_steps(read_recipe(path)))} == {}
    for name, key in (("block_expansion.yml", "deepspeed"), ("solar_dus_fsdp2.yml", "optim_args")):
        recipe = read_yaml(recipe_directory() / name)
        assert lost_steps(parse_recipe({k: value for k, value in recipe.items() if k != key}))


def test_a_step_below_a_256th_of_a_weight_is_lost_in_bf16():
    """bf16 stores 7 bits behind the leading one, so neighbors are 1/128 of a power of two apart."""
    weights = 1 + torch.arange(128) / 128
    assert torch.equal((weights * (1 + 1 / 513)).bfloat16().float(), weights), "no weight changes"
    assert torch.equal(torch.tensor(1 + 1 / 257).bfloat16(), torch.tensor(1.0).bfloat16())
    assert (weights * (1 + 1 / 255)).bfloat16().float().gt(weights).all(), "all change"


@pytest.mark.parametrize(("dtype", "moved"), [(torch.bfloat16, 0.0), (torch.float32, 100 * 2e-5)])
def test_adamw_with_the_learning_rate_of_solar_dus(dtype, moved):
    """Each of 100 equal gradients moves a weight by the learning rate, if it is not rounded away."""
    weight = torch.nn.Parameter(torch.full((4,), 0.5, dtype=dtype))
    optimizer = torch.optim.AdamW([weight], lr=2e-5, weight_decay=0.0)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    torch.testing.assert_close(0.5 - weight.detach().float(), torch.full((4,), moved), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("changes", "local_rank", "said"),
    [
        ({}, None, 1),
        ({}, "0", 1),
        ({}, "1", 0),
        ({"bf16": False}, None, 0),
        ({"inference": True}, None, 0),
        ({"solar": {"dpo": "zephyr_2023_11"}, "rl": "dpo"}, None, 1),
    ],
)
def test_the_plugin_warns_once_per_node(changes, local_rank, said, monkeypatch):
    warnings = []
    monkeypatch.setattr(axolotl_plugin.LOG, "warning", lambda text, *args: warnings.append(text % args))
    if local_rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    cfg = {"base_model": "some/model", "solar": {"data": {"bad_rows": "drop"}}} | BF16 | changes
    axolotl_plugin.SolarPlugin().register(cfg)
    assert len([text for text in warnings if "rounded away" in text]) == said


def test_the_plugin_does_not_warn_without_a_solar_block(monkeypatch):
    warnings = []
    monkeypatch.setattr(axolotl_plugin.LOG, "warning", lambda text, *args: warnings.append(text % args))
    axolotl_plugin.SolarPlugin().register({"base_model": "some/model"} | BF16)
    assert warnings == []
