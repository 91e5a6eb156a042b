import pytest

from solar_plugins.errors import ArgsError
from solar_plugins.memory.parameters import unfrozen_pattern
from solar_plugins.solar_block import InitArgs, TrainArgs
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.strategies import plan_of
from solar_plugins.upscaling.trained_layers import new_layers, seam_layers, trained_parts, unfrozen_patterns

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


def test_all_trains_everything_unless_told():
    every = parts("all")
    assert every.everything
    assert every.layers == tuple(range(48))
    assert not parts("all", embeddings=False).everything


@pytest.mark.parametrize("layers", ["new", "seam"])
def test_some_layers_train_nothing_beside_them(layers):
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
def test_a_block_that_cannot_be_meant(keys, message):
    from solar_plugins.solar_block import parse_solar_block

    with pytest.raises(ArgsError) as error:
        parse_solar_block({"solar": {"train": keys}})
    assert message in str(error.value)
