from types import SimpleNamespace

import pytest
import torch

from solar_plugins.axolotl_adapter.learning_rates import scale_old_rates, split_groups
from solar_plugins.errors import ArgsError


@pytest.fixture
def model():
    return torch.nn.ModuleDict({"old": torch.nn.Linear(2, 2), "new": torch.nn.Linear(2, 2)})


def rates(optimizer, model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


EXPECTED = {"old.weight": 0.1, "old.bias": 0.2, "new.weight": 1.0, "new.bias": 2.0}


def grouped(model):
    """Two groups with rates of their own, as Axolotl makes them for embeddings or LoRA+."""
    weights = [module.weight for module in model.values()]
    biases = [module.bias for module in model.values()]
    return torch.optim.AdamW([{"params": weights, "lr": 1.0}, {"params": biases, "lr": 2.0, "weight_decay": 0.0}])


def test_every_group_is_divided(model):
    optimizer = grouped(model)
    is_new = {id(parameter): name.startswith("new") for name, parameter in model.named_parameters()}
    split_groups(optimizer, is_new, 0.1)
    assert rates(optimizer, model) == pytest.approx(EXPECTED)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.01, 0.0, 0.0]
    split_groups(optimizer, is_new, 0.1)
    assert rates(optimizer, model) == pytest.approx(EXPECTED), "a trainer may ask for its optimizer again"


def test_a_rate_that_an_optimizer_keeps_beside_the_current_one_is_scaled_too(model):
    """AdamC decays weights by rate / maximum x rate; with the group's maximum, old ones would decay a tenth of it."""
    from axolotl.utils.optimizers.adamc import AdamC

    optimizer = AdamC(model.parameters(), lr=1.0)
    split_groups(optimizer, {id(p): name.startswith("new") for name, p in model.named_parameters()}, 0.1)
    assert [(group["lr"], group["max_lr"]) for group in optimizer.param_groups] == [(1.0, 1.0), (0.1, 0.1)]


def test_the_trainers_optimizer_is_divided_when_it_is_made(model):
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
def test_an_optimizer_that_does_not_know_the_models_parameters(optimizer):
    with pytest.raises(ArgsError, match=r"solar\.train\.lr_scale: SimpleNamespace keeps no groups"):
        split_groups(optimizer, {}, 0.1)
