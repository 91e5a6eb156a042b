import inspect
import re

import pytest

from solar_plugins.upscaling.architectures.table import ARCHITECTURES, COMPOSITES, POSITIONAL_KEYS, REFUSED

POSITIONAL_WORDS = re.compile(
    r"layer|block_type|period|interval|freq|pattern|_step|idx|indices|offset|replace|every|per_"
)
NOT_POSITIONAL = re.compile(
    r"layer_?norm|layer_scale|layerdrop|num_experts_per_tok|qk_layernorm|time_step|residual|layer_norm_eps|"
    r"_pre_layer|num_hidden_layers|^n_layers?$|^num_layers$|decoder_layers|encoder_layers|num_ln_layer|"
    r"use_cache|per_layer_config|num_nextn_predict_layers|num_mtp_layers"
)


def test_no_type_is_both_supported_and_refused():
    assert not set(ARCHITECTURES) & set(REFUSED)
    assert not set(COMPOSITES) & (set(ARCHITECTURES) | set(REFUSED))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_config_key_that_sounds_positional_is_known(model_type):
    """A new key of a new transformers release must be looked at before the type is trusted again."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    row = ARCHITECTURES[model_type]
    known = {word for field in row.fields for word in re.findall(r"\w+", field.key)}
    known |= {row.depth_key, *row.more_depth_keys, *row.must_be_unset, "layer_types"}
    keys = {key for key in CONFIG_MAPPING[model_type]().to_dict() if POSITIONAL_WORDS.search(key)}
    odd = {key for key in keys - known - POSITIONAL_KEYS if not NOT_POSITIONAL.search(key)}
    assert odd <= LOOKED_AT.get(model_type, set()), f"classify {sorted(odd)}"


LEGACY_KEY = re.compile(r"""kwargs(?:\.pop|\.get|\.setdefault)?[(\[]"(\w+)"|"(\w+)" in kwargs""")
LEGACY = {
    "axk1": {"moe_layer_freq"},  # a config must have the lists that decide; stating the type again changes nothing
    "axk2": {"moe_layer_freq"},
    "glm_moe_dsa": {"index_skip_topk_offset", "index_topk_freq", "index_topk_pattern"},
    "inkling_text": {"dense_mlp_idx"},
    "minimax_m3_vl_text": {"moe_layer_freq", "sparse_attention_config"},
    "modernbert-decoder": {"global_attn_every_n_layers"},
    "cohere_compass_text": {"sliding_window_pattern"},
    "deepseek_v4": {"compress_ratios", "num_hash_layers"},
    "nemotron_h": {"mtp_hybrid_override_pattern"},
    "qwen4_exp_text": {"full_attention_interval"},
}
OF_NO_LAYER = re.compile(
    r"rope|rotary|^n_embed$|mambapy|tie_embedding|block_ff_dim|^mamba_|^num_experts$|compress_rate_|sliding_window_size|"
    r"dense_intermediate_size|global_head_dim|num_global_key_value_heads"
)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_key_that_only_old_configs_have_is_known(model_type):
    """A config class reads such keys in its `__post_init__`; they are no attributes of it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    parts = [part for part in CONFIG_MAPPING[model_type].__mro__ if part.__module__.startswith("transformers.models.")]
    found = LEGACY_KEY.findall("".join(map(inspect.getsource, parts)))
    row = ARCHITECTURES[model_type]
    known = {word for field in row.fields for word in (*re.findall(r"\w+", field.key), *field.reads)}
    odd = {key for pair in found for key in pair if key and not OF_NO_LAYER.search(key)} - known
    assert odd - {"layer_types", "per_layer_config"} == LEGACY.get(model_type, set()), "classify"


LISTS_DECIDE = {
    "afmoe": {"global_attn_every_n_layers"},
    "bailing_hybrid": {"layer_group_size"},
    "cohere2_moe": {"prefix_dense_sliding_window_pattern"},
    "gemma3_text": {"_sliding_window_pattern"},
}
OF_PREDICTION_LAYERS = {
    "inkling_text": {"mtp_local_layer_ids"},
    "mellum": {"mtp_layer_types", "mtp_mlp_layer_types"},
    "nemotron_h": {"mtp_layers_block_type"},
}
LOOKED_AT: dict[str, set[str]] = {
    **LISTS_DECIDE,
    **OF_PREDICTION_LAYERS,
    "gemma4_text": {"vocab_size_per_layer_input"},  # unused where hidden_size_per_layer_input is 0
    "qwen4_exp_text": {"heads_per_ngram"},
    "rwkv": {"rescale_every"},  # numerics only: what is halved below is doubled above
}
