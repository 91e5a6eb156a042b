import pytest

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.quantization import (
    refuse_undeclared_integers,
    refuse_undeclared_quantization,
    reordered_quantizations,
)

PLAN = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])


def reordered(quantization, plan=PLAN):
    config = {"model_type": "llama", "num_hidden_layers": plan.base_layers, "quantization_config": quantization}
    return reordered_quantizations(Decoder.of(config), plan)["quantization_config"]


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
        (r"re:.*layers[.]1[.]mlp.*", [r"re:.*layers\.1\.mlp.*", r"re:.*layers\.3\.mlp.*"]),
        (r"re:.*\.layers\.[0-9]+\.mlp", [r"re:.*\.layers\.[0-9]+\.mlp"]),
        (r"re:.*experts\.0\..*", [r"re:.*experts\.0\..*"]),
        ("re:.*layers.1.*", ["re:.*layers.1.*", "re:.*layers.3.*"]),  # no layer 10 here
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
    with pytest.raises(CheckpointError, match="matches several layers"):
        reordered({"quant_method": "compressed-tensors", "ignore": [name]})


@pytest.mark.parametrize("pattern", [r"+:.*\.1\..*gate.*", r"-:.*\.(?:0|1)\..*", r"re:.*[.]2[.]mlp", r"re:^\d*.1\.x"])
def test_a_pattern_that_names_layers_by_number_alone_is_refused(pattern):
    """GPTQModel's `dynamic` has such keys: with more layers the numbers would mean other ones."""
    with pytest.raises(CheckpointError, match=r"by number only.*one entry per layer"):
        reordered({"quant_method": "gptq", "dynamic": {pattern: {"bits": 8}}})


def test_a_pattern_with_an_unescaped_dot_that_matches_other_layers_is_rejected():
    with pytest.raises(CheckpointError, match=r"other layers that start with 1; write 1\\."):
        reordered(
            {"quant_method": "compressed-tensors", "ignore": ["re:.*layers.1.*"]}, LayerPlan.from_sources(12, range(12))
        )


@pytest.mark.parametrize(
    "quantization", [{"quant_method": "new"}, {"quant_method": ["gptq"]}, {"bits": 4}, [4], "4bit"]
)
def test_unknown_methods_are_refused(quantization):
    with pytest.raises(CheckpointError, match=r"quant_method is .*unquantized base"):
        reordered(quantization)


def test_identity_layers_need_real_zeros():
    plan = LayerPlan(2, (PlannedLayer(0), PlannedLayer(1), PlannedLayer(1, "identity")))
    with pytest.raises(CheckpointError, match="identity layers, whose weights must be zero"):
        reordered({"quant_method": "gptq"}, plan)


LLAMA = {"model_type": "llama", "num_hidden_layers": 4}
IDENTITY = LayerPlan(4, (*(PlannedLayer(index) for index in range(4)), PlannedLayer(3, "identity")))
DECLARED = {
    "GPTQ's file": (LLAMA, {"quantize_config.json": {"bits": 4, "group_size": 128}}),
    "AWQ's file": (LLAMA, {"quant_config.json": {"w_bit": 4, "q_group_size": 128, "version": "GEMM"}}),
    "AWQ in AutoGPTQ's file": (LLAMA, {"quantize_config.json": {"quant_method": "awq", "bits": 4}}),
    "AutoRound's file": (LLAMA, {"quantization_config.json": {"quant_method": "gptq", "bits": 4}}),
    "old compressed-tensors": (LLAMA | {"compression_config": {"format": "pack-quantized"}}, {}),
    "bitsandbytes without a method": (LLAMA | {"quantization_config": {"load_in_4bit": True}}, {}),
    "beside the decoder of a composite": (
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text",
                "num_hidden_layers": 4,
                "layer_types": ["full_attention"] * 4,
                "quantization_config": {"quant_method": "fp8"},
            },
        },
        {},
    ),
}


def declared(of):
    config, side_files = of
    return Decoder.of(config, side_files=side_files)


@pytest.mark.parametrize("name", DECLARED)
def test_every_place_that_declares_a_quantization_has_the_same_rules(name):
    decoder = declared(DECLARED[name])
    assert list(reordered_quantizations(decoder, PLAN).values()) == list(decoder.quantizations.values())
    with pytest.raises(CheckpointError, match="the weights are quantized, but the plan has identity layers"):
        reordered_quantizations(decoder, IDENTITY)


@pytest.mark.parametrize(
    ("config", "side_files", "message"),
    [
        (LLAMA, {"hf_quant_config.json": {"producer": {"name": "modelopt"}}}, "hf_quant_config.json: .*'modelopt'"),
        (LLAMA, {"quantization_config.json": {"bits": 4}}, "quantization_config.json: .*None"),
        (LLAMA | {"quantization": {"group_size": 64, "bits": 4}}, {}, "config.json: quantization: .*None"),
    ],
)
def test_methods_that_are_not_known_are_refused_wherever_they_are_declared(config, side_files, message):
    with pytest.raises(CheckpointError, match=message):
        reordered_quantizations(declared((config, side_files)), PLAN)


def test_undeclared_integer_weights_are_rejected():
    dtypes = {"model.layers.0.attn.bias": "U8", "model.norm.weight": "F32", "model.layers.0.mlp.up_proj.weight": "I8"}
    with pytest.raises(CheckpointError, match=r"mlp.up_proj.weight' has the dtype I8"):
        refuse_undeclared_integers(dtypes, Decoder.of(LLAMA))
    refuse_undeclared_integers(dtypes, declared(DECLARED["GPTQ's file"]))
    refuse_undeclared_integers(dict.fromkeys(dtypes, "BF16"), Decoder.of(LLAMA))


QUANTIZED = {
    "GPTQ and AWQ": "qweight qzeros scales g_idx",
    "bitsandbytes": "weight.absmax weight.quant_map weight.quant_state.bitsandbytes__nf4 weight.nested_absmax SCB",
    "compressed-tensors": "weight_packed weight_scale weight_shape weight_zero_point weight_g_idx",
    "FP8 and ModelOpt": "weight_scale_inv weight_scale_2 input_scale",
    "HQQ": "W_q",
    "EXL2 and EXL3": "q_groups q_invperm trellis suh svh",
    "AQLM": "codes codebooks",
    "QuIP#": "Qidxs",
    "VPTQ": "centroids",
    "quanto": "weight._data weight._scale output_scale",
    "torchao": "weight:qdata weight:scale",
    "MLX": "scales biases",
    "EETQ": "weight_scales",
    "MXFP4": "gate_up_proj_blocks gate_up_proj_scales",
}


@pytest.mark.parametrize("method", QUANTIZED)
def test_quantized_weights_that_nothing_declares_are_refused(method):
    for name in QUANTIZED[method].split():
        names = ["model.layers.0.mlp.up_proj.weight", f"model.layers.0.mlp.up_proj.{name}"]
        with pytest.raises(CheckpointError, match=r"part of a quantized weight, but config.json has no quant"):
            refuse_undeclared_quantization(names, Decoder.of(LLAMA))
        refuse_undeclared_quantization(names, declared(DECLARED["GPTQ's file"]))
