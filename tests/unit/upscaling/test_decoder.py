from dataclasses import FrozenInstanceError

import pytest

from solar_plugins.errors import CheckpointError
from solar_plugins.report.plan_report import plan_for_base
from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.base_model import BaseCheckpoint, find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.strategies import plan_of
from solar_plugins.upscaling.verify import verify_checkpoint

CONFIG = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 32}
MISTRAL = {
    "model_type": "mistral",
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
GEMMA3 = {
    "model_type": "gemma3",
    "text_config": MISTRAL | {"model_type": "gemma3_text", "num_hidden_layers": 6, "torch_dtype": "bfloat16"},
    "vision_config": {"num_hidden_layers": 27},
}
INIT = InitArgs(strategy="dus", drop_layers=2)


@pytest.fixture
def bound(monkeypatch):
    """The configs that were looked up, in order."""
    seen, of = [], Decoder.of
    monkeypatch.setattr(Decoder, "of", lambda config, *keys: seen.append(config) or of(config, *keys))
    return seen


def test_a_first_run_looks_its_config_up_once_and_a_later_one_too(bound, base, tmp_path):
    """One base, one config: plan, new config, tensor names and parameter count take the same decoder."""
    for _ in range(2):
        found = find_base(str(base))
        ensure_checkpoint(found, plan_of(INIT, found.num_layers), tmp_path / "cache")
        assert bound == [found.config]
        bound.clear()


def test_planning_and_verifying_look_the_config_up_once(bound, base, tmp_path):
    plan_for_base(str(base), None, INIT)
    assert len(bound) == 1
    found = find_base(str(base))
    directory = ensure_checkpoint(found, plan_of(INIT, found.num_layers), tmp_path / "cache")
    bound.clear()
    verify_checkpoint(directory, str(base))
    assert len(bound) == 1


def test_an_unsupported_type_is_refused_before_anything_is_fetched_or_written(tmp_path, monkeypatch):
    def fetch(*arguments):
        raise AssertionError("the weights are fetched")

    monkeypatch.setattr("solar_plugins.upscaling.base_model.fetch", fetch)
    base = BaseCheckpoint("someone/model", tmp_path, {"model_type": "zamba2"}, revision="0" * 40)
    with pytest.raises(CheckpointError, match="'zamba2' cannot be upscaled"):
        ensure_checkpoint(base, LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3]), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("upscaled-*"))


def test_it_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Decoder.of(CONFIG).num_layers = 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama7"}, "model_type 'llama7' is not supported; .*docs/architectures.md"),
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"model_type": "zamba2"}, "cannot be upscaled: one transformer block is shared"),
        ({"model_type": "gemma3"}, "text_config is None"),
        ({"model_type": "gemma3", "text_config": GEMMA3}, "expected the config of the decoder"),
        (
            {"model_type": "gemma3", "text_config": CONFIG | {"model_type": ["gemma3"]}},
            r"\['gemma3'\] is not supported",
        ),
        ({"model_type": "gemma3", "text_config": CONFIG | {"model_type": "zamba"}}, "'zamba' cannot be upscaled"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers is '4'; expected the number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000; expected the number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"model_type": "xlstm", "num_blocks": 5}, "the depth is ambiguous"),
        (
            {"model_type": "gemma4_text", "num_kv_shared_layers": 2},
            "num_kv_shared_layers is 2, which is not supported",
        ),
        (
            {"model_type": "gpt2", "n_layer": 4, "scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx is True",
        ),
    ],
)
def test_configs_that_are_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        Decoder.of(CONFIG | change)


def test_a_model_type_with_custom_code_only():
    config = {"model_type": "mine", "num_hidden_layers": 4, "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}
    assert Decoder.of(config).architecture.layers_prefix == "model.layers."
    with pytest.raises(CheckpointError, match="expected the number of decoder layers"):
        Decoder.of({key: value for key, value in config.items() if key != "num_hidden_layers"})


def test_the_decoder_of_a_multimodal_model_is_its_text_part():
    decoder = Decoder.of(GEMMA3)
    assert (decoder.model_type, decoder.num_layers, decoder.dtype) == ("gemma3", 6, "bfloat16")
    assert decoder.text_config is GEMMA3["text_config"]
    assert decoder.widths == Decoder.of(MISTRAL).widths
    assert decoder.architecture.is_prefix("model.language_model.layers.")
    assert not decoder.architecture.is_prefix("model.vision_tower.encoder.layers.")


def test_layer_kinds_tell_dense_layers_from_others():
    kinds = Decoder.of(CONFIG | {"model_type": "deepseek_v3", "first_k_dense_replace": 2}).layer_kinds
    assert kinds[0] == kinds[1] != kinds[2] == kinds[3]


def test_layer_types_count_for_every_model_type():
    """transformers writes them for any type that has been given some."""
    kinds = Decoder.of(CONFIG | {"layer_types": ["a", "b", "a", "b"]}).layer_kinds
    assert kinds[0] == kinds[2] != kinds[1] == kinds[3]


def test_residual_writers_are_known_or_refused():
    assert Decoder.of(CONFIG | {"model_type": "phi"}).residual_writers == ("self_attn.dense", "mlp.fc2")
    with pytest.raises(CheckpointError, match="identity and scaled layers are not tested for model_type 'gemma2'"):
        _ = Decoder.of(CONFIG | {"model_type": "gemma2"}).residual_writers


def test_widths_of_mistral():
    assert Decoder.of(MISTRAL).widths == (4096, 14336, 4096, 1024, 32, 32000)


@pytest.mark.parametrize(("key", "value"), [("num_key_value_heads", "8"), ("head_dim", -1), ("vocab_size", 1.5)])
def test_a_width_that_is_no_width(key, value):
    decoder = Decoder.of(MISTRAL | {key: value})
    with pytest.raises(CheckpointError, match=f"{key} is {value!r}; expected a positive integer"):
        _ = decoder.widths


def test_null_widths_have_the_defaults_of_transformers():
    assert Decoder.of(MISTRAL | {"head_dim": None}).widths == Decoder.of(MISTRAL | {"head_dim": 128}).widths
    all_heads = Decoder.of(MISTRAL | {"num_key_value_heads": 32}).widths
    assert Decoder.of(MISTRAL | {"num_key_value_heads": None}).widths == all_heads


def test_a_width_that_is_missing():
    with pytest.raises(CheckpointError, match="hidden_size is None; expected a positive integer"):
        _ = Decoder.of({"model_type": "llama", "num_hidden_layers": 2}).widths


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "float32"),
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "bfloat16", "torch_dtype": "float16"}, "bfloat16"),
    ],
)
def test_dtype_is_the_stated_one(change, expected):
    """transformers 5 writes `dtype`, before that it was `torch_dtype`; without either it loads float32."""
    assert Decoder.of(CONFIG | change).dtype == expected


def test_prediction_layers_and_quantization_are_read_from_the_config():
    assert Decoder.of(CONFIG | {"num_nextn_predict_layers": 2}).num_prediction_layers == 2
    assert Decoder.of(CONFIG | {"num_mtp_layers": 1}).num_prediction_layers == 1
    assert Decoder.of(CONFIG).num_prediction_layers == 0
    assert Decoder.of(CONFIG | {"quantization_config": {}}).quantization is None
    assert Decoder.of(CONFIG | {"quantization_config": {"bits": 4}}).quantization == {"bits": 4}


def test_a_config_without_model_type_names_the_part_that_has_one():
    with pytest.raises(CheckpointError, match=r"model_type is missing; expected .*llama$"):
        Decoder.of({"num_hidden_layers": 2})
    with pytest.raises(CheckpointError, match=r"Its 'llm' has one, 'llama'"):
        Decoder.of({"tokenizer": {}, "llm": {"model_type": "llama", "num_hidden_layers": 2}})
