"""A config may say its depth, and what its layers are, under several names. transformers' classes say which."""

from functools import cache

import pytest
from huggingface_hub.errors import StrictDataclassError
from tiny_decoders import NUM_LAYERS, tiny_config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.table import ARCHITECTURES, COMPOSITES
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.upscaled_config import upscale_config

PLAN = LayerPlan.from_sources(NUM_LAYERS, [*range(6), *range(3, 9)])

WHOLE_MODEL = {
    *[
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "num_attention_heads",
        "head_dim",
        "n_token",
        "sliding_window",
    ],
    *["max_position_embeddings", "model_max_length", "embedding_multiplier", "sconv_kernel_size"],
    *["num_experts", "num_local_experts", "num_experts_per_tok", "n_shared_experts", "n_group", "norm_topk_prob"],
    *["image_token_id", "boi_token_id", "eoi_token_id", "num_mtp_layers"],
}
"""Aliases of what is said once for the whole model, or of the prediction layers: no plan changes them."""

READ_ONLY = {
    *["rotary", "qk_dim", "v_dim", "qk_head_dim", "v_head_dim", "logits_scaling", "layer_types", "layers_block_type"],
    *["layers_num_experts", "hybrid_override_pattern", "mtp_hybrid_override_pattern", "mtp_layer_types"],
    *["mtp_mlp_layer_types", "head_dim"],
}
"""Properties without a setter: no config.json can set them (nemotron_h takes the pattern, which its row has)."""


def aliases(model_type):
    """The other names that a config class translates, by its map or a property's setter."""
    config_class = CONFIG_MAPPING[model_type]
    yield from getattr(config_class, "attribute_map", {})
    for part in config_class.__mro__:
        if part.__module__.startswith("transformers.models."):
            yield from (name for name, value in vars(part).items() if isinstance(value, property))


def is_read_only(model_type, name):
    name = CONFIG_MAPPING[model_type].attribute_map.get(name, name)
    value = getattr(CONFIG_MAPPING[model_type], name, None)
    return isinstance(value, property) and value.fset is None


@pytest.mark.parametrize("model_type", [*ARCHITECTURES, *COMPOSITES])
def test_every_alias_is_classified(model_type):
    row = ARCHITECTURES.get(model_type)
    followed = {row.depth_key, *(spelling.name for spelling in row.spellings)} if row else set()
    for name in aliases(model_type):
        if is_read_only(model_type, name):
            assert name in READ_ONLY, f"{model_type}: can a config.json set {name}? Classify it"
        else:
            assert name in followed | WHOLE_MODEL, f"{model_type}: does {name} follow the plan? Classify it"


GUESSES = [
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "decoder_layers",
    "num_decoder_layers",
    "depth",
    "num_blocks",
]


def depth_read(model_type, config):
    """The depth that transformers reads, in our layers; None where it cannot read the config."""
    try:
        loaded = CONFIG_MAPPING[model_type](**{key: value for key, value in config.items() if key != "model_type"})
    except (StrictDataclassError, ValueError):
        return None
    return loaded.num_hidden_layers // (2 if model_type == "longcat_flash" else 1)


@cache
def spelled(model_type):
    """A tiny config without any name for its depth, and the names that the class takes, each with its value for 9."""
    raw = tiny_config(model_type).to_dict()
    config = {key: value for key, value in raw.items() if key not in GUESSES}
    silent = depth_read(model_type, config)
    read = {name: depth_read(model_type, config | {name: NUM_LAYERS}) for name in GUESSES}
    return config, {name: 9 * (9 // depth) for name, depth in read.items() if depth not in (None, silent)}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_name_that_transformers_takes_for_the_depth_will_do_alone_and_all_are_written(model_type):
    config, names = spelled(model_type)
    for given in [*({name: value} for name, value in names.items()), names]:
        if not given:
            continue
        decoder = Decoder.of(config | given)
        assert decoder.num_layers == NUM_LAYERS
        deeper = upscale_config(decoder, PLAN)
        assert {name: deeper[name] for name in given} == {name: v // 9 * 12 for name, v in given.items()}
        assert depth_read(model_type, deeper) == 12


SEVERAL = [
    "bloom",
    "codegen",
    "ctrl",
    "dbrx",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gptj",
    "longcat_flash",
    "mpt",
    "openai-gpt",
    "trocr",
    "xglm",
    "xlnet",
]


@pytest.mark.parametrize("model_type", SEVERAL)
def test_names_that_disagree_are_refused(model_type):
    config, names = spelled(model_type)
    *others, last = names
    assert others, "the test of all types above has nothing to read here"
    with pytest.raises(CheckpointError, match=r"is ambiguous: .*make these keys agree"):
        Decoder.of(config | {name: names[name] for name in others} | {last: names[last] // 9 * 7})


def test_gpt_neo_depth_under_either_name():
    kinds = {"attention_types": [[["global", "local"], 4], [["global"], 1]]}
    for given in ({"num_layers": 9}, {"num_hidden_layers": 9}, {"num_layers": 9, "num_hidden_layers": 9}):
        deeper = upscale_config(Decoder.of({"model_type": "gpt_neo", **kinds, **given}), PLAN)
        assert [deeper[name] for name in given] == [12] * len(given)
        assert depth_read("gpt_neo", deeper) == 12
    with pytest.raises(CheckpointError, match="num_hidden_layers is 7, another name for num_layers, which is 9"):
        Decoder.of({"model_type": "gpt_neo", "num_layers": 9, "num_hidden_layers": 7})


def test_a_null_depth_is_ignored_but_updated():
    deeper = upscale_config(Decoder.of({"model_type": "gpt2", "n_layer": 9, "num_hidden_layers": None}), PLAN)
    assert deeper["n_layer"] == deeper["num_hidden_layers"] == 12


def test_a_depth_repeated_next_to_the_text_config_is_updated():
    text = {"model_type": "gemma3_text", "num_hidden_layers": 9}
    deeper = upscale_config(Decoder.of({"model_type": "gemma3", "num_hidden_layers": 9, "text_config": text}), PLAN)
    assert deeper["num_hidden_layers"] == deeper["text_config"]["num_hidden_layers"] == 12


@pytest.mark.parametrize(
    ("model_type", "alias", "key", "kinds"),
    [
        ("granitemoehybrid", "layers_block_type", "layer_types", ["mamba", "mamba", "attention"] * 3),
        ("nemotron_h", "layer_types", "layers_block_type", ["mamba", "moe", "attention"] * 3),
    ],
)
def test_lists_of_layers_under_another_name(model_type, alias, key, kinds):
    config = {"model_type": model_type, "num_hidden_layers": 9}
    expected = [kinds[source] for source in PLAN.sources]
    for given in ({alias: kinds}, {key: kinds}, {alias: kinds, key: kinds}):
        deeper = upscale_config(Decoder.of(config | given), PLAN)
        assert all(deeper[name] == expected for name in given)
    with pytest.raises(CheckpointError, match="make these keys agree"):
        Decoder.of(config | {alias: kinds, key: kinds[::-1]})


NEMOTRON = {"model_type": "nemotron_h", "num_hidden_layers": 9}


def test_nemotron_lists_its_layers_in_two_notations():
    pattern, names = "ME*-ME*-M", ["linear_attention", "moe", "full_attention", "mlp"] * 2 + ["linear_attention"]
    deeper = upscale_config(Decoder.of(NEMOTRON | {"hybrid_override_pattern": pattern, "layer_types": names}), PLAN)
    assert deeper["hybrid_override_pattern"] == "".join(pattern[source] for source in PLAN.sources)
    loaded = CONFIG_MAPPING["nemotron_h"](**deeper)
    assert loaded.layers_block_type == [names[source] for source in PLAN.sources]
    assert loaded.num_hidden_layers == 12
    for change in ({"hybrid_override_pattern": "M" * 9, "layer_types": names}, {}):
        with pytest.raises(CheckpointError, match=r"hybrid_override_pattern: .*expected the type of each layer"):
            upscale_config(Decoder.of(NEMOTRON | change), PLAN)
