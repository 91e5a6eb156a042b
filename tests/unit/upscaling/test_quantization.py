import pytest

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.quantization import reordered_quantization

PLAN = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])


def reordered(quantization, plan=PLAN):
    config = {"model_type": "llama", "num_hidden_layers": plan.base_layers, "quantization_config": quantization}
    return reordered_quantization(Decoder.of(config), plan)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lm_head", ["lm_head"]),
        ("model.layers.1.mlp.gate", ["model.layers.1.mlp.gate", "model.layers.3.mlp.gate"]),
        ("model.layers.3", ["model.layers.5"]),
        ("layers.2.self_attn", ["layers.2.self_attn", "layers.4.self_attn"]),
        ("model.layers.10.mlp", ["model.layers.12.mlp"]),  # a prediction layer, six past the last of four
        (r"re:.*layers\.1\.mlp.*", [r"re:.*layers\.1\.mlp.*", r"re:.*layers\.3\.mlp.*"]),
        (r"re:.*\.layers\.\d+\.mlp", [r"re:.*\.layers\.\d+\.mlp"]),
        ("model.layers.*.mlp", ["model.layers.*.mlp"]),
        ("visual.blocks.1.mlp", ["visual.blocks.1.mlp"]),
        ("vision_tower.encoder.layers.1.mlp", ["vision_tower.encoder.layers.1.mlp"]),
        (r"re:.*vision_tower\.layers\.1\.mlp", [r"re:.*vision_tower\.layers\.1\.mlp"]),
        ("mtp.layers.1.mlp", ["mtp.layers.1.mlp"]),
    ],
)
def test_exclusion_lists_follow_the_plan(name, expected):
    quantization = {"quant_method": "fp8", "modules_to_not_convert": [name], "bits": 8}
    assert reordered(quantization) == {"quant_method": "fp8", "modules_to_not_convert": expected, "bits": 8}


def test_keys_and_nested_lists_follow_too():
    quantization = {"dynamic": {"model.layers.1.mlp": {"bits": 8}}, "groups": [{"targets": ["model.layers.2"]}]}
    assert reordered({"quant_method": "gptq"} | quantization) == {
        "quant_method": "gptq",
        "dynamic": {"model.layers.1.mlp": {"bits": 8}, "model.layers.3.mlp": {"bits": 8}},
        "groups": [{"targets": ["model.layers.2", "model.layers.4"]}],
    }


@pytest.mark.parametrize("name", [r"re:.*layers\.[0-3]\.mlp", r"model.layers.(1|2).mlp"])
def test_a_pattern_over_several_layers_is_refused(name):
    with pytest.raises(CheckpointError, match="several layers in one pattern"):
        reordered({"quant_method": "compressed-tensors", "ignore": [name]})


@pytest.mark.parametrize(
    "quantization", [{"quant_method": "new"}, {"quant_method": ["gptq"]}, {"bits": 4}, [4], "4bit"]
)
def test_unknown_methods_are_refused(quantization):
    with pytest.raises(CheckpointError, match=r"quant_method is .*unquantised base"):
        reordered(quantization)


def test_identity_layers_need_real_zeros():
    plan = LayerPlan(2, (PlannedLayer(0), PlannedLayer(1), PlannedLayer(1, "identity")))
    with pytest.raises(CheckpointError, match="identity layers, whose weights must be zero"):
        reordered({"quant_method": "gptq"}, plan)
