"""Published values, from the Zephyr paper (arXiv:2310.16944) and alignment-handbook's recipes/zephyr-7b-beta."""

import pytest

from solar_plugins.plugins.dpo_configs import DPOConfig, dpo_config, settings_for

CONFIG = DPOConfig(name="x", values={"rl": "dpo", "rl_beta": 0.1, "warmup_ratio": 0.1}, global_batch=8, source="here")


@pytest.mark.parametrize("name", ["zephyr_2023_11", "sdpo"])
def test_zephyr_of_november_2023_which_the_sdpo_paper_follows(name):
    config = dpo_config(name)
    assert config.values == {
        "rl": "dpo",
        "learning_rate": 5e-7,
        "lr_scheduler": "linear",
        "warmup_ratio": 0.1,
        "rl_beta": 0.1,
        "num_epochs": 3,
        "sequence_len": 1024,
        "optimizer": "rmsprop",
    }
    assert config.global_batch == 32


def test_zephyr_of_january_2024():
    config = dpo_config("zephyr_2024_01")
    assert (config.values["rl_beta"], config.values["num_epochs"], config.values["lr_scheduler"]) == (0.01, 1, "cosine")
    assert (config.values["optimizer"], config.values["learning_rate"]) == ("adamw_torch", 5e-7)
    assert config.global_batch == 8 * 8 * 2, "devices x batch x accumulation"


def test_an_empty_recipe_gets_everything():
    assert settings_for({}, CONFIG) == (dict(CONFIG.values), {})


def test_the_recipes_own_values_win():
    recipe = {"rl": "ipo", "rl_beta": 0.1}
    assert settings_for(recipe, CONFIG) == ({"warmup_ratio": 0.1}, {"rl": "ipo"})
    assert recipe == {"rl": "ipo", "rl_beta": 0.1}


@pytest.mark.parametrize(
    ("own", "left_out"),
    [({"dpo_beta": 0.2}, "rl_beta"), ({"trl": {"beta": 0.2}}, "rl_beta"), ({"warmup_steps": 5}, "warmup_ratio")],
)
def test_aliases_of_a_key_also_override(own, left_out):
    filled, kept = settings_for(own, CONFIG)
    assert left_out not in filled
    assert list(kept.values()) == [0.2 if left_out == "rl_beta" else 5]


def test_it_can_be_done_twice():
    recipe = {"rl_beta": 0.3}
    filled, _ = settings_for(recipe, CONFIG)
    assert settings_for(recipe | filled, CONFIG) == ({}, {"rl_beta": 0.3})
