"""Unknown keys: harmless, or rejected with their names and how to trust them."""

import json

import pytest
from click.testing import CliRunner
from own_code_configs import ACCEPTED, COMMON, REFUSED

from solar_plugins.cli import solar
from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import cache_name, ensure_checkpoint
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.upscaled_config import upscale_config
from solar_plugins.upscaling.verify import verify_checkpoint

PLAN = LayerPlan.from_sources(32, [*range(24), *range(8, 32)])
OWN = COMMON | {"model_type": "mine"}
LLAMA = {key: value for key, value in OWN.items() if key != "auto_map"} | {"model_type": "llama"}


def upscale(config, *trusted, plan=PLAN):
    return upscale_config(Decoder.of(config, trusted), plan)


@pytest.mark.parametrize("name", ACCEPTED)
def test_published_models_with_code_of_their_own_are_accepted(name):
    config = COMMON | ACCEPTED[name]
    deeper = upscale(config)
    assert deeper["n_layers" if "n_layers" in config else "num_hidden_layers"] == 48
    followed = {"num_hidden_layers", "n_layers", "layer_types", "attn_type_list", "moe_layer_end_index"}
    assert {key for key in config if deeper[key] != config[key]} <= followed


@pytest.mark.parametrize("name", REFUSED)
def test_published_models_whose_layers_differ_are_refused(name):
    change, keys = REFUSED[name]
    with pytest.raises(CheckpointError, match="custom code") as caught:
        upscale(COMMON | change)
    assert [key for key in change if f"--trust-config-key {key} " in f"{caught.value} "] == keys


HOSTILE = {
    "bskcn_1": [3, 5],
    "dense_attention_every_n_layers": 2,
    "sliding_window_layers": [1, 3, 5, 7],
    "special_layers": [[0, 3], [5, 7]],
    "skip_connections": {"0": 3, "4": 7},
    "attention": {"window": {"layers": [0, 2]}},
    "attn_cfg": {"global_every": 4},
    "attention_pattern": "LLLG",
    "kinds": "MMAM" * 8,
    "moe_at": "1,3,5",
    "dense_first": 2,
    "n_dense": 3,
    "num_moe": 4,
    "first_moe": 1,
    "moe_from": 5,
    "switch_point": 16,
    "boundary": 0.5,
    "hybrid_ratio": 0.25,
    "residual_scale_by_depth": True,
    "kv_sharing_groups": 4,
    "cla_share_factor": 2,
    "alternating": True,
    "full_attention_idxs": [0, 31],
    "layer_scales": [0.5] * 32,
    "mixer_kinds": ["attn", "mamba"],
    "dilated": True,
    "exit_layer": 12,
    "global_attn_interval": 6,
    "window_stride": 4,
    "attn_period": 4,
    "group_size": 4,
    "block_size": 4,
    "lower": 8,
    "ffn_mult": [1.0, 2.0],
    "layer_head_dim": 64,
    "value_residual": True,
    "attention_type": "alternating",
    "attn_impl": "LLLG",
    "unet_skip": True,
    "num_kv_reuse": 2,
    "early_exit": 8,
    "rope_scaling": {"type": "linear", "factor": 2.0, "skip_layers": [3]},
}


@pytest.mark.parametrize("key", HOSTILE)
@pytest.mark.parametrize("model_type", ["mine", "llama"])
def test_a_key_that_could_name_layers_is_refused_where_own_code_reads_it(key, model_type):
    config = COMMON | {"model_type": model_type, key: HOSTILE[key]}
    with pytest.raises(
        CheckpointError, match=rf"{key}.*solar\.init\.trust_config_keys: \[{key}.*--trust-config-key {key}"
    ):
        upscale(config)
    assert upscale(config, key)[key] == HOSTILE[key]


@pytest.mark.parametrize(
    "text", ["sliding,full", "swa:3,full:1", "local-global", "slide_3_full_1", "5to1", "global_then_local"]
)
def test_a_text_that_names_two_kinds_of_layers_is_refused(text):
    with pytest.raises(CheckpointError, match="trust_config_keys"):
        upscale(OWN | {"attention_type": text})


def test_all_doubtful_keys_are_named_in_one_error():
    with pytest.raises(CheckpointError, match=r"trust_config_keys: \[attn_cfg\.every, n_dense\] in"):
        upscale(OWN | {"attn_cfg": {"every": 2, "head_dim": 8}, "n_dense": 1})
    upscale(OWN | {"attn_cfg": {"every": 2}, "n_dense": 1}, "attn_cfg.every", "n_dense")
    upscale(OWN | {"attn_cfg": {"every": 2}}, "attn_cfg")


@pytest.mark.parametrize("place", ["compression_config", "quantization_config"])
def test_a_quantization_list_with_one_entry_per_layer_is_a_known_key(place):
    ignored = {"quant_method": "compressed-tensors", "ignore": [f"model.layers.{i}.mlp.gate" for i in range(32)]}
    assert len(upscale(LLAMA | {place: ignored})[place]["ignore"]) == 48


def test_keys_that_are_off_are_ignored():
    upscale(
        OWN | {"dense_layers": [], "every": None, "use_cla": False, "first_k_dense_replace": 0, "moe_layer_freq": 1}
    )
    with pytest.raises(CheckpointError, match=r"dense_layer \(0\)"):
        upscale(OWN | {"dense_layer": 0})  # the number of the first


def test_a_list_of_layer_types_follows_the_plan_whoever_reads_it():
    kinds = ["a", "b", "c", "d"] * 8
    assert upscale(OWN | {"layer_types": kinds})["layer_types"] == [kinds[source] for source in PLAN.sources]


PER_LAYER = {
    "attn_kinds": [0, 1] * 16,
    "full_layers": [3, 7],
    "linear_cfg": {"kda_layers": [1, 2, 32]},
    "by_layer": {"0": "a", "31": "b"},
    "pattern": "MMAM" * 8,
    "moe_at": "3, 7, 11",
}


@pytest.mark.parametrize("key", PER_LAYER)
def test_a_list_with_one_value_per_layer_is_rejected_in_a_known_type(key):
    """transformers may ignore it, and vLLM may not."""
    with pytest.raises(CheckpointError, match=rf"{key}.*trust_config_keys: \[{key}"):
        upscale(LLAMA | {key: PER_LAYER[key]})
    assert upscale(LLAMA | {key: PER_LAYER[key]}, key)[key] == PER_LAYER[key]


def test_unknown_keys_of_a_known_type_are_kept():
    extra = {"layer_switch": 4, "order_of_interleaved_layers": "local_attn_first", "cla_share_factor": 2}
    extra |= {"suppress_tokens": [1, 2], "image_token_ids": [3, 4], "mtp_layer_ids": [0], "widths": [512, 1024]}
    assert extra.items() <= upscale(LLAMA | extra).items()


def test_a_trusted_key_must_be_there():
    with pytest.raises(CheckpointError, match="trust_config_keys: 'bskcn_7' is not a key"):
        upscale(OWN, "bskcn_7")


@pytest.fixture
def own_base(base):
    path = base / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"auto_map": {"AutoConfig": "c.C"}, "model_type": "mine", "n_dense": 1}))
    (base / "c.py").write_text("")
    return base


DUS = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])


def test_trust_config_key_is_recorded_in_the_result(own_base, tmp_path):
    out = tmp_path / "out"
    command = [str(own_base), str(out), "--drop-layers", "2", "--trust-remote-code"]
    refused = CliRunner().invoke(solar, ["upscale", *command])
    assert refused.exit_code == 1
    assert "--trust-config-key n_dense" in refused.output
    plan = ["plan", "--base", str(own_base), "--drop-layers", "2", "--trust-remote-code"]
    assert CliRunner().invoke(solar, plan).exit_code == 1
    assert CliRunner().invoke(solar, [*plan, "--trust-config-key", "n_dense"]).exit_code == 0
    assert CliRunner().invoke(solar, ["upscale", *command, "--trust-config-key", "n_dense"]).exit_code == 0
    record = json.loads((out / "config.json").read_text())["solar_plugins"]
    assert record["trusted_config_keys"] == ["n_dense"]
    assert "not checked" in verify_checkpoint(out, str(own_base)).config


def test_trust_config_keys_in_a_recipe_are_used(own_base, tmp_path):
    recipe = tmp_path / "recipe.yml"
    text = f"base_model: {own_base}\ntrust_remote_code: true\nsolar:\n  init:\n    strategy: dus\n    drop_layers: 2\n"
    recipe.write_text(text)
    assert "solar.init.trust_config_keys: [n_dense]" in CliRunner().invoke(solar, ["plan", str(recipe)]).output
    recipe.write_text(f"{text}    trust_config_keys: [n_dense]\n")
    assert CliRunner().invoke(solar, ["plan", str(recipe)]).exit_code == 0


def test_trusted_keys_are_part_of_the_cache_name(own_base, tmp_path):
    trusting, plain = (
        find_base(str(own_base), trust_remote_code=True, trusted_keys=keys) for keys in (("n_dense",), ())
    )
    assert cache_name(trusting, DUS) != cache_name(plain, DUS)
    ensure_checkpoint(trusting, DUS, tmp_path / "cache")
    with pytest.raises(CheckpointError, match="n_dense"):
        ensure_checkpoint(plain, DUS, tmp_path / "cache")
