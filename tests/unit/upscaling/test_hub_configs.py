"""Configs as published models have them, also in older spellings: transformers must read the deeper one as planned.

Only the keys that say something about layers are kept. transformers' own config class reads each, before and after.
"""

import pytest

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.table import ARCHITECTURES
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.upscaled_config import upscale_config

LFM2 = ["conv", "conv", "full_attention"] * 3 + ["conv", "full_attention"] * 3 + ["conv"]
PUBLISHED = {
    "mistral-7b": {"model_type": "mistral", "num_hidden_layers": 32, "sliding_window": 4096},
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "num_hidden_layers": 28,
        "max_window_layers": 28,
        "sliding_window": 131072,
        "use_sliding_window": False,
    },
    "qwen1.5-0.5b": {
        "model_type": "qwen2",
        "num_hidden_layers": 24,
        "max_window_layers": 21,
        "sliding_window": 32768,
        "use_sliding_window": False,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 48,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
    },
    "qwen3-next-80b": {"model_type": "qwen3_next", "num_hidden_layers": 48, "full_attention_interval": 4},
    "gemma-2-9b": {"model_type": "gemma2", "num_hidden_layers": 42, "sliding_window": 4096},
    "gemma-3-1b": {"model_type": "gemma3_text", "num_hidden_layers": 26, "sliding_window_pattern": 6},
    "command-r7b": {"model_type": "cohere2", "num_hidden_layers": 32, "sliding_window_pattern": 4, "layer_switch": 4},
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 24,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
        },
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 61,
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
        "num_nextn_predict_layers": 1,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    },
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2",
        "num_hidden_layers": 27,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
    },
    "glm-4.5-air": {
        "model_type": "glm4_moe",
        "num_hidden_layers": 46,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 1,
    },
    "jamba-v0.1": {
        "model_type": "jamba",
        "num_hidden_layers": 32,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "bamba-9b": {"model_type": "bamba", "num_hidden_layers": 32, "attn_layer_indices": [9, 18, 27]},
    "lfm2-1.2b": {"model_type": "lfm2", "num_hidden_layers": 16, "layer_types": LFM2},
    "lfm2, older": {"model_type": "lfm2", "num_hidden_layers": 16, "full_attn_idxs": [2, 5, 8, 10, 12, 14]},
    "smollm3-3b": {
        "model_type": "smollm3",
        "num_hidden_layers": 36,
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9,
        "layer_types": ["full_attention"] * 36,
    },
    "olmo-3-7b": {
        "model_type": "olmo3",
        "num_hidden_layers": 32,
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
    },
    "exaone-4-32b": {
        "model_type": "exaone4",
        "num_hidden_layers": 64,
        "sliding_window": 4096,
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16,
    },
    "llama-4-scout, its text": {"model_type": "llama4_text", "num_hidden_layers": 48, "no_rope_layers": []},
    "gpt-neo-1.3b": {
        "model_type": "gpt_neo",
        "num_layers": 24,
        "attention_types": [[["global", "local"], 12]],
        "attention_layers": ["global", "local"] * 12,
    },
    "recurrentgemma-2b": {
        "model_type": "recurrent_gemma",
        "num_hidden_layers": 26,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "ernie-4.5-21b": {
        "model_type": "ernie4_5_moe",
        "num_hidden_layers": 28,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
    },
    "minimax-m2": {"model_type": "minimax_m2", "num_hidden_layers": 62, "attn_type_list": [1] * 62},
    "mimo-v2-flash": {
        "model_type": "mimo_v2_flash",
        "num_hidden_layers": 48,
        "hybrid_layer_pattern": [int(i != 0 and (i + 1) % 6 != 0) for i in range(48)],
        "moe_layer_freq": [0] + [1] * 47,
        "attention_chunk_size": 128,
    },
    "k-exaone-236b, older": {
        "model_type": "exaone_moe",
        "num_hidden_layers": 48,
        "first_k_dense_replace": 1,
        "is_moe_layer": [False] + [True] * 47,
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 12,
    },
    "kimi-linear-48b": {
        "model_type": "kimi_linear",
        "num_hidden_layers": 27,
        "first_k_dense_replace": 1,
        "linear_attn_config": {
            "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
            "kda_layers": [i for i in range(1, 27) if i % 4],
            "head_dim": 128,
        },
        "moe_layer_freq": 1,
    },
    "hunyuan-a13b": {
        "model_type": "hunyuan_v1_moe",
        "num_hidden_layers": 32,
        "moe_topk": [8] * 32,
        "moe_intermediate_size": [3072] * 32,
        "num_shared_expert": [1] * 32,
        "use_cla": False,
        "cla_share_factor": 2,
    },
    "gpt2": {"model_type": "gpt2", "n_layer": 12},
    "falcon-7b": {"model_type": "falcon", "num_hidden_layers": 32},
}


def read(config):
    """The per-layer lists and the other values that transformers' own class takes from a config."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    plain = {key: value for key, value in config.items() if key not in ("model_type", "quantization_config")}
    return CONFIG_MAPPING[config["model_type"]](**plain).to_dict()


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("drop", [4, 8])
def test_transformers_reads_the_deeper_config_as_the_plan_says(name, drop):
    raw = PUBLISHED[name]
    depth = Decoder.of(raw).num_layers
    if 2 * drop >= depth:
        drop = 2
    plan = LayerPlan.from_sources(depth, [*range(depth - drop), *range(drop, depth)])
    before = read(raw)
    after = read(upscale_config(Decoder.of(raw), plan))
    lists = {key for key, value in before.items() if isinstance(value, list) and len(value) == depth}
    for key in lists - {"attention_types", "moe_layers"}:  # these say the layers in another way
        assert after[key] == [before[key][source] for source in plan.sources], key
    followed = lists | {
        "num_hidden_layers",
        "num_layers",
        "n_layer",
        "attention_types",
        "block_types",
        "full_attn_idxs",
    }
    followed |= {"max_window_layers", "moe_layer_end_index", "attn_layer_indices", "moe_layers", "per_layer_config"}
    followed |= {"linear_attn_config"}
    followed |= {"final_w_init_variance_scale"}  # for new random weights only
    assert {key for key in before if before[key] != after[key]} <= followed


def test_lists_for_other_engines_stay_correct():
    """transformers reads layer_types where it is there; vLLM reads these."""
    plan = LayerPlan.from_sources(27, [*range(20), *range(7, 27)])
    kimi = upscale_config(Decoder.of(PUBLISHED["kimi-linear-48b"]), plan)
    full = [4, 8, 12, 16, 20, 21, 25, 29, 33, 37, 40]
    assert kimi["linear_attn_config"]["full_attn_layers"] == full
    assert kimi["linear_attn_config"]["kda_layers"] == [i for i in range(1, 41) if i not in full]
    assert kimi["linear_attn_config"]["head_dim"] == 128
    assert [i for i, kind in enumerate(kimi["layer_types"], 1) if kind == "full_attention"] == full


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("minimax-m2", {"attn_type_list": [1, 0] * 31}, "attn_type_list is .*transformers ignores it"),
        ("minimax-m2", {"attn_type_list": [1] * 61}, "attn_type_list is"),
        ("mimo-v2-flash", {"hybrid_layer_pattern": [0, 1] * 24}, "layer_types .which is absent, so its default"),
        ("mimo-v2-flash", {"moe_layer_freq": [0, 0] + [1] * 46}, "Set mlp_layer_types to what the model was trained"),
        ("k-exaone-236b, older", {"first_k_dense_replace": 2}, "is_moe_layer is"),
        ("kimi-linear-48b", {"layer_types": ["linear_attention"] * 27}, "linear_attn_config and layer_types describe"),
        ("hunyuan-a13b", {"use_cla": True}, "use_cla is True, which is not supported"),
    ],
)
def test_lists_that_transformers_does_not_read_must_agree_with_what_it_reads(name, change, message):
    config = PUBLISHED[name] | change
    depth = config["num_hidden_layers"]
    with pytest.raises(CheckpointError, match=message):
        upscale_config(Decoder.of(config), LayerPlan.from_sources(depth, range(depth)))


def test_fields_that_are_not_lists_are_correct():
    def deeper(name, drop):
        raw = PUBLISHED[name]
        depth = Decoder.of(raw).num_layers
        return upscale_config(
            Decoder.of(raw), LayerPlan.from_sources(depth, [*range(depth - drop), *range(drop, depth)])
        )

    assert deeper("qwen2.5-7b", 7)["max_window_layers"] == 42
    assert deeper("qwen1.5-0.5b", 6)["max_window_layers"] == 33
    assert deeper("deepseek-v3", 8)["first_k_dense_replace"] == 3
    assert deeper("deepseek-v3", 8)["num_nextn_predict_layers"] == 1
    assert deeper("gpt-oss-20b", 6)["quantization_config"] == PUBLISHED["gpt-oss-20b"]["quantization_config"]
    assert deeper("bamba-9b", 8)["attn_layer_indices"] == [9, 18, 25, 34, 43]
    assert deeper("ernie-4.5-21b", 7)["moe_layer_end_index"] == 41


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_config_with_only_a_depth_is_read_correctly_or_rejected(model_type):
    """What transformers derives from the depth alone must not change for any layer."""
    row = ARCHITECTURES[model_type]
    raw = {"model_type": model_type, row.depth_key: 12, **{key: 12 for key in row.more_depth_keys if key[0] == "n"}}
    sources = [*range(9), *range(4, 12)]
    try:
        upscaled = upscale_config(Decoder.of(raw), LayerPlan.from_sources(12, sources))
        before = read(raw)
    except (CheckpointError, ValueError):
        return  # refused by us, or no config by itself
    after = read(upscaled)
    numbered = {"moe_layers", "full_attn_idxs", "mlp_only_layers", "attn_layer_indices"}
    for key, value in before.items():
        if key in numbered and value:
            assert after[key] == [new for new, source in enumerate(sources) if source in value], key
        elif isinstance(value, list) and len(value) == 12:
            assert after[key] == [value[source] for source in sources], key
