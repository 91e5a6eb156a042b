import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from solar_plugins.errors import CheckpointError
from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.upscaling.architectures.table import ARCHITECTURES
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.mergekit import KEEPS_BIASES, MERGEKIT_TYPES, passthrough_merge, reference, weights_of

MISTRAL = Decoder.of({"model_type": "mistral", "num_hidden_layers": 32, "torch_dtype": "bfloat16"})
MISTRAL_2 = Decoder.of({"model_type": "mistral", "num_hidden_layers": 2})


@pytest.mark.parametrize(
    ("path", "base_model", "num_layers", "drop"),
    [
        ("mergekit/solar_dus.yml", "mistralai/Mistral-7B-v0.1", 32, 8),
        ("smollm2/mergekit/solar_dus.yml", "runs/smollm2/SmolLM2-135M", 30, 6),
    ],
)
def test_the_shipped_merges_are_what_the_plan_gives(path, base_model, num_layers, drop):
    plan = LayerPlan.from_sources(num_layers, [*range(num_layers - drop), *range(drop, num_layers)])
    shipped = yaml.safe_load((recipe_directory() / path).read_text())
    assert shipped == passthrough_merge(base_model, MISTRAL, plan)


def test_identity_layers_scale_what_writes_to_the_residual_stream():
    plan = LayerPlan(2, (PlannedLayer(0), PlannedLayer(1), PlannedLayer(1, "identity")))
    assert passthrough_merge("b", MISTRAL, plan)["slices"][1] == {
        "sources": [
            {
                "model": "b",
                "layer_range": [1, 2],
                "parameters": {
                    "scale": [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": 0.0}, {"value": 1.0}]
                },
            }
        ]
    }


def test_a_filter_shared_by_two_modules_is_listed_once():
    """GPT-2's are attn.c_proj and mlp.c_proj; mergekit takes the first filter that is a part of the tensor's name."""
    plan = LayerPlan(2, (PlannedLayer(0), PlannedLayer(1), PlannedLayer(1, "identity")))
    decoder = Decoder.of({"model_type": "gpt2", "n_layer": 2, "dtype": "float32"})
    (source,) = passthrough_merge("b", decoder, plan)["slices"][1]["sources"]
    assert source["parameters"]["scale"] == [{"filter": "c_proj", "value": 0.0}, {"value": 1.0}]


def test_scaled_layers_multiply_the_same_modules():
    plan = LayerPlan(2, (PlannedLayer(0), PlannedLayer(1), PlannedLayer(1, "scaled", (("factor", 0.3),))))
    (source,) = passthrough_merge("b", MISTRAL_2, plan)["slices"][1]["sources"]
    assert source["parameters"]["scale"] == [
        {"filter": "o_proj", "value": 0.3},
        {"filter": "down_proj", "value": 0.3},
        {"value": 1.0},
    ]


@pytest.mark.parametrize("name", ["noise", "average", "third"])
def test_plans_that_mergekit_cannot_express_are_rejected_with_the_reason(name):
    plan = LayerPlan(2, (PlannedLayer(0), PlannedLayer(1), PlannedLayer(1, name, (("x", 1),))))
    with pytest.raises(CheckpointError, match=rf"{name} \(x 1\) layers cannot be written in mergekit's YAML"):
        passthrough_merge("b", MISTRAL_2, plan)


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"model_type": "llama", "attention_bias": True}, "attention_bias"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias"),
        ({"model_type": "llama", "attention_bias": False}, None),
        ({"model_type": "granite", "attention_bias": True, "mlp_bias": True}, None),
        ({"model_type": "glm4", "attention_bias": True}, None),
    ],
)
def test_bases_whose_biases_mergekit_omits(config, refused):
    decoder = Decoder.of(config | {"num_hidden_layers": 2})
    if refused is None:
        passthrough_merge("b", decoder, LayerPlan.from_sources(2, [0, 1, 1]))
        return
    with pytest.raises(CheckpointError, match=f"{refused} is true, and mergekit 0.1.5 silently drops the biases"):
        passthrough_merge("b", decoder, LayerPlan.from_sources(2, [0, 1, 1]))


def test_types_that_keep_their_biases_match_mergekits_lists():
    import mergekit

    biased = set()
    for path in (Path(mergekit.__file__).parent / "_data" / "architectures").glob("*.json"):
        architecture = json.loads(path.read_text())
        names = [weight["name"] for weight in architecture.get("layer_templates", {}).get("weights", [])]
        if any(name.endswith(".bias") and "norm" not in name for name in names):
            biased.add(architecture["model_type"])
    assert biased & MERGEKIT_TYPES == KEEPS_BIASES


UNTESTED = sorted(name for name in MERGEKIT_TYPES if not ARCHITECTURES[name].residual_writers)


@pytest.mark.parametrize("model_type", UNTESTED)
def test_identity_layers_are_never_exported_as_plain_copies(model_type):
    """For these types it is not tested which modules write to the residual stream."""
    decoder = Decoder.of({"model_type": model_type, ARCHITECTURES[model_type].depth_key: 2, "dtype": "bfloat16"})
    passthrough_merge("b", decoder, LayerPlan.from_sources(2, [0, 1, 1]))
    with pytest.raises(
        CheckpointError, match=f"identity and scaled layers are not tested for model_type '{model_type}'"
    ):
        passthrough_merge("b", decoder, LayerPlan(2, (PlannedLayer(0), PlannedLayer(1), PlannedLayer(1, "identity"))))


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ({"BF16"}, "bfloat16"),
        ({"F16"}, "float16"),
        ({"F32"}, "float32"),
        ({"F64"}, "float64"),
        ({"BF16", "I64", "BOOL"}, "bfloat16"),  # counters and masks
        ({"BF16", "F32"}, None),
        ({"U8"}, None),
    ],
)
def test_the_dtype_is_that_of_the_weights_and_none_where_they_are_mixed(dtypes, expected):
    """The config says bfloat16. Without the key mergekit keeps each tensor's own dtype."""
    assert passthrough_merge("b", MISTRAL, LayerPlan.from_sources(32, range(32)), dtypes).get("dtype") == expected


def test_without_weights_only_the_config_is_used():
    silent = Decoder.of({"model_type": "mistral", "num_hidden_layers": 32})
    assert "dtype" not in passthrough_merge("b", silent, LayerPlan.from_sources(32, range(32)))
    assert passthrough_merge("b", MISTRAL, LayerPlan.from_sources(32, range(32)))["dtype"] == "bfloat16"


def test_one_model_is_written_out_for_each_slice():
    merge = passthrough_merge(reference("/a+b"), MISTRAL, LayerPlan.from_sources(32, [*range(24), *range(8, 32)]))
    assert "&" not in yaml.safe_dump(merge)


@pytest.mark.parametrize("spelling", ["base", "./base", "../here/base", "~/base", "base/config.json"])
def test_a_local_base_gets_its_whole_path(made_bases, tmp_path, monkeypatch, spelling):
    here = tmp_path / "here"
    shutil.copytree(made_bases / "llama", here / "base")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    found = weights_of(spelling, None)
    assert Path(found.model).is_absolute()
    assert Path(found.model).samefile(here / "base")
    assert found.dtypes == {"BF16"}


def test_missing_local_weights_are_not_downloaded(base):
    (base / "model.safetensors").unlink()
    assert weights_of(str(base), None).dtypes is None


def test_names_of_training_wrappers_are_refused(base):
    tensors = load_file(base / "model.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, base / "model.safetensors")
    with pytest.raises(CheckpointError, match="training wrapper, and mergekit does not strip"):
        weights_of(str(base), None)
