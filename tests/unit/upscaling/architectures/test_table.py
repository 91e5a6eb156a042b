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
