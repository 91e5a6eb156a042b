import logging

import pytest

from solar_plugins.axolotl_adapter.recipe_checks import changes, check_recipe, formatted_datasets, log_named_settings
from solar_plugins.data.template import template_text
from solar_plugins.errors import ArgsError, PluginError
from solar_plugins.recipe import parse_recipe

SFT = {"sequence_len": 64, "datasets": [{"path": "a.jsonl", "type": "solar_plugins.alpaca"}]}
DPO = {"sequence_len": 64, "rl": "dpo", "datasets": [{"path": "b.jsonl", "type": "solar_plugins.orca_dpo_pairs"}]}


def entry(recipe, **keys):
    return recipe | {"datasets": [recipe["datasets"][0] | keys]}


def test_datasets_with_our_formatters_are_found_among_others():
    recipe = SFT | {
        "datasets": [{"path": "x", "type": "completion"}, *SFT["datasets"], {"path": "y", "type": {"field": "z"}}],
        "test_datasets": [
            {"path": "hub/set", "name": "one", "data_files": ["t.jsonl"], "type": "solar_plugins.metamath"}
        ],
    }
    found = check_recipe(parse_recipe(recipe))
    assert [(one.key, one.number, one.formatter.name) for one in found] == [
        ("datasets", 1, "alpaca"),
        ("test_datasets", 0, "metamath"),
    ]
    assert [one.where for one in found] == ["datasets[1] (a.jsonl)", "test_datasets[0] (hub/set one t.jsonl)"]


@pytest.mark.parametrize("recipe", [{}, {"datasets": None}, {"datasets": "x"}, {"datasets": [{"path": "x"}, None]}])
def test_another_recipe_is_not_changed(recipe):
    parsed = parse_recipe(recipe)
    assert check_recipe(parsed) == []
    assert changes(parsed) == {}


def test_the_template_by_name():
    for recipe in ({"chat_template": "solar"}, SFT | {"chat_template": "solar"}):
        parsed = parse_recipe(recipe)
        check_recipe(parsed)
        assert changes(parsed) == {"chat_template": "jinja", "chat_template_jinja": template_text()}
        again = parse_recipe(recipe | changes(parsed))  # Axolotl may call `register` again, with what it left.
        check_recipe(again)
        assert changes(again) == {}


def test_the_template_as_a_file(tmp_path):
    (tmp_path / "copy.jinja").write_text(template_text() + "\n")
    check_recipe(parse_recipe(SFT | {"chat_template": "jinja", "chat_template_jinja": str(tmp_path / "copy.jinja")}))


@pytest.mark.parametrize(
    ("method", "needs"),
    [
        ("dpo", {}),
        ("ipo", {}),
        ("orpo", {}),
        ("simpo", {"simpo_gamma": 0.5, "warmup_steps": 10}),
        ("kto", {"remove_unused_columns": False}),
    ],
)
def test_each_method_that_trains_on_pairs(method, needs):
    assert [one.formatter.name for one in check_recipe(parse_recipe(DPO | {"rl": method} | needs))] == [
        "orca_dpo_pairs"
    ]


@pytest.mark.parametrize(
    ("recipe", "kind", "facts"),
    [
        (
            DPO | {"rl": None},
            ArgsError,
            [
                "datasets[0].type: solar_plugins.orca_dpo_pairs yields preference pairs",
                "no rl:",
                "Add rl: dpo, or use one of alpaca, alpaca_prompt, messages, metamath, openorca",
            ],
        ),
        (
            SFT | {"rl": "dpo"},
            ArgsError,
            [
                "datasets[0].type: solar_plugins.alpaca yields conversations, but rl: dpo ",
                "Remove rl:, or use one of hh_rlhf, math_pairs, orca_dpo_pairs, preference, sharegpt_pairs, ultraf",
            ],
        ),
        (
            entry(DPO, type="solar_plugins.unpaired_preference"),
            ArgsError,
            [
                "datasets[0].type: solar_plugins.unpaired_preference yields single answers",
                "Set rl: kto, or use one of hh_rlhf",
            ],
        ),
        (DPO | {"rl": "grpo"}, ArgsError, ["rl: grpo ", "datasets[0].type: solar_plugins.orca", "one of dpo,"]),
        (
            entry(SFT, type="solar_plugins.alpca"),
            PluginError,
            ["datasets[0].type: 'alpca' is not a registered SFT formatter; did you mean alpaca?", "known: alpaca,"],
        ),
        (
            entry(DPO, type="solar_plugins.orca"),
            PluginError,
            ["datasets[0].type: 'orca' is not a registered preference formatter", "known: hh_rlhf, math_pairs"],
        ),
        (entry(SFT, type="solar_plugins.data"), PluginError, ["'data' is not a registered SFT formatter"]),
        (
            entry(SFT, field_messages="x"),
            ArgsError,
            ["datasets[0].field_messages: has no effect on type: solar_plugins"],
        ),
        (
            entry(DPO, name="x"),
            ArgsError,
            ["datasets[0].name: has no effect on type: solar_plugins.orca_dpo_pairs under rl"],
        ),
        (entry(SFT, path=None), ArgsError, ["datasets[0].path: missing; expected a file, a directory or a hub id"]),
        (SFT | {"train_on_inputs": True}, ArgsError, ["train_on_inputs: True ", "remove the key"]),
        (SFT | {"streaming": True}, ArgsError, ["streaming: True ", "remove the key"]),
        (SFT | {"skip_prepare_dataset": True}, ArgsError, ["skip_prepare_dataset: True ", "remove the key"]),
        (SFT | {"processor_type": "AutoProcessor"}, ArgsError, ["processor_type: 'AutoProcessor' ", "remove the key"]),
        (SFT | {"sequence_len": None}, ArgsError, ["sequence_len: None is not allowed; expected a valid integer"]),
        (DPO | {"sample_packing": True}, ArgsError, ["sample_packing: True; rl: dpo ", "remove the key"]),
        (DPO | {"eval_sample_packing": True}, ArgsError, ["eval_sample_packing: True; rl: dpo ", "remove the key"]),
        (DPO | {"rl": "kto"}, ArgsError, ["remove_unused_columns: None; rl: kto ", "Set remove_unused_columns: false"]),
        (DPO | {"rl": "simpo"}, ArgsError, ["simpo_gamma: None; rl: simpo ", "Set simpo_gamma"]),
        (DPO | {"rl": "simpo", "simpo_gamma": True}, ArgsError, ["simpo_gamma: True; rl: simpo "]),
        (
            DPO | {"rl": "simpo", "simpo_gamma": 0.5, "warmup_ratio": 0.1},
            ArgsError,
            ["warmup_ratio: 0.1; ", "Set warmup_steps"],
        ),
        (SFT | {"chat_template": "chatml"}, ArgsError, ["chat_template: chatml ", "set chat_template: solar"]),
        (
            SFT | {"chat_template": "jinja", "chat_template_jinja": "{{ messages }}"},
            ArgsError,
            ["chat_template: jinja ", "set chat_template: solar"],
        ),
    ],
)
def test_settings_that_are_rejected(recipe, kind, facts):
    with pytest.raises(kind) as error:
        check_recipe(parse_recipe(recipe))
    for fact in facts:
        assert fact in str(error.value)


def test_disabled_keys_are_accepted():
    check_recipe(parse_recipe(entry(SFT, roles_to_train=None, drop_system_message=False) | {"streaming": False}))


def test_named_settings_are_applied_first_and_logged(caplog):
    caplog.set_level(logging.INFO, logger="axolotl.solar_plugins.formatters")
    recipe = parse_recipe({"datasets": DPO["datasets"], "learning_rate": 1e-6, "solar": {"dpo": "zephyr_2024_01"}})
    assert len(check_recipe(recipe)) == 1, "rl and sequence_len come from the named settings"
    filled = changes(recipe)
    assert (filled["rl"], filled["rl_beta"], "learning_rate" in filled) == ("dpo", 0.01, False)
    log_named_settings(recipe)
    said = "\n".join(caplog.messages)
    assert "solar.dpo: zephyr_2024_01 sets rl: dpo, rl_beta: 0.01, lr_scheduler: cosine" in said
    assert "the recipe overrides learning_rate: 1e-06" in said
    assert "global batch of 128 pairs" in said


def test_an_unknown_setting():
    with pytest.raises(
        PluginError,
        match=r"solar.dpo: 'zephyr' is not a registered DPO setting; did you mean zephyr_2024_01\? known: sdpo",
    ):
        parse_recipe(DPO | {"solar": {"dpo": "zephyr"}})


def test_formatted_datasets_checks_nothing_else():
    assert len(list(formatted_datasets(parse_recipe(SFT | {"streaming": True})))) == 1
