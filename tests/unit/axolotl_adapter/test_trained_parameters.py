"""Which parameters are trained, and at which learning rate."""

from types import SimpleNamespace

import pytest
import torch

from solar_plugins.axolotl_adapter.trained_parameters import (
    check_trained_parameters,
    refuse_frozen_new_layers,
    scale_old_rates,
    split_groups,
)
from solar_plugins.errors import ArgsError
from solar_plugins.recipe import parse_recipe
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.trained_layers import Trained

DECODER = Decoder.of({"model_type": "llama", "num_hidden_layers": 3})
UP, LORA = "model.layers.{}.mlp.up_proj.weight", "base_model.model.model.layers.{}.mlp.up_proj.lora_A.default.weight"
TOWER = "base_model.model.vision_tower.layers.1.up_proj.lora_A.default.weight"
EXPANDED = LayerPlan(2, tuple(PlannedLayer(i, kind) for i in range(2) for kind in ("copy", "identity")))


def refuse(lines, plan=EXPANDED, **keys):
    refuse_frozen_new_layers(parse_recipe({"unfrozen_parameters": lines} | keys), DECODER, plan)


@pytest.mark.parametrize(
    ("lines", "frozen"),
    [
        (["model.layers.1."], "layers 3 frozen"),
        (["model.layers.3.self_attn.q_proj"], "layers 1, 3 frozen"),
        ([], "1, 3"),
    ],
)
def test_an_identity_layer_that_stays_frozen(lines, frozen):
    with pytest.raises(ArgsError) as error:
        refuse(lines)
    assert frozen in str(error.value)
    assert str(error.value).endswith("solar:\n  train: {layers: new}")


@pytest.mark.parametrize(
    "lines",
    [None, ["model.layers.1.", "model.layers.3."], ["model.layers.[0-9]+.mlp"], ["model.layers.1.", "model.layers"]],
)
def test_patterns_that_train_all_new_layers_pass(lines):
    refuse(lines)


def test_layers_of_another_initializer_that_start_as_identity():
    plan = LayerPlan(2, (PlannedLayer(0), PlannedLayer(0, "transport", (), True), PlannedLayer(1)))
    with pytest.raises(ArgsError, match="leaves layers 1 frozen"):
        refuse(["model.layers.2."], plan)
    refuse(["model.layers.1."], plan)


def test_layers_with_an_effect_may_stay_frozen_and_adapters_pass():
    refuse(["lm_head"], LayerPlan.from_sources(2, [0, 1, 0, 1]))
    refuse(["lm_head"], LayerPlan(2, (PlannedLayer(0), PlannedLayer(0, "scaled", (("factor", 0.5),)))))
    refuse(["lm_head"], adapter="lora")


def check(*trained_names, layers=(1,)):
    names = [UP.format(layer) for layer in range(3)] + ["model.norm.weight"]
    parameters = {name: torch.nn.Parameter(torch.zeros(2), requires_grad=False) for name in names}
    parameters |= {name: torch.nn.Parameter(torch.zeros(2)) for name in trained_names}
    model = SimpleNamespace(named_parameters=lambda: iter(parameters.items()))
    trained = Trained(layers, layers, 3, embeddings=False, norms=False, lm_head=False)
    return check_trained_parameters(model, DECODER, trained)


def test_the_chosen_layers_are_trained():
    assert "1 of 3 layers" in check(UP.format(1))
    assert "1 of 3 layers" in check(LORA.format(1))
    assert "3 of 3 layers" in check(*map(LORA.format, range(3)), TOWER, layers=(0, 1, 2)), "all layers"


@pytest.mark.parametrize(
    ("trained_names", "message"),
    [
        ([UP.format(1), UP.format(2)], r"layers 1, 2 of the loaded model .* not 1\."),
        ([], r"layers none of the loaded model .* not 1\."),
        ([LORA.format(0)], r"layers 0 .* not 1\. .*lora_model_dir.*lora_target_modules"),
        (
            [LORA.format(1), TOWER],
            r"covers .*vision_tower\.layers\.1\.up_proj\S* too, .*lora_target_modules",
        ),
    ],
)
def test_other_trained_parameters_are_rejected(trained_names, message):
    with pytest.raises(ArgsError, match=message):
        check(*trained_names)


@pytest.fixture
def model():
    return torch.nn.ModuleDict({"old": torch.nn.Linear(2, 2), "new": torch.nn.Linear(2, 2)})


def rates(optimizer, model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


EXPECTED = {"old.weight": 0.1, "old.bias": 0.2, "new.weight": 1.0, "new.bias": 2.0}


def grouped(model):
    """Two groups with different rates, as Axolotl creates for embeddings or LoRA+."""
    weights = [module.weight for module in model.values()]
    biases = [module.bias for module in model.values()]
    return torch.optim.AdamW([{"params": weights, "lr": 1.0}, {"params": biases, "lr": 2.0, "weight_decay": 0.0}])


def test_every_group_is_split(model):
    optimizer = grouped(model)
    is_new = {id(parameter): name.startswith("new") for name, parameter in model.named_parameters()}
    split_groups(optimizer, is_new, 0.1)
    assert rates(optimizer, model) == pytest.approx(EXPECTED)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.01, 0.0, 0.0]
    split_groups(optimizer, is_new, 0.1)
    assert rates(optimizer, model) == pytest.approx(EXPECTED), "a trainer may ask for its optimizer again"


def test_the_maximum_rate_that_an_optimizer_keeps_is_scaled_too(model):
    """AdamC decays weights by rate / maximum x rate; with an unscaled maximum, old weights would decay too little."""
    from axolotl.utils.optimizers.adamc import AdamC

    optimizer = AdamC(model.parameters(), lr=1.0)
    split_groups(optimizer, {id(p): name.startswith("new") for name, p in model.named_parameters()}, 0.1)
    assert [(group["lr"], group["max_lr"]) for group in optimizer.param_groups] == [(1.0, 1.0), (0.1, 0.1)]


def test_the_groups_are_split_when_the_trainer_creates_its_optimizer(model):
    trainer = SimpleNamespace(model=model, optimizer=None)

    def create(model=None):
        trainer.optimizer = trainer.optimizer or grouped(trainer.model)

    trainer.create_optimizer = create
    scale_old_rates(trainer, lambda name: name.startswith("new"), 0.1)
    assert trainer.create_optimizer() is trainer.optimizer
    assert rates(trainer.optimizer, model) == pytest.approx(EXPECTED)


def test_schedule_and_resumed_state_keep_the_ratio(model):
    is_new = {id(parameter): name.startswith("new") for name, parameter in model.named_parameters()}
    optimizer, resumed = grouped(model), grouped(model)
    for one in (optimizer, resumed):
        split_groups(one, is_new, 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    schedule.step()
    resumed.load_state_dict(optimizer.state_dict())
    for one in (optimizer, resumed):
        assert rates(one, model) == pytest.approx({name: rate / 2 for name, rate in EXPECTED.items()})


@pytest.mark.parametrize("optimizer", [SimpleNamespace(), SimpleNamespace(param_groups=[{"params": [torch.zeros(1)]}])])
def test_an_optimizer_without_groups_of_the_models_parameters(optimizer):
    with pytest.raises(ArgsError, match=r"solar\.train\.lr_scale: SimpleNamespace .*adamw_torch_fused"):
        split_groups(optimizer, {}, 0.1)
