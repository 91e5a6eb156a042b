import pytest

from solar_plugins.errors import ArgsError
from solar_plugins.recipe import parse_recipe
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.trained_layers import (
    CLASSIFIER_HEAD,
    WRAPPERS,
    refuse_frozen_identity_layers,
    training_keys,
)

DECODER = Decoder.of({"model_type": "llama", "num_hidden_layers": 4, "tie_word_embeddings": False})
PLAN = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])
LORA = {"adapter": "lora", "lora_r": 8, "lora_target_linear": True}


def keys(train, plan=PLAN, decoder=DECODER, **others):
    recipe = parse_recipe({"solar": {"train": train}} | others)
    return training_keys(recipe, recipe.solar.train, decoder, plan)


def test_full_training_freezes_the_rest():
    assert keys({"layers": "new"}) == {"unfrozen_parameters": [f"{WRAPPERS}model.layers.(?:3|4).", CLASSIFIER_HEAD]}
    assert keys({"layers": "all"}) == {}


def test_an_adapter_covers_the_layers():
    covered = {"peft_layers_to_transform": [3, 4], "peft_layers_pattern": ["layers"]}
    assert keys({"layers": "new"}, **LORA) == covered
    assert keys({"layers": "all"}, **LORA) == {}
    copied = keys({"layers": "new", "embeddings": True, "lm_head": True}, **LORA, lora_modules_to_save=["lm_head"])
    assert copied == covered | {"lora_modules_to_save": ["lm_head", "embed_tokens"]}


@pytest.mark.parametrize("asked", [{"embeddings": True}, {"lm_head": True}, {"embeddings": True, "lm_head": True}])
@pytest.mark.parametrize("layers", ["new", "all"])
def test_a_head_that_is_the_embeddings_stays_so_beside_an_adapter(asked, layers):
    tied = Decoder.of(dict(DECODER.config) | {"tie_word_embeddings": True})
    made = keys({"layers": layers, **asked}, decoder=tied, **LORA)
    assert made["lora_modules_to_save"] == ["embed_tokens"]
    assert made["peft_ensure_weight_tying"] is True
    assert "peft_ensure_weight_tying" not in keys({"layers": layers}, decoder=tied, **LORA), "nothing is copied"
    assert "peft_ensure_weight_tying" not in keys({"layers": layers, **asked}, **LORA), "nothing is tied"
    sharded = LORA | {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}
    with pytest.raises(
        ArgsError, match=r"fsdp_config: with adapter: lora .* FSDP2 cannot shard .* Use deepspeed or DDP"
    ):
        keys({"layers": layers, **asked}, decoder=tied, **sharded)
    assert keys({"layers": layers, **asked}, **sharded), "nothing is tied"


def test_what_axolotl_was_told_before_is_told_again():
    """Axolotl may register a plugin twice, with its own keys filled in."""
    for others in ({}, LORA):
        train = {"layers": "new"}
        once = keys(train, **others)
        assert keys(train, **others, **once) == once


@pytest.mark.parametrize(
    ("train", "others", "message"),
    [
        (
            {"layers": "new"},
            {"unfrozen_parameters": ["lm_head"]},
            "unfrozen_parameters: ['lm_head'] conflicts with solar.train",
        ),
        (
            {"layers": "new"},
            LORA | {"peft_layers_to_transform": [1]},
            "peft_layers_to_transform: [1] conflicts with solar.train",
        ),
        ({"layers": "new", "norms": True}, LORA, "solar.train.norms: true, but an adapter"),
        ({"layers": "new"}, LORA | {"lora_target_modules": ".*q_proj"}, "lora_target_modules: '.*q_proj' is a pattern"),
        (
            {"layers": "new"},
            LORA | {"lora_target_parameters": ["mlp.experts.down_proj"]},
            "lora_target_parameters: ['mlp.experts.down_proj']; PEFT adapts such parameters in all",
        ),
        ({"layers": "new", "lr_scale": {"old": 0.1}}, {}, "none of the base's own parameters"),
        ({"layers": "new", "lr_scale": {"old": 0.1}}, LORA, "none of the base's own parameters"),
        (
            {"layers": "all", "lr_scale": {"old": 0.1}},
            {"lr_scheduler": "rex"},
            "lr_scheduler: rex sets the same",
        ),
    ],
)
def test_contradictions(train, others, message):
    with pytest.raises(ArgsError) as error:
        keys(train, **others)
    assert message in str(error.value)


def test_identity_layers_must_learn():
    copies = [PlannedLayer(source) for source in (1, 2, 1, 2, 3)]
    plan = LayerPlan(4, (PlannedLayer(0), PlannedLayer(0, "identity"), *copies))
    args = parse_recipe({"solar": {"train": {"layers": "seam", "around": 1}}}).solar.train
    with pytest.raises(ArgsError, match=r"freezes layers 1, .* set layers: new or all"):
        refuse_frozen_identity_layers(args, DECODER, plan)
    refuse_frozen_identity_layers(args.model_copy(update={"layers": "new", "around": None}), DECODER, plan)
