import pytest

from solar_plugins.errors import ArgsError
from solar_plugins.memory.parameters import unfrozen_pattern
from solar_plugins.recipe import parse_recipe
from solar_plugins.solar_block import InitArgs, TrainArgs
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.strategies import plan_of
from solar_plugins.upscaling.trained_layers import (
    CLASSIFIER_HEAD,
    WRAPPERS,
    new_layers,
    refuse_frozen_identity_layers,
    seam_layers,
    trained_parts,
    training_keys,
    unfrozen_patterns,
)

LLAMA = {"model_type": "llama", "num_hidden_layers": 32, "tie_word_embeddings": False}
TIED = LLAMA | {"tie_word_embeddings": True}


def plan(strategy, **arguments):
    return plan_of(InitArgs.model_validate({"strategy": strategy, **arguments}), 32)


DUS = plan("dus", drop_layers=8)
EXPANDED = plan("block_expansion", new_layers=8)


def parts(layers, plan=DUS, config=LLAMA, **keys):
    return trained_parts(TrainArgs.model_validate({"layers": layers, **keys}), Decoder.of(config), plan)


def test_new_layers_of_dus_are_the_second_occurrences():
    """Layers 8 to 23 of Mistral come twice; 24 to 31 come once, although they lie in the second copy."""
    assert new_layers(DUS) == tuple(range(24, 40))


def test_new_layers_of_llama_pro_are_those_of_the_paper():
    assert new_layers(EXPANDED) == (4, 9, 14, 19, 24, 29, 34, 39)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (plan("interleave"), tuple(range(1, 64, 2))),
        (plan("stack", times=2), tuple(range(32, 64))),
        (LayerPlan.from_sources(32, [*range(8, 32), *range(8)]), ()),
    ],
)
def test_new_layers_of_others(strategy, expected):
    assert new_layers(strategy) == expected


def test_seam_layers():
    assert seam_layers(DUS, 1) == (23, 24)
    assert seam_layers(DUS, 4) == tuple(range(20, 28))
    assert seam_layers(plan("stack", times=3), 1) == (31, 32, 63, 64)
    assert seam_layers(EXPANDED, 4) == (), "identity layers pass through"
    assert seam_layers(LayerPlan.from_sources(4, [0, 2, 3]), 5) == (0, 1, 2), "no further than the model"
    assert seam_layers(DUS, 10**12) == tuple(range(48))


def test_layers_all_trains_everything_by_default():
    every = parts("all")
    assert every.everything
    assert every.layers == tuple(range(48))
    assert not parts("all", embeddings=False).everything


@pytest.mark.parametrize("layers", ["new", "seam"])
def test_training_some_layers_trains_nothing_else(layers):
    keys = {"around": 2} if layers == "seam" else {}
    assert parts(layers, **keys)[3:] == (False, False, False)
    assert parts(layers, norms=True, lm_head=True, **keys)[3:] == (False, True, True)


def test_without_a_plan_only_all_can_be_meant():
    assert parts("all", None).num_layers == 32
    for keys in ({"layers": "new"}, {"layers": "seam", "around": 1}, {"layers": "all", "lr_scale": {"old": 0.1}}):
        with pytest.raises(ArgsError, match=r"no recorded plan .*solar upscale"):
            parts(plan=None, **keys)


def test_a_plan_without_what_is_asked_for():
    with pytest.raises(ArgsError, match="layers: new, but the plan adds no layer"):
        parts("new", LayerPlan.from_sources(32, range(16)))
    with pytest.raises(ArgsError, match="layers: seam, but the plan has no seam"):
        parts("seam", EXPANDED, around=2)


def test_tied_weights_are_trained_together_or_not_at_all():
    assert parts("new", config=TIED, embeddings=True)[3:] == (True, False, True)
    assert parts("new", config=TIED, lm_head=True)[3:] == (True, False, True)
    assert parts("all", config=TIED).everything
    with pytest.raises(ArgsError, match=r"embeddings: True and lm_head: False, .*tie_word_embeddings"):
        parts("new", config=TIED, embeddings=True, lm_head=False)


def chosen(names, **keys):
    patterns = unfrozen_patterns(Decoder.of(keys.pop("config", LLAMA)), parts(**keys))
    return [name for name in names if any(unfrozen_pattern(text).match(name) for text in patterns)]


NAMES = [
    "model.embed_tokens.weight",
    "model.layers.2.mlp.up_proj.weight",
    "model.layers.2.input_layernorm.weight",
    "model.layers.24.mlp.up_proj.weight",
    "base_model.model.model.layers.24.mlp.up_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
    "model.vision_tower.layers.24.mlp.up_proj.weight",
]


def test_patterns_name_the_parameters():
    new = [NAMES[3], NAMES[4]]
    assert chosen(NAMES, layers="new") == new, "layer 2 is not 24, nor is the vision tower's 24"
    assert chosen(NAMES, layers="new", embeddings=True) == [NAMES[0], *new]
    assert chosen(NAMES, layers="new", norms=True) == [NAMES[2], *new, NAMES[5]]
    assert chosen(NAMES, layers="new", lm_head=True) == [*new, NAMES[6]]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "solar.train.layers: missing"),
        ({"layers": "top"}, "solar.train.layers: 'top' is not allowed; expected 'all', 'new' or 'seam'"),
        ({"layers": "seam"}, "layers: seam needs around"),
        ({"layers": "new", "around": 2}, "layers: seam needs around"),
        ({"layers": "seam", "around": 0}, "solar.train.around: 0 is not allowed"),
        ({"layers": "seam", "around": True}, "solar.train.around: True is not allowed; expected a number"),
        ({"layers": "all", "lr_scale": {"old": True}}, "solar.train.lr_scale.old: True is not allowed; expected a num"),
        ({"layers": "all", "lr_scale": {"old": 0}}, "solar.train.lr_scale.old: 0 is not allowed"),
        ({"layers": "all", "lr_scale": {"new": 2}}, "solar.train.lr_scale"),
        ({"layers": "all", "lr_scale": {}}, "solar.train.lr_scale"),
        ({"layers": "new", "embedings": True}, "solar.train.embedings: unknown key; did you mean embeddings?"),
    ],
)
def test_an_invalid_train_block_is_an_error(keys, message):
    from solar_plugins.solar_block import parse_solar_block

    with pytest.raises(ArgsError) as error:
        parse_solar_block({"solar": {"train": keys}})
    assert message in str(error.value)


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
def test_a_tied_head_stays_tied_with_an_adapter(asked, layers):
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


def test_registering_twice_fills_in_the_same_keys():
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


def test_frozen_identity_layers_are_rejected():
    copies = [PlannedLayer(source) for source in (1, 2, 1, 2, 3)]
    plan = LayerPlan(4, (PlannedLayer(0), PlannedLayer(0, "identity"), *copies))
    args = parse_recipe({"solar": {"train": {"layers": "seam", "around": 1}}}).solar.train
    with pytest.raises(ArgsError, match=r"freezes layers 1, .* set layers: new or all"):
        refuse_frozen_identity_layers(args, DECODER, plan)
    refuse_frozen_identity_layers(args.model_copy(update={"layers": "new", "around": None}), DECODER, plan)
