"""The precision of trained weights in Axolotl 0.21, and whether small optimizer steps are rounded away. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from solar_plugins.recipe import AxolotlKeys, Recipe


class CarryOver(NamedTuple):
    """The key of ``optim_args`` with which an optimizer keeps what rounding to bf16 would lose."""

    key: str
    by_default: bool


STOCHASTIC = CarryOver("bf16_stochastic_round", by_default=False)
COMPENSATED = CarryOver("kahan_sum", by_default=True)
SPLIT = CarryOver("master_weight_bits", by_default=True)

CARRY_OVERS: Mapping[str, CarryOver] = {
    "adamw_torch_4bit": STOCHASTIC,
    "adamw_torch_8bit": STOCHASTIC,
    "ao_adamw_fp8": STOCHASTIC,
    "sinkgd": STOCHASTIC,
    "adamw_anyprecision": CarryOver("use_kahan_summation", by_default=False),
    "optimi_adamw": COMPENSATED,
    "stable_adamw": COMPENSATED,
    **{f"flash_{kind}": SPLIT for kind in ("adam", "adamw", "sgd", "sgdw", "lion")},
}
"""Optimizers that can train bf16 weights with small steps; every other one rounds each step to nearest.

From the sources of torchao, Axolotl (utils/optimizers) and transformers (trainer_optimizer.py); for optimi and
flashoptim, which Axolotl does not install, from their documentation.
"""

DEFAULT_OPTIMIZER = str(AxolotlKeys.model_fields["optimizer"].default)


def lost_steps(recipe: Recipe) -> str | None:
    """A warning for a recipe whose small optimizer steps are rounded away; None if they are not.

    Without DeepSpeed, which updates fp32 copies, Axolotl trains the bf16 weights themselves: on one GPU, under DDP and
    under FSDP2 (its monkeypatch/accelerate/fsdp2.py omits accelerate's copy to fp32). Adapters are in fp32.
    """
    optimizer = recipe.optimizer or DEFAULT_OPTIMIZER
    safe = recipe.adapter or recipe.deepspeed or recipe.weight_precision != "bf16"
    if safe or _carries_over(optimizer, _optim_args(recipe.optim_args)):
        return None
    return (
        f"optimizer: {optimizer} trains bf16 weights without fp32 copies here (Axolotl 0.21, no deepspeed): a step "
        "that changes a weight by less than about 1/256 of it is rounded away, so with a small learning rate most "
        "steps are lost. Set deepspeed: recipes/deepspeed/zero2_bf16.json (or zero3_bf16.json), which keeps fp32 "
        f"copies, or {_change_of_optimizer(optimizer)}"
    )


def _change_of_optimizer(optimizer: str) -> str:
    carry_over = CARRY_OVERS.get(optimizer)
    if carry_over is None:
        return (
            "set optimizer: adamw_torch_8bit with optim_args: {bf16_stochastic_round: true}, as in "
            "recipes/solar_dus_fsdp2.yml"
        )
    if carry_over.by_default:
        return f"remove {carry_over.key} from optim_args"
    return f"set optim_args: {{{carry_over.key}: true}}"


def _carries_over(optimizer: str, optim_args: Mapping[str, Any]) -> bool:
    carry_over = CARRY_OVERS.get(optimizer)
    if carry_over is None:
        return False
    value = optim_args.get(carry_over.key, carry_over.by_default)
    return str(value).lower() not in ("false", "none", "0", "")


def _optim_args(value: Any) -> Mapping[str, Any]:
    """``optim_args`` as a mapping; Axolotl accepts ``key=value,key=value`` too."""
    if isinstance(value, Mapping):
        return value
    pairs = (pair.partition("=") for pair in str(value or "").replace(" ", "").split(","))
    return {key: text for key, _, text in pairs}
