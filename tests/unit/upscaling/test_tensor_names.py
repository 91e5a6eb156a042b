"""What transformers would load, by names alone. The models of transformers themselves give the right values."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.outer_tensors import TIED_BY_DEFAULT, UNCHECKED
from solar_plugins.upscaling.architectures.table import ARCHITECTURES, COMPOSITES
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.quantization import refuse_undeclared_quantization
from solar_plugins.upscaling.tensor_names import is_tied, model_names

LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "architectures": ["LlamaForCausalLM"]}
NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(2) for part in ("mlp.up_proj", "self_attn.q_proj")),
    "model.norm.weight",
    "lm_head.weight",
]


def found(names, config=LLAMA, **more):
    return model_names(names, Decoder.of(config), **more)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module.module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"_module.{name}",
        lambda name: f"_forward_module.{name}",
        lambda name: f"_forward_module.model.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"module.base_model.model.{name}",
        lambda name: f"pretrained_model.{name}",
        lambda name: f"model.{name}",
        lambda name: f"_fsdp_wrapped_module.{name}",
        lambda name: f"_fsdp_wrapped_module._fpw_module.{name}",
        lambda name: name.replace(".mlp.", ".mlp._checkpoint_wrapped_module."),
        lambda name: name.replace(".mlp.", "._fsdp_wrapped_module._checkpoint_wrapped_module.mlp."),
        lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
    ],
)
def test_prefixes_of_training_wrappers_are_stripped_and_reported(wrap):
    result = found([wrap(name) for name in NAMES])
    assert result.stored == {name: wrap(name) for name in NAMES}
    assert "stripped" in result.notes[0]


def test_prompt_tuning_wraps_the_whole_model_once():
    assert found([f"base_model.{name}" for name in NAMES]).stored.keys() == set(NAMES)


def test_nothing_is_said_of_sound_names():
    assert found(NAMES) == ({name: name for name in NAMES}, ())


def test_the_name_of_the_base_model_may_be_missing():
    names = [name.removeprefix("model.") for name in NAMES]
    assert found(names).stored == {name: name for name in names}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"foo.{name}" for name in NAMES], "'foo.model.layers.0.mlp.up_proj.weight': transformers would not load it"),
        ([f"foo.{name.removeprefix('model.')}" for name in NAMES], "expected model.layers.<number>"),
        ([f"encoder.{name}" for name in NAMES], "not 'encoder.model.layers.'"),
        ([*NAMES, *(f"ema.{name}" for name in NAMES)], r"more than once, as model.layers. and ema.model.layers."),
        ([*NAMES, *(f"module.{name}" for name in NAMES)], r"more than once, as model.layers. and module.model.layers."),
        (
            [name.replace("model.layers.1", "module.model.layers.1") for name in NAMES],
            r"some layers are called model.layers.0 and others module.model.layers.1, as if",
        ),
        (
            [name.replace("model.layers.1", "layers.1") for name in NAMES],
            r"some layers are called model.layers.0 and others layers.1, .* would load only those with one",
        ),
        ([*NAMES, f"_orig_mod.{NAMES[2]}"], "are both 'model.layers.0.self_attn.q_proj.weight' without"),
        ([*NAMES, "model.layers.0.mlp.up_proj.lora_A.default.weight"], "a PEFT adapter that is not merged"),
        ([name.replace("up_proj", "up_proj.base_layer") for name in NAMES], "a PEFT adapter that is not merged"),
        ([*NAMES, "model.layers.0._flat_param"], "a flattened FSDP parameter"),
        ([name for name in NAMES if "embed" not in name], r"tensor model.embed_tokens.weight is missing"),
        ([name.replace("model.norm", "model.final_norm") for name in NAMES], r"tensor model.norm.weight is missing"),
        (NAMES[:-1], r"lm_head.weight is missing, .*architectures: LlamaForCausalLM"),
    ],
)
def test_weights_that_transformers_would_not_load_are_rejected(names, message):
    with pytest.raises(CheckpointError, match=message):
        found(names)


@pytest.mark.parametrize(
    ("class_name", "prefix", "head"),
    [
        ("LlamaModel", "", []),
        ("LlamaForSequenceClassification", "model.", ["score.weight"]),
        ("LlamaForTokenClassification", "model.", ["score.weight", "score.bias"]),
        ("LlamaForQuestionAnswering", "transformer.", ["qa_outputs.weight", "qa_outputs.bias"]),
    ],
)
def test_models_with_another_head_need_no_language_head_and_are_noted(class_name, prefix, head):
    names = [prefix + name.removeprefix("model.") for name in NAMES[:-1]] + head
    result = found(names, LLAMA | {"architectures": [class_name]})
    assert result.stored == {name: name for name in names}
    assert f"a {class_name} has no language-modeling head" in result.notes[0]


def test_an_embedding_model_may_name_the_class_with_the_head():
    """As Qwen/Qwen3-Embedding-8B: `Qwen3ForCausalLM`, not tied, saved from the bare model. Else the head is missed."""
    names = [name.removeprefix("model.") for name in NAMES[:-1]]
    result = found(names)
    assert result.stored == {name: name for name in names}
    assert "config.json has the class LlamaForCausalLM, but the weights have no head" in result.notes[0]
    with pytest.raises(CheckpointError, match=r"lm_head.weight is missing"):
        found(names, absent=["lm_head.weight"])


def test_a_tied_head_may_be_absent_or_replace_the_embeddings():
    tied = LLAMA | {"tie_word_embeddings": True}
    assert found(NAMES[:-1], tied).notes == ()
    assert found(NAMES[1:], tied).notes == ()
    assert "'lm_head.weight', which are in no file" in found(NAMES[:-1], tied, absent=["lm_head.weight"]).notes[0]


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.extra.weight"])
def test_a_tensor_that_only_the_index_lists_may_be_absent_if_not_needed(name):
    assert f"'{name}', which are in no file" in found(NAMES, absent=[name]).notes[0]


def test_a_missing_layer_tensor_is_rejected():
    with pytest.raises(CheckpointError, match="is in the index but in no file, and the model needs it"):
        found(NAMES, absent=["model.layers.1.mlp.gate_proj.weight"])


def test_tensors_missing_from_the_index_are_kept_unless_past_the_last_layer():
    """A model of fewer layers made by editing config and index alone: transformers loads it without complaint."""
    extra = ["model.layers.2.mlp.up_proj.weight", "old_head.weight"]
    result = found([*NAMES, *extra], unlisted=frozenset(extra))
    assert result.stored.keys() == {*NAMES, "old_head.weight"}
    assert [note.split(" ")[0] for note in result.notes] == ["left", "kept"]


@pytest.fixture(scope="module")
def tiny_types():
    """By model type: the names that transformers has for a tiny model, its config, and whether its head is tied."""
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "decoders"))
    from tiny_decoders import tiny_config

    made = {}
    for model_type in (*ARCHITECTURES, *COMPOSITES):
        config = tiny_config(model_type)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        made[model_type] = (list(model.state_dict()), config.to_dict(), set(model.all_tied_weights_keys), model)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [*ARCHITECTURES, *COMPOSITES])
def test_every_type_needs_its_embeddings_norm_and_head(model_type, tiny_types):
    names, config, tied, model = tiny_types[model_type]
    decoder = Decoder.of(config | {"architectures": [type(model).__name__]})
    assert model_names(names, decoder).stored == {name: name for name in names}
    assert model_names([name for name in names if name not in tied], decoder).stored, "as save_pretrained writes it"
    refuse_undeclared_quantization(names, decoder)  # No type has such names of its own.
    if model_type in UNCHECKED:
        return
    needed = [model.get_input_embeddings(), *([] if tied else [model.get_output_embeddings()])]
    for path in (path for path, module in model.named_modules() if any(module is one for one in needed)):
        left = [name for name in names if not name.startswith(f"{path}.") and name not in tied]
        with pytest.raises(CheckpointError, match="is missing"):
            model_names(left, decoder)
    bare = {key: value for key, value in config.items() if key != "tie_word_embeddings"}
    text = bare.get("text_config")
    if isinstance(text, dict):
        bare["text_config"] = {key: value for key, value in text.items() if key != "tie_word_embeddings"}
    assert is_tied(Decoder.of(bare)) == bool(tied)


def test_the_types_in_the_tables_exist():
    assert {*UNCHECKED, *TIED_BY_DEFAULT} <= {*ARCHITECTURES, *COMPOSITES}
