"""What this package relies on in Axolotl and in the packages that Axolotl pins; run it first with a new Axolotl.

The id of a failing test names our files that rely on the fact. Facts are tested by running code in this process; source
text is read only where a run takes minutes, and then the slow test that runs it is named. Facts that need other
fixtures are tested elsewhere: Axolotl's freezing and TRL's losses in tests/unit/memory, its `type: chat_template` in
data/test_encoder.py, its loaders with our datasets in test_datasets.py, the tokens of TRL's trainers in
tests/axolotl/test_trainer_tokens.py. Complete runs are in tests/axolotl and tests/distributed.
"""

import ast
import importlib
import inspect
import json
import logging
import os
import re
import shutil
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import axolotl
import pytest
import torch
import yaml
from axolotl.utils.dict import DictDefault
from pydantic import TypeAdapter, ValidationError

import solar_plugins
from solar_plugins import SolarPlugin
from solar_plugins.recipe import PAIR_METHODS, AxolotlKeys, parse_recipe

pytestmark = pytest.mark.slow

PACKAGE = Path(solar_plugins.__file__).parent
INSTALLED = Path(axolotl.__file__).parent
PINNED = ("axolotl", "accelerate", "datasets", "fire", "lm_eval", "peft", "torch", "transformers", "trl")
UPSCALED = "upscaled-8-to-12-0123456789abcdef"
"""A checkpoint's name from `upscaling/checkpoint.py`."""


def source(thing):
    return inspect.getsource(thing)


NAMED = set()


def relied_on_by(*files):
    """A fixture that puts our files into the ids of a class's tests, so that a failing test names them."""
    NAMED.update(files)
    return pytest.fixture(autouse=True, params=[" ".join(files)])(lambda self: None)


class Stop(Exception):
    """Stops an Axolotl command once the fact has been seen."""


# --- every import ---------------------------------------------------------------------------------------------------


def imported_names():
    """Every name that our modules import from Axolotl or its pins, at any depth: ``(our file, module, name)``."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            file = path.relative_to(PACKAGE).as_posix()
            if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in PINNED:
                found |= {(file, node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {(file, alias.name, "") for alias in node.names if alias.name.split(".")[0] in PINNED}
    return sorted(found)


IMPORTED = imported_names()


@pytest.mark.parametrize(("file", "module", "name"), IMPORTED)
def test_every_import(file, module, name):
    imported = importlib.import_module(module)
    assert not name or hasattr(imported, name), f"{file} imports {name} from {module}"


def test_axolotl_is_imported_in_axolotl_adapter_only():
    axolotls = [(file, module) for file, module, _ in IMPORTED if module.split(".")[0] == "axolotl"]
    assert len(axolotls) >= 6
    assert {Path(file).parts[0] for file, _ in axolotls} == {"axolotl_adapter"}


def test_every_module_of_axolotl_adapter_has_tests_here():
    assert [file for file in sorted(NAMED) if not (PACKAGE / file).is_file()] == [], "files that do not exist"
    modules = {path.relative_to(PACKAGE).as_posix() for path in (PACKAGE / "axolotl_adapter").glob("*.py")}
    without_facts = {"axolotl_adapter/__init__.py", "axolotl_adapter/excepthook.py"}
    assert modules - without_facts == {file for file in NAMED if file.startswith("axolotl_adapter/")}


# --- the life of a run ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def life(made_bases, tmp_path_factory):
    """One call of `load_cfg`: the argument of `register`, the result, and the order of the calls."""
    from axolotl.cli import config as command

    folder = tmp_path_factory.mktemp("life")
    upscaled = folder / UPSCALED
    shutil.copytree(made_bases / "mistral", upscaled)
    recipe = {
        "base_model": "meta-llama/nowhere",
        "plugins": ["solar_plugins.SolarPlugin"],
        "solar": {"init": {"strategy": "dus", "drop_layers": 2}},
        "learning_rte": 1,
        "datasets": [{"path": "x.jsonl", "type": "completion"}],
        "output_dir": str(folder / "out"),
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "bf16": False,
    }
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    seen = SimpleNamespace(order=[], upscaled=str(upscaled))

    def register(self, cfg):
        seen.order.append("register")
        seen.cfg, seen.raw = cfg, cfg.to_dict()
        seen.process_group = torch.distributed.is_initialized()
        cfg["base_model"] = seen.upscaled
        cfg["solar"] = {"init": {"strategy": "dus", "drop_layers": 3}}

    get_input_args, environment = SolarPlugin.get_input_args, dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SolarPlugin, "register", register)
        patch.setattr(
            SolarPlugin, "get_input_args", lambda self: seen.order.append("get_input_args") or get_input_args(self)
        )
        patch.setattr(command, "prepare_debug_log", lambda cfg: None)  # It takes hold of sys.stdout.
        seen.result = command.load_cfg(str(folder / "recipe.yml"), solar__init__drop_layers=3, micro_batch_size=2)
    os.environ.clear()
    os.environ.update(environment)
    return seen


class TestThePluginsLife:
    files = relied_on_by("axolotl_adapter/plugin.py", "axolotl_adapter/ignored_keys.py", "__init__.py")

    def test_register_comes_after_the_command_line_and_before_validation(self, life):
        assert life.order[0] == "register"
        assert life.order.count("register") == 1, "one instance, although listed and an entry point"
        assert "get_input_args" in life.order
        assert life.raw["micro_batch_size"] == 2
        assert "sequence_len" not in life.raw, "no defaults yet"
        assert isinstance(life.cfg, DictDefault)

    def test_register_runs_without_a_process_group(self, life):
        assert life.process_group is False

    def test_the_base_model_that_register_sets_is_used(self, life):
        assert life.result.base_model == life.upscaled
        assert life.result.base_model_config == life.upscaled
        assert life.result.tokenizer_config == life.upscaled
        assert life.result.model_config_type == "mistral"

    def test_validation_keeps_our_block_and_drops_unknown_keys(self, life):
        assert life.result.solar == {"init": {"strategy": "dus", "drop_layers": 3}}
        assert "learning_rte" not in life.result

    def test_all_plugins_are_loaded_before_the_first_registers(self, monkeypatch):
        """So `register` can distinguish a misspelled key from another plugin's."""
        from axolotl.integrations.base import PluginManager
        from axolotl.integrations.config import merge_input_args
        from axolotl.utils.config import prepare_plugins

        manager, seen = PluginManager.get_instance(), []
        monkeypatch.setattr(manager, "plugins", dict(manager.plugins))
        monkeypatch.setattr(SolarPlugin, "register", lambda self, cfg: seen.append(merge_input_args()[1].model_fields))
        plugins = ["solar_plugins.SolarPlugin", "axolotl.integrations.liger.LigerPlugin"]
        prepare_plugins(DictDefault({"plugins": plugins}))
        assert "liger_fused_linear_cross_entropy" in seen[0]

    def test_our_schema_is_merged_into_axolotls(self):
        from axolotl.integrations.config import merge_input_args

        for schema in merge_input_args():
            assert "solar" in schema.model_fields
        with pytest.raises(ValidationError, match=r"solar\.int\n.*Extra inputs are not permitted"):
            validated(solar={"int": {}})

    @pytest.mark.parametrize(
        "hook", ["register", "load_datasets", "post_trainer_create", "post_train", "get_input_args"]
    )
    def test_hooks_have_our_parameters(self, hook):
        from axolotl.integrations.base import BasePlugin

        ours, theirs = (inspect.signature(getattr(owner, hook)).parameters for owner in (SolarPlugin, BasePlugin))
        assert [(name, one.default) for name, one in ours.items()] == [(n, one.default) for n, one in theirs.items()]
        assert inspect.signature(BasePlugin).parameters == {}

    def test_it_is_found_by_its_entry_point(self):
        from axolotl.integrations.base import PLUGIN_ENTRY_POINT_GROUP, get_builtin_plugins, normalize_plugin_name

        (ours,) = (point for point in entry_points(group=PLUGIN_ENTRY_POINT_GROUP) if point.name == "solar")
        assert normalize_plugin_name(ours.value) == "solar_plugins.SolarPlugin", "as listed in a recipe"
        assert "solar_plugins.SolarPlugin" in get_builtin_plugins()

    def test_plugins_are_asked_for_datasets_before_axolotl_loads_any(self, monkeypatch):
        import axolotl.cli.train as command
        from axolotl.integrations.base import PluginManager

        order = []
        hook = lambda self, cfg, preprocess: order.append(f"load_datasets preprocess={preprocess}")  # noqa: E731
        monkeypatch.setattr(PluginManager, "load_datasets", hook)
        monkeypatch.setattr(PluginManager, "post_train_unload", lambda self, cfg: None)
        for name in ("load_datasets", "load_preference_datasets"):
            monkeypatch.setattr(command, name, lambda name=name, **_: order.append(f"Axolotl's {name}"))
        monkeypatch.setattr(command, "train", lambda **_: order.append("train") or (None, None, None))
        for method in (None, "dpo"):
            command.do_train(DictDefault({"rl": method}), SimpleNamespace())
        asked = "load_datasets preprocess=False"
        assert order[:3] == [asked, "Axolotl's load_datasets", "train"], "None means: load them yourself"
        assert order[3:] == [asked, "Axolotl's load_preference_datasets", "train"]

    def test_preprocess_asks_plugins_too(self, monkeypatch):
        import axolotl.cli.preprocess as command
        from axolotl.integrations.base import PluginManager

        order = []
        monkeypatch.setattr(PluginManager, "load_datasets", lambda self, cfg, preprocess: order.append(preprocess))
        monkeypatch.setattr(command, "load_datasets", lambda **_: order.append("Axolotl's"))
        command.do_preprocess(DictDefault({"dataset_prepared_path": "p"}), SimpleNamespace(iterable=0, download=False))
        assert order == [True, "Axolotl's"]

    def test_post_train_is_called_twice(self):
        """Our `post_train` logs its lines once. Run in tests/axolotl/test_pipeline.py."""
        import axolotl.train

        assert source(axolotl.train).count(".post_train(cfg, ") == 2

    def test_merge_lora_loads_the_recipe_twice(self, monkeypatch):
        """So `register` has to be idempotent."""
        import axolotl.cli.merge_lora as command

        calls = []

        def load_cfg(config, **_):
            calls.append(config)
            if len(calls) == 2:
                raise Stop
            return DictDefault({})

        monkeypatch.setattr(command, "load_cfg", load_cfg)
        with pytest.raises(Stop):
            command.do_cli("recipe.yml")
        assert calls == ["recipe.yml"] * 2

    def test_inference_sets_a_key_of_the_recipe(self, monkeypatch):
        import axolotl.cli.inference as command

        seen = {}

        def load_cfg(config, **keys):
            seen.update(keys)
            raise Stop

        monkeypatch.setattr(command, "load_cfg", load_cfg)
        with pytest.raises(Stop):
            command.do_cli("recipe.yml")
        assert seen["inference"] is True

    def test_base_model_config_overrides_the_config(self, made_bases):
        """Why we reject the key."""
        from axolotl.loaders.utils import load_model_config

        cfg = DictDefault(base_model=str(made_bases / "llama"), base_model_config=str(made_bases / "mistral"))
        assert load_model_config(cfg).model_type == "mistral"

    def test_overrides_of_model_config_are_set_on_the_config_of_the_weights(self, made_bases):
        """Why we reject layer keys there."""
        from axolotl.loaders.utils import load_model_config

        cfg = DictDefault(base_model=str(made_bases / "llama"), overrides_of_model_config={"num_hidden_layers": 12})
        assert load_model_config(cfg).num_hidden_layers == 12

    def test_the_revision_is_that_of_base_model(self, monkeypatch):
        """We remove it once `base_model` is a directory."""
        from axolotl.loaders import utils

        asked = {}

        def from_pretrained(name, **keys):
            asked.update(keys)
            raise Stop

        monkeypatch.setattr(utils.AutoConfig, "from_pretrained", from_pretrained)
        with pytest.raises(Stop):
            utils.load_model_config(DictDefault(base_model="b", revision_of_model="main", trust_remote_code="yes"))
        assert asked == {"revision": "main", "trust_remote_code": False}, "and only `true` trusts code"


class TestNamesOfCheckpoints:
    files = relied_on_by("upscaling/checkpoint.py")

    def test_no_part_of_the_name_is_read_as_a_model_type(self, life):
        """Axolotl looks for "llama", "mistral" and others in the path."""
        code = "".join(path.read_text() for path in INSTALLED.rglob("*.py"))
        words = set(re.findall(r'"([\w-]+)"\s+in\s+(?:self|cfg)\.base_model\b', code))
        assert words >= {"llama", "mistral", "falcon"}
        assert [word for word in words if word in UPSCALED] == []
        assert (bool(life.result.is_llama_derived_model), life.result.is_mistral_derived_model) == (False, True)
        assert not life.result.is_multimodal


class TestLoggers:
    files = relied_on_by("logs.py", "axolotl_adapter/plugin.py")

    @pytest.mark.parametrize(("name", "shown"), [("axolotl.solar_plugins.x", True), ("solar_plugins.x", False)])
    def test_info_is_shown_only_of_loggers_under_axolotl(self, name, shown, monkeypatch):
        from axolotl.logging_config import AxolotlOrWarnErrorFilter

        for variable in ("AXOLOTL_LOG_LEVEL", "LOG_LEVEL"):
            monkeypatch.delenv(variable, raising=False)
        record = logging.makeLogRecord({"name": name, "levelno": logging.INFO})
        assert AxolotlOrWarnErrorFilter().filter(record) is shown
        assert solar_plugins.logs.logger("x").name == "axolotl.solar_plugins.x"

    def test_axolotls_own_logger_logs_only_on_the_main_process(self, monkeypatch, caplog):
        import axolotl.utils.logging as module

        caplog.set_level(logging.INFO, logger="axolotl.solar_plugins.plugin")
        monkeypatch.setattr(module, "is_main_process", lambda: False)
        module.get_logger("axolotl.solar_plugins.plugin").info("not logged")
        assert caplog.messages == []


# --- the command line -----------------------------------------------------------------------------------------------


class TestCommandLine:
    files = relied_on_by("axolotl_adapter/ignored_keys.py", "solar_block.py", "cli.py")
    MODULES = ("train", "evaluate", "inference", "merge_lora", "merge_sharded_fsdp_weights", "preprocess")

    def test_load_cfg_splits_an_option_at_its_first_double_underscore(self, life):
        assert life.raw["solar"] == {"init": {"strategy": "dus", "drop_layers": 2}, "init__drop_layers": 3}

    @pytest.mark.parametrize("module", MODULES)
    def test_modules_run_as_commands_use_fire(self, module):
        command = importlib.import_module(f"axolotl.cli.{module}")
        assert "fire.Fire(do_cli)" in source(command)
        assert Path(command.__file__).parent.parts[-2:] == ("axolotl", "cli")

    @pytest.mark.parametrize(
        ("arguments", "keys"),
        [
            (["--solar__init__drop_layers=1"], {"solar__init__drop_layers": 1}),
            (["--solar--init--drop-layers", "1"], {"solar__init__drop_layers": 1}),
            (["--solar.init.drop_layers=1"], {"solar.init.drop_layers": 1}),
            (["-solar-init-drop_layers=1"], {"solar_init_drop_layers": 1}),
            (["--", "--solar__init__drop_layers=1"], {}),
        ],
    )
    def test_fire_turns_options_into_keys(self, arguments, keys, capsys):
        import fire

        assert fire.Fire(lambda config, **keys: keys, command=["r.yml", *arguments]) == keys

    def test_the_front_end_ignores_unknown_options_of_some_commands_and_rejects_them_for_others(self):
        import click
        from axolotl.cli.main import cli

        lenient = {name for name, one in cli.commands.items() if one.context_settings.get("ignore_unknown_options")}
        assert lenient == {"train", "evaluate", "inference", "merge-sharded-fsdp-weights"}
        assert {name.replace("-", "_") for name in lenient} <= set(self.MODULES)
        with cli.commands["train"].make_context("train", [__file__, "--solar__x=1", "--", "--solar__y=1"]) as context:
            assert context.args == ["--solar__x=1", "--solar__y=1"]
        for name in cli.commands.keys() - lenient:
            with pytest.raises(click.UsageError):
                cli.commands[name].make_context(name, [__file__, "--solar__x=1"])
        assert type(cli).__module__.startswith("axolotl.")

    @pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
    def test_it_passes_them_to_the_launcher_which_rejects_them(self, launcher, monkeypatch, capsys):
        from accelerate.commands.launch import launch_command_parser
        from axolotl.cli.utils import launch_training
        from torch.distributed.run import get_args_parser

        commands = []
        monkeypatch.setattr(os, "execvpe", lambda file, command, environment: commands.append(command))
        launch_training("r.yml", launcher, None, {}, ["--solar__x=1"], use_exec=True)
        [command] = commands
        assert command[-4:] == ["--solar__x=1", "-m", "axolotl.cli.train", "r.yml"]
        parser = {"accelerate": launch_command_parser, "torchrun": get_args_parser}[launcher]()
        with pytest.raises(SystemExit):
            parser.parse_args(command[2 if launcher == "accelerate" else 1 :])
        assert "unrecognized arguments: --solar__x=1" in capsys.readouterr().err

    def test_without_a_launcher_it_trains_in_its_own_process_and_drops_them(self, monkeypatch):
        import axolotl.cli.train as command
        from axolotl.cli.utils import launch_training

        calls = []
        monkeypatch.setattr(command, "do_cli", lambda **keys: calls.append(keys))
        for launcher in ("python", None):
            launch_training("r.yml", launcher, None, {}, ["--solar__x=1"], use_exec=True)
        assert calls == [{"config": "r.yml"}] * 2

    def test_our_commands_are_in_axolotls_cli(self):
        from axolotl.cli.main import cli
        from axolotl.cli.plugins import ENTRY_POINT_GROUP

        from solar_plugins.cli import solar

        assert [point.value for point in entry_points(group=ENTRY_POINT_GROUP) if point.name == "solar"] == [
            "solar_plugins.cli:solar"
        ]
        assert cli.get_command(None, "solar").resolve() is solar


# --- what a run resumes from, and what it freezes -------------------------------------------------------------------


class TestResuming:
    files = relied_on_by("axolotl_adapter/resume.py")

    @pytest.mark.parametrize("keys", [{}, {"auto_resume_from_checkpoints": True}, {"resume_from_checkpoint": "x"}])
    def test_the_checkpoint_to_resume_from(self, keys, tmp_path):
        from axolotl.utils.train import determine_last_checkpoint

        from solar_plugins.axolotl_adapter.resume import checkpoint_to_resume

        for name in ("checkpoint-9", "checkpoint-10", "checkpoint-best", "other-11"):
            (tmp_path / name).mkdir()
        recipe = {"output_dir": str(tmp_path)} | keys
        found, expected = checkpoint_to_resume(parse_recipe(recipe)), determine_last_checkpoint(DictDefault(recipe))
        assert (found and str(found)) == expected


class TestSolarTrain:
    files = relied_on_by("axolotl_adapter/trained_parameters.py", "upscaling/trained_layers.py", "memory/parameters.py")

    @pytest.mark.parametrize(
        "line", ["model.layers.1.", "layers.1.", r"model\\.layers\\.[0-9]+", "^model.layers.1", "model.norm"]
    )
    def test_unfrozen_patterns(self, line):
        from axolotl.utils.freeze import LayerNamePattern

        from solar_plugins.memory.parameters import unfrozen_pattern

        name = "model.layers.1.mlp.down_proj.weight"
        assert bool(unfrozen_pattern(line).match(name)) == bool(LayerNamePattern(line).match(name))

    def test_the_model_is_frozen_before_the_trainer_is_created(self):
        from axolotl import train

        made = source(train.setup_model_and_trainer)
        calls = ("setup_model_and_tokenizer", "setup_trainer", "post_trainer_create")
        places = [made.index(f"{call}(") for call in calls]
        assert places == sorted(places)
        assert "freeze_layers_except(model, cfg.unfrozen_parameters)" in source(train.setup_model_and_tokenizer)

    def test_an_adapter_covers_the_layers_that_the_recipe_names(self):
        from axolotl.loaders import adapter
        from peft import LoraConfig

        made = source(adapter._build_peft_lora_config)
        assert "layers_to_transform=cfg.peft_layers_to_transform" in made
        assert "layers_pattern=cfg.peft_layers_pattern" in made
        with pytest.raises(ValueError, match="layers_to_transform"):
            LoraConfig(target_modules=".*q_proj", layers_to_transform=[1])

    def test_the_trainer_creates_the_optimizer_before_the_schedule(self):
        from transformers import Trainer

        made = source(Trainer._prepare_for_training)
        assert made.index("self.create_optimizer()") < made.index("self.create_scheduler(")
        assert list(inspect.signature(Trainer.create_optimizer).parameters) == ["self", "model"]

    def test_which_schedules_set_one_rate_for_all_groups(self):
        from axolotl.core.trainers.mixins.scheduler import SchedulerMixin

        from solar_plugins.upscaling.trained_layers import ABSOLUTE_SCHEDULES

        made = source(SchedulerMixin.create_scheduler)
        assert made.count("max_lr=self.args.learning_rate") == len(ABSOLUTE_SCHEDULES)
        for name in ABSOLUTE_SCHEDULES:
            assert f'alternate_lr_scheduler_type == "{name}"' in made


# --- the recipe -----------------------------------------------------------------------------------------------------

OF_OTHER_SCHEMAS = {
    "cut_cross_entropy": "axolotl.integrations.cut_cross_entropy.args.CutCrossEntropyArgs",
    "liger_fused_linear_cross_entropy": "axolotl.integrations.liger.args.LigerArgs",
    "expert_parallel_size": "axolotl.integrations.expert_parallel.args.ExpertParallelArgs",
    "inference": None,
}
"""Keys of Axolotl's own plugins, and one that its inference command sets, which is in no schema."""

SAMPLES = [None, True, False, 0, 3, 0.5, "3", "auto", "yes", "text", ["a"], {"a": 1}]
TYPED = [name for name, field in AxolotlKeys.model_fields.items() if field.annotation is not Any]
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def schema():
    from axolotl.utils.schemas.config import AxolotlInputConfig

    return AxolotlInputConfig.model_fields


def validated(**keys):
    from axolotl.utils.config import validate_config

    recipe = {"base_model": "b", "micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 1e-4}
    return validate_config(DictDefault(recipe | {"datasets": [{"path": "p", "type": "t"}]} | keys))


class TestRecipe:
    files = relied_on_by("recipe.py")

    @pytest.mark.parametrize("name", AxolotlKeys.model_fields)
    def test_names_and_defaults(self, name):
        ours, fields = AxolotlKeys.model_fields[name], schema()
        if name == "base_model":
            assert fields[name].is_required(), "we reject a recipe without it only where the base is needed"
        elif name not in OF_OTHER_SCHEMAS:
            assert ours.default == fields[name].default
        else:
            # A key of an Axolotl plugin may default to True if the plugin is listed; otherwise it does not exist.
            assert name not in fields
            if OF_OTHER_SCHEMAS[name]:
                module, _, owner = OF_OTHER_SCHEMAS[name].rpartition(".")
                assert name in getattr(importlib.import_module(module), owner).model_fields

    @pytest.mark.parametrize("name", TYPED)
    def test_values_that_axolotl_accepts_are_read_alike(self, name):
        """For every typed key: a value that Axolotl's field accepts is accepted here, with the same result."""
        theirs = TypeAdapter(schema()[name].annotation)
        for sample in SAMPLES:
            try:
                expected = theirs.validate_python(sample)
            except ValidationError:
                continue
            found = getattr(parse_recipe({name: sample}), name)
            assert found in (getattr(expected, "value", expected), sample), f"{name}: {sample!r}"

    def test_methods_of_preference_training(self):
        """Any change of the methods needs a look."""
        from axolotl.utils.schemas.enums import RLType

        assert {method.value for method in RLType} == {*PAIR_METHODS, "gdpo", "grpo", "ebft"}

    def test_other_names_of_keys(self):
        from solar_plugins.recipe import CONFIG_OVERRIDE_KEYS, REVISION_KEYS

        for name, alias in (CONFIG_OVERRIDE_KEYS, REVISION_KEYS):
            assert schema()[name].alias == alias

    @pytest.mark.parametrize(
        "recipe",
        [
            {}, {"bf16": True}, {"bf16": "auto"}, {"bf16": False}, {"bf16": None}, {"bf16": False, "bfloat16": True},
            {"fp16": True}, {"fp16": True, "bf16": True}, {"fp16": True, "bf16": False}, {"float16": True},
            {"bf16": False, "float16": True}, {"bf16": False, "load_in_8bit": True}, {"bf16": False, "fp16": False},
        ],
    )  # fmt: skip
    def test_the_precision_of_weights(self, recipe, monkeypatch):
        import axolotl.utils.config

        monkeypatch.setattr(axolotl.utils.config, "is_torch_bf16_gpu_available", lambda: True)
        defaults = {key: schema()[key].default for key in ("bf16", "fp16", "bfloat16", "float16", "load_in_8bit")}
        cfg = DictDefault(defaults | recipe)
        axolotl.utils.config.resolve_dtype(cfg)
        assert parse_recipe(recipe).weight_precision == DTYPES[cfg.torch_dtype]

    def test_enums_have_string_values_after_validation(self):
        cfg = validated(rl="dpo", chat_template="jinja", chat_template_jinja="{{ x }}")
        assert (cfg.rl.value, cfg.chat_template.value) == ("dpo", "jinja")


class TestDictDefault:
    files = relied_on_by("axolotl_adapter/datasets.py", "axolotl_adapter/plugin.py", "recipe.py")

    def test_it_is_a_dict_without_key_errors(self, life):
        cfg = DictDefault({"a": {"b": 1}})
        assert isinstance(cfg, dict)
        assert cfg["gone"] is cfg.gone is cfg.get("gone") is None
        assert "gone" not in cfg
        assert cfg.a.b == 1
        assert cfg.pop("gone", None) is None
        assert type(cfg)({**cfg, "c": 2}).c == 2
        assert all(type(one) is DictDefault for one in life.result.datasets)


class TestRecipeChecks:
    files = relied_on_by("axolotl_adapter/recipe_checks.py", "plugins/dpo_configs.py")

    @pytest.mark.parametrize("method", [None, "dpo", "ipo", "simpo", "kto", "orpo"])
    def test_keys_of_a_dataset_that_validation_keeps(self, method):
        from solar_plugins.axolotl_adapter.recipe_checks import ENTRY_KEYS, SFT_ENTRY_KEYS

        values = {"data_files": ["f"], "trust_remote_code": True, "weight": 0.5, "shards": 2, "shards_idx": 1}
        entry = {key: "x" for key in SFT_ENTRY_KEYS} | values | {"preprocess_shards": 2}
        keys = {"rl": method, "remove_unused_columns": False} if method else {}
        kept = set(validated(datasets=[entry], **keys).datasets[0])
        if method in (None, "orpo"):
            assert kept >= SFT_ENTRY_KEYS
        else:
            # ``ds_type`` is dropped, so the suffix of the file decides.
            assert kept & SFT_ENTRY_KEYS == ENTRY_KEYS - {"ds_type"} | (
                {"trust_remote_code"} if method == "kto" else set()
            )

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"chat_template": "solar"}, "chat_template"),
            ({"rl": "dpo", "sample_packing": True}, "`sample_packing: true` does not work with RLHF"),
            ({"rl": "kto", "eval_sample_packing": True, "remove_unused_columns": False}, "not supported with kto"),
            ({"rl": "kto"}, "Set `remove_unused_columns: False` when using kto"),
            ({"rl": "simpo", "simpo_gamma": 0.5, "warmup_ratio": 0.1}, "not supported with the simpo trainer"),
        ],
    )
    def test_settings_that_axolotl_rejects_too(self, keys, message):
        """Ours is a message instead of a traceback."""
        with pytest.raises(ValidationError, match=message):
            validated(**keys)

    def test_a_template_is_a_text_or_the_path_of_one(self, tmp_path):
        from axolotl.utils.chat_templates import get_chat_template

        (tmp_path / "t.jinja").write_text("{{ x }}")
        assert get_chat_template("jinja", "{{ x }}") == get_chat_template("jinja", str(tmp_path / "t.jinja"))

    @pytest.mark.parametrize("name", ["zephyr_2023_11", "zephyr_2024_01", "sdpo"])
    def test_named_settings_are_valid_keys_and_values(self, name):
        from solar_plugins.plugins.dpo_configs import dpo_config

        values = dpo_config(name).values
        assert validated(**values) | values == validated(**values)

    def test_other_spellings(self):
        from solar_plugins.plugins.dpo_configs import OTHER_SPELLINGS

        for key, others in OTHER_SPELLINGS.items():
            assert {key, *(other.partition(".")[0] for other in others)} <= schema().keys()
        with pytest.raises(ValidationError, match="mutually exclusive"):
            validated(warmup_steps=5, warmup_ratio=0.1)
        assert validated(dpo_beta=0.2).rl_beta == 0.2


# --- datasets -------------------------------------------------------------------------------------------------------


def rows(**columns):
    from datasets import Dataset

    return Dataset.from_dict(columns)


class TestLocalFiles:
    files = relied_on_by("axolotl_adapter/local_files.py")

    @pytest.mark.parametrize(
        ("entry", "kind"),
        [
            ({"path": "a.jsonl"}, "json"),
            ({"path": "a.parquet"}, "parquet"),
            ({"path": "a.csv"}, "csv"),
            ({"path": "a.txt"}, "text"),
            ({"path": "a.txt", "ds_type": "json"}, "json"),
        ],
    )
    def test_the_format_of_a_file(self, entry, kind):
        from axolotl.utils.data.shared import get_dataset_type

        assert get_dataset_type(DictDefault(entry)) == kind

    def test_how_a_local_path_is_loaded(self):
        from axolotl.utils.data import shared

        source = inspect.getsource(shared._load_from_local_path)
        for line in ("load_from_disk(dataset_config.path)", "load_dataset(dataset_config.path, **load_dataset_kwargs)"):
            assert line in source
        assert source.count("data_files=dataset_config.data_files") == 1
        assert 'load_dataset_kwargs["split"] = "train"' in source


class TestChosenRows:
    files = relied_on_by("axolotl_adapter/chosen_rows.py", "data/row_selection.py")

    def test_a_validation_set_is_a_share_up_to_1_or_a_number(self):
        from axolotl.utils.data import rl, sft

        assert "int(cfg.val_set_size) if cfg.val_set_size > 1 else float(cfg.val_set_size)" in source(
            sft._handle_train_dataset_split
        )
        assert len(rows(a=[*range(10)]).train_test_split(0.11)["test"]) == 2, "rounded up"
        for module in (rl.prepare_preference_datasets, sft._handle_train_dataset_split):
            assert "create_train_validation_split" in source(module)

    def test_test_datasets_replace_it(self):
        """Under SFT they replace the split; under preference training they come first."""
        from axolotl.core.builders import causal
        from axolotl.utils.data import rl, sft

        assert "if cfg.test_datasets:" in source(sft._prepare_standard_dataset)
        assert re.search(r"if cfg\.test_datasets:.*elif cfg\.val_set_size:", source(rl), re.DOTALL)
        assert "(self.cfg.test_datasets and self.cfg.val_set_size == 0)" in source(causal), (
            "for the best model at the end"
        )

    def test_the_rows_of_a_weight(self):
        from axolotl.utils.data.sft import _load_and_process_single_dataset

        assert "max(1, int(original_len * dataset_config.weight))" in source(_load_and_process_single_dataset)
        assert "dataset_config.weight < 1.0" in source(_load_and_process_single_dataset)


class TestDatasets:
    files = relied_on_by(
        "axolotl_adapter/datasets.py",
        "data/prepared_datasets.py",
        "data/row_encoder.py",
        "data/encoder.py",
    )

    def test_load_dataset_with_config_takes_an_entry_and_a_token(self, tmp_path):
        from axolotl.utils.data.shared import load_dataset_with_config

        assert [*inspect.signature(load_dataset_with_config).parameters][:2] == ["dataset_config", "use_auth_token"]
        (tmp_path / "f.jsonl").write_text('{"text": "a"}\n')
        loaded = load_dataset_with_config(DictDefault(path=str(tmp_path / "f.jsonl")), None)
        assert loaded.column_names == ["text"], "the only split of a file"
        loaded.save_to_disk(str(tmp_path / "saved"))
        assert load_dataset_with_config(DictDefault(path=str(tmp_path / "saved")), None).column_names == ["text"]

    def test_ids_and_labels_are_used_as_they_are(self, tokenizer):
        from axolotl.utils.data.wrappers import get_dataset_wrapper

        ready = rows(input_ids=[[1]], attention_mask=[[1]], labels=[[1]])
        cfg = DictDefault(datasets=[{"path": "p"}])
        assert get_dataset_wrapper(cfg.datasets[0], tokenizer, cfg, None, ready)[0] is ready

    def test_columns_have_the_types_of_axolotls_own_strategies(self, tokenizer):
        from axolotl.utils.data.wrappers import get_dataset_wrapper
        from datasets import Features, List, Value

        from solar_plugins.data.prepared_datasets import SFT_COLUMNS

        cfg = DictDefault(datasets=[{"path": "p", "type": "completion"}], sequence_len=8)
        made, _ = get_dataset_wrapper(cfg.datasets[0], tokenizer, cfg, "completion", rows(text=["a b"]))
        assert made.features == Features({name: List(Value(kind)) for name, kind in SFT_COLUMNS.items()})

    def test_pairs_without_a_type_are_used_as_they_are(self):
        """Run in test_datasets.py."""
        from axolotl.utils.data.rl import _load_split

        assert re.search(r'_type = datasets_configs\[i\]\["type"\]\s+if _type:', source(_load_split))

    def test_the_label_that_the_loss_ignores(self):
        from axolotl.prompt_tokenizers import IGNORE_INDEX

        from solar_plugins.data.encoder import IGNORED_LABEL

        assert IGNORE_INDEX == IGNORED_LABEL

    def test_the_default_seed(self):
        from transformers import TrainingArguments

        from solar_plugins.data.row_encoder import DEFAULT_SEED

        assert validated(seed=None).seed == DEFAULT_SEED
        assert TrainingArguments.__dataclass_fields__["seed"].default == DEFAULT_SEED, "where the key is absent"

    @pytest.mark.parametrize(("key", "split"), [("datasets", "train"), ("test_datasets", "test")])
    def test_the_default_split(self, key, split, tokenizer, tmp_path):
        from axolotl.utils.data.sft import _load_and_process_single_dataset
        from datasets import DatasetDict

        from solar_plugins.axolotl_adapter.datasets import _split_of
        from solar_plugins.axolotl_adapter.recipe_checks import FormattedDataset

        sets = {
            name: rows(input_ids=[[n]], attention_mask=[[1]], labels=[[1]]) for n, name in enumerate(("train", "test"))
        }
        DatasetDict(sets).save_to_disk(str(tmp_path / "sets"))
        entry = DictDefault(path=str(tmp_path / "sets"))
        taken, _ = _load_and_process_single_dataset(entry, DictDefault({}), tokenizer, split, 0)
        assert taken["input_ids"][:] == _split_of(sets, FormattedDataset(key, 0, entry, None))["input_ids"][:]

    def test_several_configurations_of_a_dataset(self):
        from axolotl.utils.data.shared import datasets_with_name_generator

        from solar_plugins.axolotl_adapter.datasets import expanded
        from solar_plugins.axolotl_adapter.recipe_checks import FormattedDataset

        entry = DictDefault(path="p", name=["a", "b"])
        ours = [found.entry for found in expanded(FormattedDataset("datasets", 0, entry, None))]
        assert ours == [dict(one) for one in datasets_with_name_generator([entry])]

    def test_the_default_directory_and_the_cache_key_of_the_path(self):
        from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH
        from axolotl.utils.data.shared import generate_dataset_hash_from_config, get_prepared_dataset_path

        assert get_prepared_dataset_path(DictDefault({}), "h") == Path(DEFAULT_DATASET_PREPARED_PATH) / "h"
        one, other = (
            generate_dataset_hash_from_config(DictDefault(sequence_len=8), [DictDefault(path=path)], "t")
            for path in ("solar_plugins/1", "solar_plugins/2")
        )
        assert one != other

    @pytest.mark.parametrize("strategy", [None, "drop", "truncate", "Truncate", "raise"])
    def test_rows_that_are_too_long(self, strategy):
        from axolotl.utils.data.utils import handle_long_seq_in_dataset

        from solar_plugins.axolotl_adapter.datasets import _excess_policy

        cfg = DictDefault(excess_length_strategy=strategy, min_sample_len=2)
        long = rows(input_ids=[[1] * 9, [1] * 8], attention_mask=[[1] * 9, [1] * 8], labels=[[1] * 9, [1] * 8])
        policy = _excess_policy(parse_recipe({"excess_length_strategy": strategy}))
        if policy == "raise":
            with pytest.raises(ValueError, match="exceeds the maximum"):
                handle_long_seq_in_dataset(long, 8, cfg)
        else:
            left = handle_long_seq_in_dataset(long, 8, cfg)
            assert [len(ids) for ids in left["input_ids"]] == {"drop": [8], "truncate": [8, 8]}[policy]

    def test_test_datasets_have_their_own_length_only_in_sft(self):
        from axolotl.utils.data import rl, sft

        assert 'if split == "test" and cfg.eval_sequence_len:' in source(sft._load_raw_datasets)
        assert "eval_sequence_len" not in source(rl)

    def test_the_tokenizer_has_the_template_of_the_recipe(self, sentencepiece_tokenizer, tmp_path):
        from axolotl.loaders import load_tokenizer

        base = shutil.copytree(sentencepiece_tokenizer, tmp_path / "base")
        (base / "config.json").write_text('{"model_type": "mistral"}')
        keys = {"tokenizer_config": str(base), "base_model": str(base)}
        assert load_tokenizer(DictDefault(keys)).chat_template is None
        template = {"chat_template": "jinja", "chat_template_jinja": "{{ x }}"}
        assert load_tokenizer(DictDefault(keys | template)).chat_template == "{{ x }}"


class TestTypesOfDatasets:
    files = relied_on_by("axolotl_adapter/bindings.py")

    @pytest.fixture
    def bound(self, monkeypatch):
        """A module in memory and a function of the package, as `bind` creates them."""
        module = type(sys)("solar_plugins.contract")
        module.load = lambda tokenizer, cfg, ds_cfg: ("loaded", tokenizer, cfg, ds_cfg)
        monkeypatch.setitem(sys.modules, "solar_plugins.contract", module)
        monkeypatch.setattr(solar_plugins, "contract", lambda cfg, **keys: ("called", cfg, keys), raising=False)

    def test_sft_calls_load_of_the_module_of_that_name(self, bound):
        from axolotl.prompt_strategies import load

        assert load("solar_plugins.contract", "tokenizer", "cfg", "entry") == ("loaded", "tokenizer", "cfg", "entry")

    def test_a_strategy_wraps_the_dataset(self, tokenizer, monkeypatch):
        from axolotl.prompt_tokenizers import DatasetWrappingStrategy
        from axolotl.utils.data import wrappers

        class Strategy(DatasetWrappingStrategy):
            def wrap_dataset(self, dataset, process_count=None, keep_in_memory=False, **_):
                return dataset, process_count, keep_in_memory

        monkeypatch.setattr(wrappers, "load", lambda *args, **_: Strategy())
        cfg = DictDefault(datasets=[{"path": "p", "type": "t"}], dataset_num_proc=3)
        wrapped, _ = wrappers.get_dataset_wrapper(cfg.datasets[0], tokenizer, cfg, "t", raw := rows(a=[1]))
        assert wrapped == (raw, 3, False)

    @pytest.mark.parametrize("method", ["dpo", "kto", "orpo"])
    def test_preference_training_calls_the_function_of_that_name(self, bound, method):
        load = importlib.import_module(f"axolotl.prompt_strategies.{method}").load
        assert load("solar_plugins.contract", "cfg", dataset_idx=0) == ("called", "cfg", {"dataset_idx": 0})
        assert load("solar_plugins.deeper.contract", "cfg", dataset_idx=0) is None, "an error is a warning"

    @pytest.mark.parametrize("method", [None, "dpo"])
    def test_evaluate_does_not_ask_plugins_for_datasets(self, method, monkeypatch):
        import axolotl.cli.evaluate as command
        from axolotl.integrations.base import PluginManager

        order = []
        monkeypatch.setattr(PluginManager, "load_datasets", lambda *_, **__: order.append("plugins"))
        for name in ("load_datasets", "load_preference_datasets", "evaluate"):
            monkeypatch.setattr(command, name, lambda name=name, **_: order.append(name))
        command.do_evaluate(DictDefault(rl=method), SimpleNamespace())
        assert order == ["load_preference_datasets" if method else "load_datasets", "evaluate"]


# --- training -------------------------------------------------------------------------------------------------------


class TestPrecision:
    files = relied_on_by("axolotl_adapter/precision.py", "memory/training_setup.py")

    def test_names_of_optimizers(self):
        from axolotl.utils.schemas.enums import CustomSupportedOptimizers
        from transformers.training_args import OptimizerNames

        from solar_plugins.axolotl_adapter.precision import CARRY_OVERS, DEFAULT_OPTIMIZER
        from solar_plugins.memory.training_setup import OPTIMIZERS

        known = {optimizer.value for names in (CustomSupportedOptimizers, OptimizerNames) for optimizer in names}
        assert {*CARRY_OVERS, *OPTIMIZERS, DEFAULT_OPTIMIZER} <= known

    def test_stochastic_rounding_is_an_option_that_is_off(self):
        from axolotl.utils.optimizers.sinkgd import SinkGD
        from torchao.optim import AdamW4bit, AdamW8bit, AdamWFp8

        from solar_plugins.axolotl_adapter.precision import STOCHASTIC

        for optimizer in (AdamW4bit, AdamW8bit, AdamWFp8, SinkGD):
            assert inspect.signature(optimizer).parameters[STOCHASTIC.key].default is STOCHASTIC.by_default

    def test_kahan_summation_is_an_option(self):
        """Their packages are not installed, but the code in transformers that uses them is."""
        from transformers import trainer_optimizer

        from solar_plugins.axolotl_adapter.precision import CARRY_OVERS, COMPENSATED

        anyprecision = CARRY_OVERS["adamw_anyprecision"]
        assert f'get("{anyprecision.key}", "{anyprecision.by_default}")' in source(trainer_optimizer)
        assert f'pop("{COMPENSATED.key}", None)' in source(trainer_optimizer)

    def test_optim_args_are_a_dict_or_pairs(self):
        from transformers.trainer_optimizer import _parse_optim_args

        from solar_plugins.axolotl_adapter.precision import _optim_args

        text = "block_size=256, bf16_stochastic_round=False"
        assert _parse_optim_args(text) == _optim_args(text)

    def test_fsdp2_trains_the_bf16_weights_themselves(self):
        """Run in tests/distributed/test_dtypes.py."""
        import accelerate.utils.fsdp_utils as accelerates
        from axolotl.monkeypatch.accelerate import fsdp2 as axolotls

        assert "param.data.to(torch.float32)" in source(accelerates.fsdp2_prepare_model)
        assert "torch.float32" not in source(axolotls.fsdp2_prepare_model)
        assert "accelerate.accelerator.fsdp2_prepare_model = fsdp2_prepare_model" in source(axolotls)

    def test_adapters_are_in_fp32(self):
        from peft import get_peft_model

        assert inspect.signature(get_peft_model).parameters["autocast_adapter_dtype"].default is True


class TestMemory:
    files = relied_on_by(
        "memory/recipe_setup.py", "memory/parameters.py", "memory/estimate.py", "memory/training_setup.py"
    )

    def setup(self, **keys):
        from solar_plugins.memory.recipe_setup import setup_of

        return setup_of(parse_recipe({"optimizer": "adamw_torch", "lora_r": 8} | keys), 2)

    @pytest.mark.parametrize(
        "keys",
        [
            {}, {"attn_implementation": "sdpa"}, {"attn_implementation": "eager"}, {"adapter": "lora"},
            {"attn_implementation": "flash_attention_2"}, {"fsdp_config": {"reshard_after_forward": True}},
            {"cut_cross_entropy": True},
        ],
    )  # fmt: skip
    def test_embeddings_and_norms_that_stay_in_fp32(self, keys):
        from axolotl.loaders.model import should_convert_embedding_dtypes

        fields = {"fsdp_config": None, "fsdp": None, "adapter": None, "cut_cross_entropy": None}
        cast = type("Cfg", (), validated(**{k: v for k, v in keys.items() if k == "attn_implementation"}).to_dict())
        cfg = SimpleNamespace(**fields | keys, attn_needs_dtype_cast=getattr(cast, "attn_needs_dtype_cast", None))
        assert self.setup(bf16=True, **keys).fp32_embeddings_and_norms is not should_convert_embedding_dtypes(cfg)

    @pytest.mark.parametrize("adapter", [None, "lora"])
    @pytest.mark.parametrize("method", ["dpo", "ipo", "kto", "orpo"])
    def test_the_reference_model(self, method, adapter, monkeypatch):
        """For simpo Axolotl loads one too, but does not pass it to the trainer (core/builders/rl.py)."""
        import axolotl.train
        from axolotl.utils.schemas.enums import RLType

        monkeypatch.setattr(
            axolotl.train, "ModelLoader", lambda *_, **__: SimpleNamespace(load=lambda: ("model", None))
        )
        loaded = axolotl.train.setup_reference_model(DictDefault(rl=RLType(method), adapter=adapter), None)
        assert self.setup(rl=method, adapter=adapter).reference is (loaded is not None)

    def test_buffers_of_deepspeed(self):
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
        from transformers.integrations import deepspeed

        from solar_plugins.memory.training_setup import DeepSpeedBuffers

        theirs, ours = DeepSpeedZeroConfig(stage=3), DeepSpeedBuffers()
        assert ours.reduce_bucket == theirs.reduce_bucket_size
        assert (ours.max_live, ours.sub_group) == (theirs.max_live_parameters, theirs.sub_group_size)
        assert [DeepSpeedZeroConfig(stage=stage).overlap_comm for stage in (1, 2, 3)] == [False, False, True]
        auto = 'fill_only("zero_optimization.reduce_bucket_size", hidden_size * hidden_size)'
        assert auto in source(deepspeed), '"auto" is the square of the hidden size'

    def test_ddp_copies_gradients_into_buckets(self):
        from torch.nn.parallel import DistributedDataParallel

        assert inspect.signature(DistributedDataParallel).parameters["gradient_as_bucket_view"].default is False

    def test_trl_keeps_adapters_on_quantized_weights_in_bf16(self):
        from trl.trainer import dpo_trainer

        cast = r"if _is_quantized_model:\n(.*\n){,3}? +param\.data = param\.data\.to\(torch\.bfloat16\)"
        assert re.search(cast, source(dpo_trainer))


class TestRanks:
    files = relied_on_by("axolotl_adapter/ranks.py")

    def test_the_store_of_torch(self):
        """Its behavior is tested in test_ranks.py."""
        from torch.distributed import PrefixStore, TCPStore

        asked = ("host_name: str, port", "world_size", "is_master: bool", "timeout: datetime.timedelta")
        for part in (*asked, "wait_for_workers: bool = True", "multi_tenant: bool = False"):
            assert part in TCPStore.__init__.__doc__
        for method in ("set", "get", "check", "compare_set", "multi_set", "multi_get"):
            assert hasattr(PrefixStore, method)
        assert issubclass(torch.distributed.DistError, RuntimeError)

    def test_the_process_group_uses_the_same_store(self):
        rendezvous = importlib.import_module("torch.distributed.rendezvous")
        assert "multi_tenant=True" in source(rendezvous._create_c10d_store), "rank 0 may host a store there already"
        assert 'os.environ.get("TORCHELASTIC_USE_AGENT_STORE", None) == str(True)' in source(rendezvous)

    @pytest.mark.parametrize(
        "name",
        ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT",
         "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE"],
    )  # fmt: skip
    def test_variables_that_torchrun_sets(self, name):
        from torch.distributed.elastic.agent.server import local_elastic_agent

        assert re.search(rf'"{name}"(: |\] = )', source(local_elastic_agent))

    def test_preprocess_sets_a_variable(self, monkeypatch):
        import axolotl.cli.preprocess as command

        monkeypatch.setenv("AXOLOTL_IS_PREPROCESS", "0")
        monkeypatch.setattr(command, "load_cfg", lambda *_, **__: pytest.fail(os.environ["AXOLOTL_IS_PREPROCESS"]))
        with pytest.raises(pytest.fail.Exception, match="1"):
            command.do_cli("r.yml")


# --- what a run leaves ----------------------------------------------------------------------------------------------


class TestWhatTrainingLeaves:
    files = relied_on_by("report/training_log.py", "report/stages.py")

    def test_the_trainers_log(self):
        from transformers import Trainer, TrainerState
        from transformers.trainer import TRAINER_STATE_NAME
        from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

        from solar_plugins.report.training_log import STATE_FILE

        assert (TRAINER_STATE_NAME, PREFIX_CHECKPOINT_DIR) == (STATE_FILE, "checkpoint")
        assert {"log_history", "global_step", "max_steps"} <= TrainerState.__dataclass_fields__.keys()
        assert inspect.signature(Trainer.evaluate).parameters["metric_key_prefix"].default == "eval"

    @pytest.mark.parametrize("trainer", ["DPO", "CPO", "ORPO", "KTO"])
    def test_rewards_that_trl_logs(self, trainer):
        from axolotl.core import trainers
        from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer

        from solar_plugins.report.training_log import ACCURACIES, MARGINS

        kind = AxolotlDPOTrainer if trainer == "DPO" else getattr(trainers, f"Axolotl{trainer}Trainer")
        (trls,) = {one for one in kind.__mro__ if one.__name__ == f"{trainer}Trainer"}
        logged = re.findall(r"rewards/\w+", source(sys.modules[trls.__module__]))
        assert MARGINS in logged
        assert (ACCURACIES in logged) is (trainer != "KTO"), "KTO does not compare pairs"

    def test_an_adapter_and_the_merged_model(self):
        """Run in tests/axolotl/test_axolotl.py."""
        import axolotl.cli.merge_lora as command
        from peft.utils import CONFIG_NAME

        assert CONFIG_NAME == "adapter_config.json"
        for merge in (command._do_merge_lora_efficient, command._do_merge_lora_legacy):
            assert 'Path(cfg.output_dir) / "merged"' in source(merge)

    def test_the_config_is_written_before_the_first_step(self):
        """So its existence does not mean that a model was trained."""
        import axolotl.train

        code = source(axolotl.train.train)
        assert code.index("save_initial_configs(") < code.index("execute_training(")

    def test_a_key_resumes_a_run(self):
        assert "auto_resume_from_checkpoints" in schema()

    def test_the_loss_of_dpo(self):
        from axolotl.core.trainers.dpo import DPOStrategy
        from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
        from axolotl.utils.schemas.enums import RLType

        assert AxolotlDPOConfig.__dataclass_fields__["loss_type"].default_factory() == ["sigmoid"]
        given = DPOStrategy.set_training_args_kwargs(DictDefault(rl=RLType.DPO, sequence_len=9))
        assert given == {"max_length": 9}, "nothing that changes the loss"


class TestRunRecord:
    facts = relied_on_by("axolotl_adapter/run_record.py")

    def test_the_trainer_calls_its_own_training_step_and_counts_before_on_step_end(self, tmp_path):
        from transformers import Trainer, TrainerCallback, TrainingArguments

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(1))

            def forward(self, input_ids, labels=None):
                return {"loss": (self.weight * input_ids).mean()}

        class Counts(TrainerCallback):
            def on_step_end(self, args, state, control, **_):
                seen.append(("step", state.global_step))
                control.should_training_stop = state.global_step == 2

            def on_epoch_end(self, args, state, control, **_):
                seen.append(("epoch", control.should_save))

        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            save_strategy="epoch",
            report_to=[],
            use_cpu=True,
        )
        rows = [{"input_ids": torch.tensor([number]), "labels": torch.tensor([number])} for number in range(20)]
        trainer, seen = Trainer(Model(), arguments, train_dataset=rows), []
        train = trainer.training_step

        def training_step(model, inputs, *more, **options):
            seen.append(sorted(inputs))
            return train(model, inputs, *more, **options)

        trainer.training_step = training_step
        trainer.add_callback(Counts())
        trainer.train()
        batch = ["input_ids", "labels"]
        ended = ("epoch", True)  # Although the epoch is not over: we take it back.
        assert seen == [batch, batch, ("step", 1), batch, batch, ("step", 2), ended]
        assert trainer.state.max_steps == 30


class TestMergedModel:
    """Run in tests/axolotl/test_merged_lora.py."""

    files = relied_on_by("axolotl_adapter/merged_model.py", "axolotl_adapter/plugin.py")

    def test_plugins_are_called_after_the_merge(self, monkeypatch):
        from axolotl.integrations.base import PluginManager

        told = []
        monkeypatch.setattr(SolarPlugin, "post_lora_merge", lambda self, *args: told.append(args))
        manager = PluginManager()
        monkeypatch.setattr(manager, "plugins", {"solar": SolarPlugin()})
        manager.post_lora_merge("cfg", "adapter", "merged")
        assert told == [("cfg", "adapter", "merged")]

    def test_the_hook_runs_after_everything_is_written(self):
        import axolotl.cli.merge_lora as command

        efficient, legacy = source(command._do_merge_lora_efficient), source(command._do_merge_lora_legacy)
        told = "PluginManager.get_instance().post_lora_merge("
        assert efficient.index("merge_lora_sharded_efficient(\n") < efficient.index(told)
        assert legacy.rindex("save_pretrained(") < legacy.index(told)
        assert "save_jinja_files=cfg.tokenizer_save_jinja_files" in legacy

    def test_small_files_come_from_the_base(self, tmp_path):
        from axolotl.cli.utils.lora_merge import copy_non_model_files

        from solar_plugins.upscaling.marker import MARKER

        base, merged = tmp_path / "base", tmp_path / "merged"
        (base / "additional_chat_templates").mkdir(parents=True)
        merged.mkdir()
        files = {MARKER, "README.md", "config.json", "tokenizer.json", "generation_config.json"}
        for name in files | {"model.safetensors", "additional_chat_templates/x.jinja"}:
            (base / name).write_text("x")
        copy_non_model_files(base, merged, [base / "model.safetensors"])
        assert {path.name for path in merged.iterdir()} == files

    def test_the_tokenizer_of_the_training_is_saved_with_the_adapter(self):
        import axolotl.train

        for function in (axolotl.train.save_initial_configs, axolotl.train.train):
            assert re.search(r"tokenizer\.save_pretrained\(\s+str\(Path\(cfg\.output_dir\)\)", source(function))

    def test_template_files_are_written_by_default(self):
        assert validated().tokenizer_save_jinja_files is not False
        assert "tokenizer_save_jinja_files" in schema()

    def test_special_tokens_are_aligned_on_any_object(self):
        from transformers.trainer_utils import align_special_tokens

        config = SimpleNamespace(eos_token_id=2, bos_token_id=1, pad_token_id=None)
        config.get_text_config = lambda: config
        tokenizer = SimpleNamespace(eos_token_id=9, bos_token_id=None, pad_token_id=9)
        align_special_tokens(SimpleNamespace(config=config, generation_config=None), tokenizer)
        assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == (9, 1, 9)


class TestModelCards:
    """Run in tests/axolotl/test_model_cards.py, with pushes."""

    files = relied_on_by("axolotl_adapter/model_cards.py")

    def test_cards_are_made_in_the_trainers_output_and_on_the_main_rank(self):
        from transformers import Trainer
        from trl.trainer.base_trainer import _BaseTrainer

        for make in (Trainer.create_model_card, _BaseTrainer.create_model_card):
            assert 'os.path.join(self.args.output_dir, "README.md")' in source(make)
            assert "if not self.is_world_process_zero():\n            return" in source(make)

    def test_the_output_of_a_trainer_can_be_changed(self, tmp_path):
        from transformers import TrainingArguments

        arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        arguments.output_dir = "other"
        assert arguments.output_dir == "other"

    def test_peft_makes_a_card_with_each_save_by_a_method_that_can_be_replaced(self):
        from peft import PeftModel

        assert "self.create_or_update_model_card(save_directory)" in source(PeftModel.save_pretrained)
        assert 'os.path.join(output_dir, "README.md")' in source(PeftModel.create_or_update_model_card)

    def test_callbacks_are_told_before_a_push(self):
        from transformers import Trainer

        for push in (Trainer._push_from_checkpoint, Trainer.push_to_hub):
            assert source(push).index("on_push_begin(") < source(push).index("upload_folder(")
        assert source(Trainer.push_to_hub).index("create_model_card(") < source(Trainer.push_to_hub).index(
            "upload_folder("
        )

    def test_an_evaluation_does_not_begin_a_training(self):
        from transformers import Trainer

        assert "on_train_begin(" in source(Trainer._inner_training_loop)
        assert "on_train_begin" not in source(Trainer.evaluate)

    def test_a_model_keeps_our_record_as_an_attribute_of_its_config(self, tmp_path):
        from transformers import AutoConfig, LlamaConfig

        record = {"base_model": "org/base", "base_revision": None, "plan": {}}
        LlamaConfig(solar_plugins=record).save_pretrained(tmp_path)
        assert AutoConfig.from_pretrained(tmp_path).solar_plugins == record

    def test_only_axolotl_sets_the_key_of_a_validated_config(self, life):
        from solar_plugins.axolotl_adapter.model_cards import VALIDATED

        assert VALIDATED not in life.raw
        assert VALIDATED in life.result

    def test_axolotl_makes_the_card_after_the_last_save(self):
        import axolotl.train

        text = source(axolotl.train.train)
        assert text.index("save_trained_model(cfg, trainer, model)") < text.index("create_model_card(cfg, trainer)")
        assert "post_trainer_create(cfg, trainer)" in source(axolotl.train.setup_model_and_trainer)


class TestSchema:
    """`solar recipes check`; what it says about whole recipes is tested in tests/unit/sharing/test_schemas.py."""

    files = relied_on_by("axolotl_adapter/schema.py")

    def test_validation_looks_up_what_is_replaced_for_a_check(self):
        import axolotl.utils.config as axolotl_config
        from axolotl.utils.schemas import validation

        assert "merge_input_args()" in source(axolotl_config.validate_config)
        assert callable(validation._flash_attn_kernel_failure)
        assert "_flash_attn_kernel_failure(" in source(validation).replace("def _flash_attn_kernel_failure(", "")

    def test_validation_takes_the_capabilities_of_another_machine(self):
        import axolotl.utils.config as axolotl_config

        assert {"capabilities", "env_capabilities"} <= inspect.signature(
            axolotl_config.validate_config
        ).parameters.keys()

    def test_plugins_can_be_listed_registered_and_removed(self):
        from axolotl.integrations.base import PluginManager, get_builtin_plugins

        assert isinstance(PluginManager.get_instance().plugins, dict)
        assert "required" in inspect.signature(PluginManager.register).parameters
        assert isinstance(list(get_builtin_plugins()), list)

    def test_datasets_are_validated_by_models_of_one_module(self):
        from axolotl.utils.schemas import datasets
        from pydantic import BaseModel

        models = [
            model for model in vars(datasets).values() if isinstance(model, type) and issubclass(model, BaseModel)
        ]
        assert {"path", "type", "split"} <= {field for model in models for field in model.model_fields}


class TestEvaluation:
    files = relied_on_by("evaluation/sdpo_order.py", "evaluation/h6.py")

    def test_long_pairs_are_truncated_at_the_end(self):
        from axolotl.core.trainers.dpo.args import AxolotlDPOConfig

        assert AxolotlDPOConfig.__dataclass_fields__["truncation_mode"].default == "keep_start"

    def test_the_files_of_lm_eval(self, tmp_path):
        from lm_eval.loggers import EvaluationTracker

        from solar_plugins.evaluation.h6 import RESULT_FILES

        tracker = EvaluationTracker(output_path=str(tmp_path))
        tracker.general_config_tracker.log_experiment_args("hf", "pretrained=m", "", "template", False)
        tracker.save_results_aggregated({"results": {}}, {})
        (file,) = tmp_path.rglob(RESULT_FILES)
        content = json.loads(file.read_text())
        assert (content["model_name"], content["chat_template"]) == ("m", "template")

    def test_lm_eval_result_keys(self):
        """Run in tests/axolotl/test_evaluation.py."""
        from lm_eval import evaluator

        for key in ("results", "group_subtasks", "n-shot", "n-samples", "effective"):
            assert f'"{key}": ' in source(evaluator)
