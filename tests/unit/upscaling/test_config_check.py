"""The check by transformers' own config classes, which shares no rule with the writer."""

import json

import pytest
from tiny_decoders import NUM_LAYERS, tiny_config

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling import config_check
from solar_plugins.upscaling.architectures.table import ARCHITECTURES, COMPOSITES
from solar_plugins.upscaling.config_check import check_by_transformers
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.upscaled_config import upscale_config

PLAN = LayerPlan.from_sources(NUM_LAYERS, [*range(6), *range(3, 9)])


@pytest.fixture
def check(tmp_path):
    """Write two configs, and check them."""

    def run(base, upscaled, plan=PLAN, trusted=()):
        folders = tmp_path / "base", tmp_path / "upscaled"
        for folder, config in zip(folders, (base, upscaled), strict=True):
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text(json.dumps(config))
        return check_by_transformers([folders[0]], folders[1], upscaled["model_type"], plan, trusted)

    return run


def tiny(model_type):
    return json.loads(tiny_config(model_type).to_json_string(use_diff=False))


@pytest.mark.parametrize("model_type", [*ARCHITECTURES, *COMPOSITES])
def test_transformers_reads_every_type_as_the_plan_says(model_type, check):
    base = tiny(model_type)
    assert "reads 12 layers" in check(base, upscale_config(Decoder.of(base), PLAN))


@pytest.mark.parametrize(
    ("model_type", "change", "message"),
    [
        ("gpt2", {"num_hidden_layers": 9}, "reads a depth of 9, and 9 for the base"),
        ("llama", {"num_hidden_layers": 11}, "reads a depth of 11"),
        ("longcat_flash", {"num_hidden_layers": 12}, "reads a depth of 12, and 18 for the base"),
        ("gemma2", {"layer_types": ["sliding_attention", "full_attention"] * 6}, "reads layer_types as"),
        ("jamba", {"attn_layer_offset": 0}, "reads layer_types as"),
        ("bamba", {"attn_layer_indices": [2, 4, 7]}, "reads attn_layer_indices as"),
        ("recurrent_gemma", {"block_types": ["recurrent"]}, "reads layers_block_type as"),
        ("qwen3_moe", {"mlp_only_layers": [1, 2]}, "reads mlp_only_layers as"),
        ("llama", {"num_attention_heads": "four"}, "can read the base's config, but not this one"),
    ],
)
def test_a_wrong_config_is_found(model_type, change, message, check):
    base = tiny(model_type) | ({"mlp_only_layers": [1, 2, 6]} if model_type == "qwen3_moe" else {})
    upscaled = upscale_config(Decoder.of(base), PLAN)
    assert "reads 12 layers" in check(base, upscaled)
    with pytest.raises(CheckpointError, match=message):
        check(base, upscaled | change)


def test_trusted_keys_are_kept_unchanged(check):
    base = tiny("llama") | {"some_layers": [1, 2], "kinds": ["a"] * 9}
    upscaled = upscale_config(Decoder.of(base, ["some_layers", "kinds"]), PLAN)
    assert "reads 12 layers in agreement" in check(base, upscaled, trusted=["some_layers", "kinds"])
    with pytest.raises(CheckpointError, match="reads kinds as"):
        check(base, upscaled, trusted=["some_layers"])


def test_what_is_not_checked_is_said(check, monkeypatch):
    base = tiny("llama")
    own = base | {"model_type": "mine"}
    assert "does not support model_type 'mine'" in check(own, own)
    odd = base | {"num_attention_heads": "four"}
    assert "cannot read the base's" in check(odd, odd)
    monkeypatch.setattr(config_check, "find_spec", lambda name: None)
    assert check(base, base) == "config.json was not checked with transformers, which is not installed"
