import pytest

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architecture import base_depth, tensor_copies, upscale_config
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer

CONFIG = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 32}
NAMES = [
    "lm_head.weight",
    "model.embed_tokens.weight",
    *(
        f"model.layers.{i}.{part}"
        for i in range(4)
        for part in ("mlp.down_proj.weight", "self_attn.o_proj.weight", "self_attn.q_proj.weight")
    ),
    "model.norm.weight",
]
PLAN = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])


def test_tensors_follow_the_plan():
    copies = {copy.name: copy for copy in tensor_copies(NAMES, CONFIG, PLAN)}
    assert len(copies) == 3 + 6 * 3
    assert copies["lm_head.weight"].source == "lm_head.weight"
    assert copies["model.layers.3.self_attn.q_proj.weight"].source == "model.layers.1.self_attn.q_proj.weight"
    assert copies["model.layers.5.mlp.down_proj.weight"].source == "model.layers.3.mlp.down_proj.weight"
    assert not any(copy.zeroed for copy in copies.values())


def test_identity_zeroes_what_writes_to_the_residual_stream_and_nothing_else():
    plan = LayerPlan(4, (*(PlannedLayer(i) for i in range(4)), PlannedLayer(3, "identity")))
    zeroed = [copy.name for copy in tensor_copies(NAMES, CONFIG, plan) if copy.zeroed]
    assert zeroed == ["model.layers.4.mlp.down_proj.weight", "model.layers.4.self_attn.o_proj.weight"]


def test_identity_needs_the_tensors_that_it_zeroes():
    names = [name for name in NAMES if "o_proj" not in name]
    with pytest.raises(CheckpointError, match=r"layer 3 has no self_attn.o_proj.weight"):
        tensor_copies(names, CONFIG, LayerPlan(4, (PlannedLayer(3, "identity"),)))


def test_config_gets_the_new_depth_and_per_layer_lists_follow_the_plan():
    config = CONFIG | {"layer_types": ["a", "b", "c", "d"]}
    upscaled = upscale_config(config, PLAN)
    assert upscaled["num_hidden_layers"] == 6
    assert upscaled["layer_types"] == ["a", "b", "c", "b", "c", "d"]
    assert config["layer_types"] == ["a", "b", "c", "d"], "the base's config is left alone"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "gemma3"},
            "model_type 'gemma3' is not supported; depth up-scaling is tested for llama, mistral",
        ),
        ({"model_type": None}, "model_type None is not supported"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers is '4'; expected the number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000; expected the number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map names code"),
        ({"quantization_config": {"bits": 4}}, "the weights are quantised"),
    ],
)
def test_configs_that_are_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        base_depth(CONFIG | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["a", "b"]}, "expected a list of 4, one a layer"),
        ({"some_new_field": [1, 2, 3, 4]}, "some_new_field has 4 entries, as many as the base has layers"),
        ({"num_hidden_layers": 5}, "num_hidden_layers is 5, the plan is for 4"),
    ],
)
def test_per_layer_fields_that_cannot_be_trusted(change, message):
    with pytest.raises(CheckpointError, match=message):
        upscale_config(CONFIG | change, PLAN)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([*NAMES, "model.layers.4.mlp.up_proj.weight"], "belongs to layer 4, but the config says num_hidden_layers: 4"),
        ([name for name in NAMES if ".layers.2." not in name], "layer 2 .* it has none"),
        ([name for name in NAMES if name != "model.layers.2.self_attn.q_proj.weight"], "differ in self_attn.q_proj"),
        ([name.removeprefix("model.") for name in NAMES], "layer 0 .* it has none"),
    ],
)
def test_names_that_do_not_fit_the_config(names, message):
    with pytest.raises(CheckpointError, match=message):
        tensor_copies(names, CONFIG, PLAN)
