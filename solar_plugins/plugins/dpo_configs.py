"""Published settings for preference training, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from solar_plugins.plugins.manager import known, registered
from solar_plugins.plugins.markers import hookimpl


@dataclass(frozen=True, slots=True, kw_only=True)
class DPOConfig:
    """Named settings for preference training.

    Args:
        name: The value of ``solar.dpo``.
        values: Axolotl keys and their values.
        global_batch: Pairs per optimizer step, over all devices. Axolotl has no key for it, so a recipe has to make it
            true: devices x ``micro_batch_size`` x ``gradient_accumulation_steps``.
        source: Where the values were published.
    """

    name: str
    values: Mapping[str, Any]
    global_batch: int
    source: str


OTHER_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "rl_beta": ("dpo_beta", "trl.beta"),
    "warmup_ratio": ("warmup_steps",),
    "num_epochs": ("max_steps",),
}
"""Other Axolotl keys that set the same value or exclude it, by key."""


def settings_for(recipe: Mapping[str, Any], config: DPOConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split ``config`` into the values to fill into a recipe, and the recipe's own values that differ.

    Args:
        recipe: The recipe's keys.
        config: Named settings.

    Returns:
        The values to fill in, and the recipe's own values that are kept.
    """
    own = {key: _own_value(recipe, key) for key in config.values}
    filled = {key: value for key, value in config.values.items() if own[key] is None}
    kept = dict(pair for key, value in config.values.items() if (pair := own[key]) is not None and pair[1] != value)
    return filled, kept


def _own_value(recipe: Mapping[str, Any], key: str) -> tuple[str, Any] | None:
    for spelling in (key, *OTHER_SPELLINGS.get(key, ())):
        block: Any = recipe
        *outer, last = spelling.split(".")
        for part in outer:
            block = block.get(part)
            if not isinstance(block, Mapping):
                break
        if isinstance(block, Mapping) and block.get(last) is not None:
            return spelling, block[last]
    return None


def dpo_config(name: str) -> DPOConfig:
    """The settings for preference training called ``name``.

    Raises:
        PluginError: They are not registered.
    """
    return known(registered("register_dpo_configs", DPOConfig), name, "DPO setting")


@hookimpl
def register_dpo_configs() -> list[DPOConfig]:
    """The built-in settings. SOLAR's own were not published; the same authors' sDPO paper uses Zephyr's."""
    zephyr_2023_11 = {
        "rl": "dpo",
        "rl_beta": 0.1,
        "learning_rate": 5e-7,
        "lr_scheduler": "linear",
        "warmup_ratio": 0.1,
        "num_epochs": 3,
        "sequence_len": 1024,
        "optimizer": "rmsprop",
    }
    zephyr_2024_01 = zephyr_2023_11 | {
        "rl_beta": 0.01,
        "lr_scheduler": "cosine",
        "num_epochs": 1,
        "optimizer": "adamw_torch",
    }
    return [
        DPOConfig(
            name="zephyr_2023_11",
            values=zephyr_2023_11,
            global_batch=32,
            source="Tunstall et al. 2023, arXiv:2310.16944, sec. 4; alignment-handbook of November 2023",
        ),
        DPOConfig(
            name="zephyr_2024_01",
            values=zephyr_2024_01,
            global_batch=128,
            source="alignment-handbook, recipes/zephyr-7b-beta/dpo/config_full.yaml, of January 2024 on",
        ),
        DPOConfig(
            name="sdpo",
            values=zephyr_2023_11,
            global_batch=32,
            source="Kim et al. 2024, arXiv:2403.19270, which follows Zephyr of November 2023",
        ),
    ]
