"""What we derive where a config is silent must be what transformers' own config classes derive."""

import pytest

from solar_plugins.upscaling.architectures.table import ARCHITECTURES

DEFAULTS = [
    ("gemma2", {}),
    ("vaultgemma", {}),
    ("gpt_oss", {}),
    ("gemma3_text", {}),
    ("gemma3_text", {"sliding_window_pattern": 3}),
    ("cohere2", {}),
    ("cohere2", {"sliding_window_pattern": 5}),
    ("olmo3", {}),
    ("ministral", {}),
    ("ministral", {"sliding_window": None}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 5}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 5}),
    ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 5}),
    ("dots1", {"sliding_window": 9, "max_window_layers": 5}),
    ("smollm3", {}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 9, "no_rope_layer_interval": 3}),
    ("qwen3_next", {}),
    ("qwen3_next", {"full_attention_interval": 3}),
    ("qwen3_5_text", {}),
    ("qwen3_5_moe_text", {}),
    ("afmoe", {}),
    ("afmoe", {"global_attn_every_n_layers": 3}),
    ("llama4_text", {}),
    ("llama4_text", {"no_rope_layers": []}),
    ("lfm2", {}),
    ("lfm2", {"full_attn_idxs": [1, 4]}),
]


@pytest.mark.parametrize(("model_type", "said"), DEFAULTS)
@pytest.mark.parametrize("depth", [9, 14])
def test_configs_without_optional_keys_are_read_as_transformers_reads_them(model_type, said, depth):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type == "ministral" and not said:
        said = {"sliding_window": 4096}
    theirs = CONFIG_MAPPING[model_type](**said, num_hidden_layers=depth)
    raw = {"model_type": model_type, "num_hidden_layers": depth, **said}
    if "sliding_window" not in raw:
        raw["sliding_window"] = getattr(theirs, "sliding_window", None)
    fields = [field for field in ARCHITECTURES[model_type].fields if field.key in ("layer_types", "no_rope_layers")]
    assert fields
    for field in fields:
        assert list(field.read(raw, depth)) == list(getattr(theirs, field.key)), field.key
