"""``solar.train.lr_scale``: a learning rate of their own for the parameters that the base had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from solar_plugins.errors import ArgsError

MARK = "solar_part"
"""A key of the optimizer's parameter groups: ``new`` or ``old``. It is saved with the optimizer's state."""

RATES = ("lr", "max_lr")
"""The keys of a group that hold learning rates: AdamC divides by the second, its first value."""


def scale_old_rates(trainer: Any, is_new: Callable[[str], bool], scale: float) -> None:
    """Let the trainer's optimizer give old parameters ``scale`` times the rate that it would give them.

    Axolotl's own ``lr_groups`` reach no norms, biases or embeddings (core/trainers/mixins/optimizer.py). So every group
    that the trainer made is divided in two, whatever its rate. The schedule multiplies both.

    Args:
        trainer: Before its training, when the optimizer does not exist yet.
        is_new: Whether a parameter, by its name in the model, belongs to a layer that the plan added.
        scale: For all others.
    """
    create = trainer.create_optimizer

    def create_with_scale(model: Any = None) -> Any:
        create(model)
        named = (trainer.model if model is None else model).named_parameters()
        split_groups(trainer.optimizer, {id(parameter): is_new(name) for name, parameter in named}, scale)
        return trainer.optimizer

    trainer.create_optimizer = create_with_scale


def split_groups(optimizer: Any, is_new: dict[int, bool], scale: float) -> None:
    """Divide each parameter group into new and old parameters, in place. What is divided already stays.

    Args:
        optimizer: A torch optimizer.
        is_new: For each parameter of the model, by its ``id``.
        scale: Old parameters' learning rate over the group's.

    Raises:
        ArgsError: The optimizer has no parameter groups, or parameters that are not the model's.
    """
    groups = getattr(optimizer, "param_groups", None)
    if groups is None or any(
        group.get("lr") is None or any(id(parameter) not in is_new for parameter in group["params"]) for group in groups
    ):
        raise ArgsError(
            f"solar.train.lr_scale: {type(optimizer).__name__} keeps no groups of the model's parameters with a "
            "learning rate, so that it cannot differ. Remove the optimizer from the DeepSpeed JSON, or use "
            "adamw_torch_fused"
        )
    divided = []
    for group in groups:
        if MARK in group:
            divided.append(group)
            continue
        for part, factor in (("new", 1), ("old", scale)):
            members = [parameter for parameter in group["params"] if is_new[id(parameter)] == (part == "new")]
            if members:
                rates = {key: group[key] * factor for key in RATES if group.get(key) is not None}
                divided.append({**group, **rates, "params": members, MARK: part})
    groups[:] = divided
