"""The example package's initializer, from the literature: registered as a plugin is, and made of `api` alone."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from solar_plugins.errors import CheckpointError
from solar_plugins.plugins import manager as registry
from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.strategies import plan_of
from solar_plugins.upscaling.upscaled_tensors import planned_shards
from solar_plugins.upscaling.verify import verify_checkpoint

FILE = Path(__file__).parents[2] / "plugins/solar-plugins-example/solar_plugins_example/opt_deus.py"
NEURONS = ("mlp.gate_proj.weight", "mlp.up_proj.weight")


@pytest.fixture(autouse=True)
def plugin():
    spec = importlib.util.spec_from_file_location("opt_deus", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    manager = registry.loaded_plugins().manager
    manager.register(module)
    manager.check_pending()
    yield module
    manager.unregister(module)


def made_from(base, tmp_path):
    plan = plan_of(InitArgs(strategy="opt_deus"), 8)
    made = ensure_checkpoint(find_base(str(base)), plan, tmp_path / "cache")
    verify_checkpoint(made, str(base))
    return load_file(base / "model.safetensors"), load_file(made / "model.safetensors"), made


def test_32_layers_become_the_papers_48():
    """Its code has new layers at 16, 18, .. 46, each after the base layer below it."""
    plan = plan_of(InitArgs(strategy="opt_deus"), 32)
    new = [position for position, layer in enumerate(plan.layers) if layer.initialization == "transport"]
    assert new == [*range(16, 48, 2)]
    assert [plan.sources[position] for position in new] == [*range(15, 31)]
    assert [source for position, source in enumerate(plan.sources) if position not in new] == [*range(32)]
    assert plan.seams() == (), "the new layers give back what they are given"


def test_the_deeper_model_is_its_base_bit_by_bit(base, tmp_path):
    made = made_from(base, tmp_path)[2]
    ids = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        ours, theirs = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
            for folder in (made, base)
        )
    assert ours.equal(theirs)


def test_neurons_in_another_order_are_found_again(base, tmp_path):
    """Layer 5 is made layer 4 with its neurons mixed and a little noise: their mean is then near layer 5 itself."""
    old = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(48, generator=generator)
    for name in NEURONS:
        lower = old[f"model.layers.4.{name}"].float()
        noise = torch.randn(lower.shape, generator=generator) * 0.01
        old[f"model.layers.5.{name}"] = (lower[order] + noise).bfloat16()
    save_file(old, base / "model.safetensors", metadata={"format": "pt"})
    old, new, _ = made_from(base, tmp_path)
    for name in NEURONS:
        lower, upper = (old[f"model.layers.{layer}.{name}"].double() for layer in (4, 5))
        found = new[f"model.layers.6.{name}"]
        assert found.equal(((lower[order] + upper) / 2).to(found.dtype)), "position 6 is between base layers 4 and 5"
        assert (found.double() - upper).norm() < 0.2 * ((lower + upper) / 2 - upper).norm()


def test_the_assignment_is_the_best_one(base, tmp_path):
    """No two neurons can change places and be nearer to those above."""
    old, new, _ = made_from(base, tmp_path)
    below, above = (
        torch.cat([old[f"model.layers.{layer}.{name}"].double() for name in NEURONS], dim=1) for layer in (3, 4)
    )
    aligned = torch.cat([2 * new[f"model.layers.4.{name}"].double() for name in NEURONS], dim=1) - above
    order = torch.cdist(aligned, below).argmin(dim=1)
    assert sorted(order.tolist()) == [*range(48)], "every neuron once"
    costs = torch.cdist(above, below[order]).square()
    own = costs.diagonal()
    assert (costs + costs.T >= own[:, None] + own[None, :] - 1e-6).all()


def test_attention_and_norms_are_plain_means_and_writers_zero(base, tmp_path):
    old, new, _ = made_from(base, tmp_path)
    for name in ("self_attn.q_proj.weight", "self_attn.v_proj.weight", "input_layernorm.weight"):
        one, other = (old[f"model.layers.{layer}.{name}"].double() for layer in (3, 4))
        assert new[f"model.layers.4.{name}"].equal(((one + other) / 2).to(one.bfloat16().dtype))
    assert not new["model.layers.4.self_attn.o_proj.weight"].any()
    assert not new["model.layers.4.mlp.down_proj.weight"].any()


def test_unsupported_layers_are_rejected(tiny_model, tmp_path, base):
    plan = plan_of(InitArgs(strategy="stack", times=2, duplicates="transport"), 8)
    with pytest.raises(CheckpointError, match="layer 7 is the last one; `transport` needs a layer above it"):
        planned_shards(find_base(str(base)), plan)
    made = tiny_model(tmp_path / "starcoder2", "starcoder2")
    with pytest.raises(CheckpointError, match=r"layer 3 has no mlp.gate_proj or mlp.up_proj, whose neurons"):
        planned_shards(find_base(str(made)), plan_of(InitArgs(strategy="opt_deus"), 8))


def test_the_record_says_that_its_layers_pass_their_input_through(base, tmp_path):
    config = json.loads((made_from(base, tmp_path)[2] / "config.json").read_text())
    part = config["solar_plugins"]["plan"]["ranges"][1]
    assert part == {"start": 3, "end": 4, "initialization": "transport", "passes_through": True}
