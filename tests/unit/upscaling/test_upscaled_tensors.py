import pytest

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.upscaled_tensors import layer_tensors, tensor_copies

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
    copies = {copy.name: copy for copy in tensor_copies(NAMES, Decoder.of(CONFIG), PLAN)}
    assert len(copies) == 3 + 6 * 3
    assert copies["lm_head.weight"].source == "lm_head.weight"
    assert copies["model.layers.3.self_attn.q_proj.weight"].source == "model.layers.1.self_attn.q_proj.weight"
    assert copies["model.layers.5.mlp.down_proj.weight"].source == "model.layers.3.mlp.down_proj.weight"
    assert not any(copy.start for copy in copies.values())


def test_identity_zeroes_what_writes_to_the_residual_stream_and_nothing_else():
    plan = LayerPlan(4, (*(PlannedLayer(i) for i in range(4)), PlannedLayer(3, "identity")))
    zeroed = [copy.name for copy in tensor_copies(NAMES, Decoder.of(CONFIG), plan) if copy.start == "zero"]
    assert zeroed == ["model.layers.4.mlp.down_proj.weight", "model.layers.4.self_attn.o_proj.weight"]


def test_identity_needs_the_tensors_that_it_zeroes():
    names = [name for name in NAMES if "o_proj" not in name]
    with pytest.raises(CheckpointError, match=r"layer 3 has no self_attn.o_proj.weight"):
        tensor_copies(names, Decoder.of(CONFIG), LayerPlan(4, (PlannedLayer(3, "identity"),)))


def test_identity_layers_are_rejected_for_untested_types():
    with pytest.raises(CheckpointError, match="identity and scaled layers are not tested for model_type 'olmo2'"):
        tensor_copies(NAMES, Decoder.of(CONFIG | {"model_type": "olmo2"}), LayerPlan(4, (PlannedLayer(3, "identity"),)))


def test_checkpoints_whose_names_lack_the_prefix():
    def change(name):
        return name.removeprefix("model.")

    names = [change(name) for name in NAMES]
    copies = {copy.name: copy.source for copy in tensor_copies(names, Decoder.of(CONFIG), PLAN)}
    assert len(copies) == 3 + 6 * 3
    assert copies[change("model.layers.4.mlp.down_proj.weight")] == change("model.layers.2.mlp.down_proj.weight")


def test_prediction_layers_stay_behind_the_last_layer():
    names = [*NAMES, "model.layers.4.eh_proj.weight", "model.layers.5.eh_proj.weight"]
    copies = {
        copy.name: copy.source
        for copy in tensor_copies(names, Decoder.of(CONFIG | {"num_nextn_predict_layers": 2}), PLAN)
    }
    assert copies["model.layers.6.eh_proj.weight"] == "model.layers.4.eh_proj.weight"
    assert copies["model.layers.7.eh_proj.weight"] == "model.layers.5.eh_proj.weight"
    assert len(copies) == 3 + 6 * 3 + 2


def test_layers_of_different_kinds_may_hold_different_tensors():
    config = {"model_type": "qwen3_moe", "num_hidden_layers": 4, "mlp_only_layers": [0]}
    names = [
        *NAMES,
        *(f"model.layers.{i}.mlp.experts.{e}.up_proj.weight" for i in (1, 2, 3) for e in range(2)),
    ]
    copies = {copy.name: copy.source for copy in tensor_copies(names, Decoder.of(config), PLAN)}
    assert copies["model.layers.3.mlp.experts.1.up_proj.weight"] == "model.layers.1.mlp.experts.1.up_proj.weight"
    incomplete = [name for name in names if name != "model.layers.2.mlp.experts.1.up_proj.weight"]
    with pytest.raises(CheckpointError, match="layer 2 does not have the same tensors as layer 1"):
        tensor_copies(incomplete, Decoder.of(config), PLAN)


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("gptq", ["qweight", "qzeros", "scales", "g_idx"]),
        ("awq", ["qweight", "qzeros", "scales"]),
        ("fp8", ["weight", "weight_scale_inv"]),
        ("compressed-tensors", ["weight_packed", "weight_scale", "weight_shape"]),
        ("bitsandbytes", ["weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"]),
    ],
)
def test_all_parts_of_a_quantized_module_follow_and_layers_may_be_kept_in_full(method, parts):
    config = CONFIG | {"quantization_config": {"quant_method": method}}
    module = "mlp.up_proj"
    quantized = [f"model.layers.{index}.{module}.{part}" for index in (0, 2, 3) for part in parts]
    copies = {
        copy.name: copy.source
        for copy in tensor_copies([*NAMES, *quantized, f"model.layers.1.{module}.weight"], Decoder.of(config), PLAN)
    }
    for part in parts:
        assert copies[f"model.layers.4.{module}.{part}"] == f"model.layers.2.{module}.{part}"
    in_full = [name.rpartition(f"{module}.")[2] for name in copies if name.startswith(f"model.layers.3.{module}")]
    assert in_full == ["weight"]


def test_only_the_decoder_of_a_multimodal_model_is_upscaled():
    config = {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 4, "layer_types": ["full_attention"] * 4},
    }
    vision = [f"model.vision_tower.encoder.layers.{i}.mlp.weight" for i in range(4)]
    names = [name.replace("model.layers", "model.language_model.layers") for name in NAMES] + vision
    copies = {copy.name: copy.source for copy in tensor_copies(names, Decoder.of(config), PLAN)}
    assert copies["model.language_model.layers.5.mlp.down_proj.weight"] == (
        "model.language_model.layers.3.mlp.down_proj.weight"
    )
    assert all(copies[name] == name for name in vision)


def test_a_decay_that_is_not_stored_is_rejected():
    config = {"model_type": "minimax", "num_hidden_layers": 2, "layer_types": ["linear_attention"] * 2}
    names = [f"model.layers.{i}.self_attn.qkv_proj.weight" for i in range(2)]
    with pytest.raises(CheckpointError, match=r"layers.0.self_attn.slope_rate is not stored"):
        tensor_copies(names, Decoder.of(config), LayerPlan.from_sources(2, [0, 1, 1]))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([*NAMES, "model.layers.4.mlp.up_proj.weight"], "belongs to layer 4, but config.json has num_hidden_layers: 4"),
        ([name for name in NAMES if ".layers.2." not in name], "layer 2 .* it has none"),
        ([name for name in NAMES if name != "model.layers.2.self_attn.q_proj.weight"], "differ in self_attn.q_proj"),
        ([name.replace("layers", "h") for name in NAMES], r"expected names like model.layers.<number>.*found: none"),
    ],
)
def test_names_that_do_not_fit_the_config(names, message):
    with pytest.raises(CheckpointError, match=message):
        tensor_copies(names, Decoder.of(CONFIG), PLAN)


def test_custom_code_with_other_layer_names_is_distinguished_from_a_damaged_checkpoint():
    decoder = Decoder.of({"model_type": "qwen", "num_hidden_layers": 4, "auto_map": {"AutoConfig": "x.X"}})
    names = [name.replace("model.layers", "transformer.h") for name in NAMES]
    with pytest.raises(CheckpointError, match=r"with custom code .model_type 'qwen'"):
        tensor_copies(names, decoder, PLAN)


def test_tensors_by_layer():
    assert layer_tensors(["model.layers.7.a", "model.norm", "model.layers.7.b"], Decoder.of(CONFIG)) == {
        7: ["model.layers.7.a", "model.layers.7.b"]
    }
