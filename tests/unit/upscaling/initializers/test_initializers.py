"""What initializers write, against values that torch gives for the base's tensors; and how `verify` sees them."""

import json

import pytest
import torch
from safetensors.torch import load_file

from solar_plugins.errors import CheckpointError
from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.marker import read_marker
from solar_plugins.upscaling.strategies import plan_of
from solar_plugins.upscaling.upscaled_tensors import planned_shards
from solar_plugins.upscaling.verify import verify_checkpoint

SOURCES = (0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7)
"""``dus`` with m = 2; the layers 6 to 9 are duplicates."""
NEW = (6, 7, 8, 9)
WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def dus(duplicates):
    return plan_of(InitArgs(strategy="dus", drop_layers=2, duplicates=duplicates), 8)


def tensors(directory):
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def write(base, plan, tmp_path):
    """The base's tensors, and each one of the new layers with its source's, by position and name inside the layer."""
    made = ensure_checkpoint(find_base(str(base)), plan, tmp_path / "cache")
    verify_checkpoint(made, str(base))
    old, new = tensors(base), tensors(made)
    layers = {}
    for name, tensor in new.items():
        if not name.startswith("model.layers."):
            assert tensor.equal(old[name])
            continue
        number, _, rest = name.removeprefix("model.layers.").partition(".")
        layers[int(number), rest] = (tensor, old[f"model.layers.{plan.sources[int(number)]}.{rest}"])
    return old, layers


def changed(layers):
    return {key for key, (new, old) in layers.items() if not new.equal(old)}


@pytest.mark.parametrize(("duplicates", "factor"), [("scaled", 0.5), ({"initializer": "scaled", "factor": 0.3}, 0.3)])
def test_scaled_multiplies_weights_and_biases_that_write_to_the_residual_stream(any_base, tmp_path, duplicates, factor):
    _, layers = write(any_base, dus(duplicates), tmp_path)
    assert changed(layers) == {(p, name) for p, name in layers if p in NEW and name.rpartition(".")[0] in WRITERS}
    for key in changed(layers):
        new, old = layers[key]
        assert new.dtype == old.dtype
        # Independently: numpy rounds the product of float32 once, torch then rounds to the tensor's own dtype.
        product = old.float().numpy() * old.float().numpy().dtype.type(factor)
        assert new.equal(torch.from_numpy(product).to(old.dtype)), key


def test_identity_duplicates_are_zero_where_they_write(any_base, tmp_path):
    _, layers = write(any_base, dus("identity"), tmp_path)
    assert changed(layers) == {(p, name) for p, name in layers if p in NEW and name.rpartition(".")[0] in WRITERS}
    assert not any(layers[key][0].any() for key in changed(layers))


def test_copy_duplicates_are_the_plain_plan(any_base, tmp_path):
    assert dus("copy") == LayerPlan.from_sources(8, SOURCES)


def test_average_is_the_mean_with_the_layer_above_or_below_for_the_last_layer(any_base, tmp_path):
    plan = plan_of(InitArgs(strategy="slices", slices="0:8,6:8", duplicates="average"), 8)
    old, layers = write(any_base, plan, tmp_path)
    assert {position for position, _ in changed(layers)} == {8, 9}
    for position, pair in ((8, (6, 7)), (9, (7, 6))):
        for rest in {name for at, name in layers if at == position}:
            one, other = (old[f"model.layers.{layer}.{rest}"].double() for layer in pair)
            assert layers[position, rest][0].equal(((one + other) / 2).float().to(layers[position, rest][1].dtype))


def test_noise_has_the_size_that_was_asked_for_on_matrices_alone(any_base, tmp_path):
    _, layers = write(any_base, dus({"initializer": "noise", "relative": 0.2, "seed": 7}), tmp_path)
    assert changed(layers) == {(p, name) for p, name in layers if p in NEW and layers[p, name][0].dim() == 2}
    noises = {}
    for key in changed(layers):
        new, old = (tensor.double() for tensor in layers[key])
        noise = (new - old) / old.square().mean().sqrt()
        assert abs(noise.mean()) < 0.2 * 4 / noise.numel() ** 0.5
        assert noise.std().item() == pytest.approx(0.2, rel=4 / (2 * noise.numel()) ** 0.5)
        noises[key] = noise.flatten()[:32]
    drawn = torch.stack([*noises.values()])
    correlations = torch.corrcoef(drawn) - torch.eye(len(drawn))
    assert correlations.abs().max() < 0.8, "every tensor has numbers of its own"


def computed(base, plan):
    (shard,) = planned_shards(find_base(str(base)), plan)
    return {tensor.name: tensor.compute for tensor in shard.tensors if tensor.compute}


@pytest.mark.parametrize("name", ["scaled", "noise", "average"])
def test_neither_order_nor_threads_nor_processes_change_a_bit(base, name):
    first = {key: bytes(compute()) for key, compute in computed(base, dus(name)).items()}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        torch.manual_seed(99)
        again = {key: bytes(compute()) for key, compute in reversed(computed(base, dus(name)).items())}
    finally:
        torch.set_num_threads(before)
    assert first == again
    assert first


def test_another_seed_is_other_noise_and_no_caller_loses_random_numbers(base):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other = (computed(base, dus({"initializer": "noise", "seed": seed})) for seed in (0, 1))
    name = "model.layers.6.mlp.up_proj.weight"
    assert bytes(one[name]()) != bytes(other[name]())
    assert torch.rand(1).equal(expected)


def test_shards_take_no_part_in_the_values(made_bases, tmp_path, monkeypatch):
    one = write(made_bases / "llama", dus("noise"), tmp_path / "one")[1]
    monkeypatch.setattr("solar_plugins.upscaling.upscaled_tensors.MAX_SHARD_BYTES", 30_000)
    other = write(made_bases / "llama-sharded", dus("noise"), tmp_path / "other")[1]
    assert one.keys() == other.keys()
    assert all(one[key][0].equal(other[key][0]) for key in one)


@pytest.mark.parametrize("name", ["scaled", "noise", "average"])
def test_one_wrong_bit_of_a_computed_tensor_is_found(base, tmp_path, name):
    made = ensure_checkpoint(find_base(str(base)), dus(name), tmp_path / "cache")
    wrong = "model.layers.7.mlp.down_proj.weight"
    tensor = find_base(str(made)).tensors[wrong]
    with tensor.file.open("r+b") as file:
        file.seek(tensor.start + 101)
        byte = file.read(1)[0]
        file.seek(tensor.start + 101)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(
        CheckpointError,
        match=rf"'{wrong}' \(computed from 'model.layers.3.mlp.down_proj.weight' in mode.*"
        rf"at byte 101, .* as {name}.*: expected {byte:02x} .*, found {byte ^ 1:02x} ",
    ):
        verify_checkpoint(made, str(base))


def test_marker_config_and_card_record_the_initializer_with_every_argument(base, tmp_path):
    made = ensure_checkpoint(find_base(str(base)), dus({"initializer": "noise", "relative": 0.25}), tmp_path / "cache")
    noise = {"start": 2, "end": 6, "initialization": "noise", "arguments": {"relative": 0.25, "seed": 0}}
    ranges = [{"start": 0, "end": 6, "initialization": "copy"}, noise, {"start": 6, "end": 8, "initialization": "copy"}]
    assert json.loads((made / "config.json").read_text())["solar_plugins"]["plan"]["ranges"] == ranges
    assert read_marker(made).plan == dus({"initializer": "noise", "relative": 0.25})
    assert "| 6 to 9 | 2 to 5 | noise (relative 0.25, seed 0) |" in (made / "README.md").read_text()


def test_other_arguments_are_another_checkpoint(base, tmp_path):
    plans = [dus(one) for one in (None, "scaled", {"initializer": "scaled", "factor": 0.25}, "noise", "identity")]
    made = {ensure_checkpoint(find_base(str(base)), plan, tmp_path / "cache") for plan in plans}
    assert len(made) == len(plans)


def test_values_that_are_not_finite_are_refused_and_nothing_is_left(base, tmp_path):
    from solar_plugins.errors import PluginError

    plan = dus({"initializer": "scaled", "factor": 1e39})
    with pytest.raises(
        PluginError, match=r"initializer 'scaled', tensor .*_proj.weight of new layer 6: returned values that"
    ):
        ensure_checkpoint(find_base(str(base)), plan, tmp_path / "cache")
    assert not [*(tmp_path / "cache").glob("upscaled-*")]


def test_layers_of_different_kinds_are_not_averaged(tiny_model, tmp_path):
    kinds = ["sliding_attention", "full_attention"] * 4
    base = tiny_model(tmp_path / "base", "qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=8)
    with pytest.raises(
        CheckpointError, match=r"base layers 2 and 3 differ in layer_types \('sliding_attention' and 'full"
    ):
        ensure_checkpoint(find_base(str(base)), dus("average"), tmp_path / "cache")


def test_a_base_of_one_layer_has_no_neighbors(tiny_model, tmp_path):
    base = find_base(str(tiny_model(tmp_path / "base", num_hidden_layers=1)))
    plan = plan_of(InitArgs(strategy="stack", times=2, duplicates="average"), 1)
    with pytest.raises(CheckpointError, match="at least 2 layers, found 1"):
        planned_shards(base, plan)
