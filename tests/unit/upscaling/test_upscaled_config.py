import pytest

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.upscaled_config import upscale_config

CONFIG = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 32}
PLAN = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])


def test_config_gets_the_new_depth_and_per_layer_lists_follow_the_plan():
    config = CONFIG | {"layer_types": ["a", "b", "c", "d"]}
    upscaled = upscale_config(Decoder.of(config), PLAN)
    assert upscaled["num_hidden_layers"] == 6
    assert upscaled["layer_types"] == ["a", "b", "c", "b", "c", "d"]
    assert config["layer_types"] == ["a", "b", "c", "d"], "the base's config is left alone"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"model_type": "gpt2", "n_layer": 4},
            {"n_layer": 6},
        ),
        (
            {"model_type": "qwen2", "num_hidden_layers": 4, "max_window_layers": 4, "use_sliding_window": False},
            {"num_hidden_layers": 6},
        ),
        (
            {"model_type": "qwen2", "num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8}
            | {"max_window_layers": 2},
            {
                "layer_types": [
                    *["full_attention"] * 2,
                    "sliding_attention",
                    "full_attention",
                    *["sliding_attention"] * 2,
                ]
            },
        ),
        (
            {"model_type": "qwen2_moe", "num_hidden_layers": 4, "mlp_only_layers": [1]},
            {"mlp_only_layers": [1, 3]},
        ),
        (
            {"model_type": "qwen3_moe", "num_hidden_layers": 4, "decoder_sparse_step": 2},
            {"decoder_sparse_step": 2},  # the plan keeps the step
        ),
        (
            {"model_type": "qwen3_moe", "num_hidden_layers": 4, "decoder_sparse_step": 3},
            {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1, 3, 5]},
        ),
        (
            {"model_type": "llama4_text", "num_hidden_layers": 4, "interleave_moe_layer_step": 3},
            {"moe_layers": [2, 4]},
        ),
        (
            {"model_type": "nemotron_h", "num_hidden_layers": 4, "hybrid_override_pattern": "M-M*"},
            {"num_hidden_layers": 6, "hybrid_override_pattern": "M-M-M*"},
        ),
        (
            {"model_type": "gpt_neo", "num_layers": 4, "attention_types": [[["global", "local"], 2]]}
            | {"attention_layers": ["global", "local", "global", "local"]},
            {
                "num_layers": 6,
                "attention_types": [[[kind], 1] for kind in ("global", "local", "global", "local", "global", "local")],
                "attention_layers": ["global", "local", "global", "local", "global", "local"],
            },
        ),
        (
            {
                "model_type": "ernie4_5_moe",
                "num_hidden_layers": 4,
                "moe_layer_start_index": 1,
                "moe_layer_end_index": 3,
            },
            {"moe_layer_start_index": 1, "moe_layer_end_index": 5},
        ),
        (
            {"model_type": "deepseek_v3", "num_hidden_layers": 4, "first_k_dense_replace": 1},
            {"first_k_dense_replace": 1},
        ),
        (
            {"model_type": "xlstm", "num_hidden_layers": 4, "num_blocks": 4},
            {"num_hidden_layers": 6, "num_blocks": 6},
        ),
        (
            {"model_type": "recurrent_gemma", "num_hidden_layers": 4, "block_types": ["r", "r", "a"]},
            {"block_types": ["r", "r", "a", "r", "a", "r"]},
        ),
        (
            {"model_type": "llama", "num_hidden_layers": 4}
            | {"quantization_config": {"quant_method": "awq", "modules_to_not_convert": ["model.layers.1.mlp"]}},
            {
                "quantization_config": {
                    "quant_method": "awq",
                    "modules_to_not_convert": ["model.layers.1.mlp", "model.layers.3.mlp"],
                }
            },
        ),
    ],
)
def test_fields_of_single_families(config, expected):
    upscaled = upscale_config(Decoder.of(config), PLAN)
    assert {key: upscaled[key] for key in expected} == expected


def test_residual_scale_of_every_layer_stays():
    config = {"model_type": "minicpm3", "num_hidden_layers": 4, "scale_depth": 1.4}
    assert upscale_config(Decoder.of(config), PLAN)["scale_depth"] == pytest.approx(1.4 * (6 / 4) ** 0.5)


def test_a_multimodal_model_keeps_its_other_parts():
    text = {"model_type": "gemma3_text", "num_hidden_layers": 4, "layer_types": ["x", "y", "x", "z"]}
    vision = {"num_hidden_layers": 4}
    upscaled = upscale_config(Decoder.of({"model_type": "gemma3", "text_config": text, "vision_config": vision}), PLAN)
    assert upscaled["text_config"] == text | {"num_hidden_layers": 6, "layer_types": ["x", "y", "x", "y", "x", "z"]}
    assert upscaled["vision_config"] == vision


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["a", "b"]}, "expected a list of 4, one per layer"),
        (
            {"some_new_field": [1, 2, 3, 4]},
            r"some_new_field \(\[1, 2, 3, 4\]\) has 4 entries, as many as the base has layers",
        ),
        ({"num_hidden_layers": 5}, "num_hidden_layers is 5, expected 4"),
        ({"quantization_config": {"quant_method": "mine"}}, "quant_method is 'mine'"),
        ({"model_type": "deepseek_v3", "first_k_dense_replace": "1"}, "first_k_dense_replace is '1'"),
        (
            {"model_type": "jamba", "attn_layer_period": 4, "attn_layer_offset": 1},
            "attn_layer_period and attn_layer_off",
        ),
        ({"model_type": "exaone4"}, "layer_types is absent.*save_pretrained"),
        (
            {"model_type": "gemma4_text", "layer_types": ["full_attention"] * 3 + ["full_attention"]}
            | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
            None,
        ),
    ],
)
def test_per_layer_fields_that_cannot_be_trusted(change, message):
    if message is None:
        upscale_config(Decoder.of(CONFIG | change), PLAN)
        plan = LayerPlan.from_sources(4, [0, 1, 2, 3, 2])
        with pytest.raises(CheckpointError, match="layer_types cannot express this plan: new layer 4"):
            upscale_config(Decoder.of(CONFIG | change), plan)
        return
    with pytest.raises(CheckpointError, match=message):
        upscale_config(Decoder.of(CONFIG | change), PLAN)


def test_identity_layers_of_untested_types_are_rejected_by_the_config_alone():
    plan = LayerPlan(2, (PlannedLayer(0), PlannedLayer(1), PlannedLayer(1, "identity")))
    config = {"model_type": "gemma2", "num_hidden_layers": 2}
    with pytest.raises(CheckpointError, match="identity and scaled layers are not tested for model_type 'gemma2'"):
        upscale_config(Decoder.of(config), plan)
    assert upscale_config(Decoder.of(config | {"model_type": "llama"}), plan)["num_hidden_layers"] == 3
