"""The stages of a report: the model that each recipe or merge wrote, and whether it comes from the plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from solar_plugins.errors import ArgsError, CheckpointError, PluginError
from solar_plugins.recipe import TYPE_PREFIX, Recipe, read_recipe, read_yaml
from solar_plugins.report.training_log import TrainingLog, read_training_log
from solar_plugins.upscaling.base_model import CONFIG, BaseCheckpoint, read_config
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.provenance import recorded_plan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = ("base", "upscaled", "trained")
"""The names of the base, the upscaled model and, in a report on one recipe, the trained model."""

RECIPE_PREFIX = "solar_"
RECIPE_SUFFIXES = (".yml", ".yaml")


@dataclass(frozen=True, slots=True)
class Stage:
    """The result of one recipe or one merge.

    Args:
        name: The model's name in the report.
        directory: Of the full model.
        recipe: The Axolotl recipe; None for a merged model, which is named by its folder.
        log: What the Trainer logged, if the run kept it.
        began_with: The earlier stage that its ``base_model`` is, if that stage is in the report.
        plan: Its own layer plan, if it is a later stage that upscales the same base by another plan.
    """

    name: str
    directory: Path
    recipe: Recipe | None = None
    log: TrainingLog | None = None
    began_with: str | None = None
    plan: LayerPlan | None = None

    @property
    def untrained(self) -> str | None:
        """The name of its upscaled model before training, if it has a plan of its own."""
        return f"{self.name}, {NAMES[1]}" if self.plan else None

    @property
    def method(self) -> str | None:
        """``rl`` of the recipe: the method of preference training."""
        return self.recipe.rl if self.recipe else None

    @property
    def steps(self) -> int | None:
        """Optimizer steps of its model; None if the log ends early, or if the best model and not the last is kept."""
        keeps_best = self.recipe and (self.recipe.load_best_model_at_end or self.recipe.early_stopping_patience)
        if self.log is None or keeps_best or self.log.last_step < self.log.planned_steps:
            return None
        return self.log.last_step

    @property
    def starts_at_ln_2(self) -> bool:
        """Whether its loss is plain, unweighted DPO with the start as reference: before the first step it is ln 2."""
        recipe = self.recipe
        if recipe is None or recipe.rl != "dpo":
            return False
        plain = recipe.dpo_loss_type in (None, "sigmoid", ["sigmoid"])
        # Weights scale the loss; the reference has no adapter from lora_model_dir.
        return plain and not (recipe.dpo_use_weighting or recipe.dpo_loss_weights or recipe.lora_model_dir)

    @property
    def uses_chat_format(self) -> bool:
        """Whether it trains on a chat format, SOLAR's or another one."""
        if self.recipe is None:
            return False
        kinds = [str(entry.get("type")) for _, entry in self.recipe.entries("datasets")]
        return any(kind.startswith((TYPE_PREFIX, "chat_template")) for kind in kinds) or bool(self.recipe.chat_template)


def find_stages(
    recipe: Recipe, plan: LayerPlan, later: Sequence[Path], plan_of_recipe: Callable[[Recipe], LayerPlan]
) -> tuple[Stage, ...]:
    """The stages of a report, in order.

    Args:
        recipe: The recipe that upscales, read from a file.
        plan: Its layer plan.
        later: For each later stage the Axolotl recipe, or the folder of a merged model. A recipe that upscales the same
            base by another plan is measured next to the first.
        plan_of_recipe: The layer plan of such a recipe.

    Raises:
        SolarError: A stage was not trained, comes from another plan or base, or has the name or folder of another one.
    """
    assert recipe.path is not None
    stages = [_trained_stage(_stage_name(recipe.path) if later else NAMES[2], recipe)]
    require_plan(
        stages[0].directory,
        plan,
        f"output_dir: {stages[0].directory}",
        f"but this recipe's plan is {plan}; it comes from another recipe. Train this recipe, or give the one that was "
        "trained",
    )
    for argument in later:
        stage = _later_stage(argument)
        own = plan_of_recipe(stage.recipe) if stage.recipe and stage.recipe.upscales else None
        if stage.recipe and own and stage.recipe.base != recipe.base:
            raise ArgsError(
                f"{argument}: upscales base_model: {stage.recipe.base.name}, but {recipe.path} upscales "
                f"{recipe.base.name}; a report compares plans of one base. Give each base a report of its own"
            )
        require_plan(
            stage.directory,
            own or plan,
            f"{argument}: output_dir: {stage.directory}" if stage.recipe else str(argument),
            "but this recipe's plan is another one; train it again"
            if own
            else f"but {recipe.path}, the first stage, makes {plan}; later stages come from that upscaled model. Give "
            "the stages that were trained from it, or also the recipe that upscales by the other plan",
        )
        stages.append(replace(stage, plan=own, began_with=_began_with(stage, stages)))
    _require_different(stages)
    return tuple(stages)


def _began_with(stage: Stage, earlier: Sequence[Stage]) -> str | None:
    if stage.recipe is None:
        return None
    base = Path(os.path.expanduser(str(stage.recipe.base_model))).resolve()
    return next((other.name for other in earlier if other.directory.resolve() == base), None)


def _stage_name(path: Path) -> str:
    return path.stem.removeprefix(RECIPE_PREFIX)


def _trained_stage(name: str, recipe: Recipe) -> Stage:
    assert recipe.path is not None
    output = recipe.output_directory
    return Stage(name, trained_directory(output, recipe.path), recipe, read_training_log(output))


def _later_stage(argument: Path) -> Stage:
    if argument.is_dir():
        if _holds_model(argument):
            return Stage(argument.resolve().name, argument)
        raise CheckpointError(
            f"{argument}: a LoRA adapter, but the report measures full models; merge it, and give the merged folder"
            if _is_adapter(argument)
            else f"{argument}: holds no model (config.json and model*.safetensors); expected the folder of a merged "
            "model. Merge first, or give the Axolotl recipe of the stage"
        )
    if not argument.is_file() and argument.suffix not in RECIPE_SUFFIXES:
        raise ArgsError(
            f"{argument}: neither a recipe nor a folder; expected a later stage's Axolotl recipe, or the folder of a "
            "merged model"
        )
    if "merge_method" in read_yaml(argument):
        raise ArgsError(
            f"{argument}: a recipe for mergekit, which does not say where its model is; give the folder into which "
            f"mergekit-yaml {argument} FOLDER wrote it"
        )
    try:
        return _trained_stage(_stage_name(argument), read_recipe(argument))
    except (ArgsError, CheckpointError, PluginError) as error:
        raise type(error)(f"{argument}: {error}") from None


def _require_different(stages: Sequence[Stage]) -> None:
    """Check that no two stages share a name or a folder: the later one would have overwritten the earlier one."""
    names, folders = dict.fromkeys(NAMES[:2], "the report itself"), dict[Path, str]()
    for stage in stages:
        where, folder = str(stage.recipe.path if stage.recipe else stage.directory), stage.directory.resolve()
        if stage.name in names:
            raise ArgsError(
                f"{where}: its name in the report would be {stage.name!r}, like that of {names[stage.name]}; give each "
                "stage once, or rename the recipe or the folder"
            )
        if folder in folders:
            raise ArgsError(
                f"{where}: its model is in {stage.directory}, like that of {folders[folder]}; give each stage an "
                "output_dir of its own and train it, or leave one out"
            )
        names[stage.name] = folders[folder] = where


def check_tokenizer(
    stage: Stage,
    reference: PreTrainedTokenizerBase,
    tokenizer: PreTrainedTokenizerBase,
    windows: Callable[[PreTrainedTokenizerBase], list[list[int]]],
) -> None:
    """Check that a stage's tokenizer encodes the held-out text as the base's does; it may have more tokens.

    Args:
        stage: The stage.
        reference: The base's tokenizer.
        tokenizer: The stage's.
        windows: Encodes the held-out text.

    Raises:
        CheckpointError: It does not.
    """
    found = tokenizer.get_vocab()
    moved = [(token, place) for token, place in reference.get_vocab().items() if found.get(token) != place]
    if moved:
        token, place = min(moved, key=lambda pair: pair[1])
        difference = f"{token!r} is token {found.get(token, 'none')} in it and {place} in the base's"
    elif windows(tokenizer) != windows(reference):
        difference = "it encodes the held-out text differently"
    else:
        return
    raise CheckpointError(
        f"{stage.directory}: the tokenizer of the stage {stage.name} differs from the base's ({difference}); all "
        "models of a report are measured on the same token ids. Give stages that keep the base's tokenizer"
    )


def trained_directory(output_dir: Path, recipe_path: Path) -> Path:
    """The directory of the full model that a recipe trained: its ``output_dir``, or for LoRA ``merged`` in it.

    Raises:
        CheckpointError: It holds no model.
    """
    if _is_adapter(output_dir):
        if _holds_model(output_dir / "merged"):
            return output_dir / "merged"
        raise CheckpointError(
            f"output_dir: {output_dir} holds a LoRA adapter, but the report measures full models; merge it "
            f"first:\n  axolotl merge-lora {recipe_path}"
        )
    if _holds_model(output_dir):
        return output_dir
    checkpoints = sorted(output_dir.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime_ns)
    interrupted = checkpoints and (
        f", but {checkpoints[-1].name}: its run was interrupted, or is still running. To resume it, set "
        "auto_resume_from_checkpoints: true"
    )
    raise CheckpointError(
        f"output_dir: {output_dir} holds no trained model (config.json and model*.safetensors){interrupted or ''}; "
        f"train first:\n  accelerate launch -m axolotl.cli.train {recipe_path}"
    )


def _is_adapter(directory: Path) -> bool:
    return (directory / "adapter_config.json").is_file()


def _holds_model(directory: Path) -> bool:
    # Axolotl writes the config before the first step, so the config alone does not prove a trained model.
    return (directory / CONFIG).is_file() and any(directory.glob("model*.safetensors"))


def require_plan(directory: Path, plan: LayerPlan, where: str, expected: str) -> None:
    """Check that a directory holds a model that ``plan`` upscaled, with readable weights.

    Args:
        directory: Of a full model.
        plan: The plan.
        where: What names the directory in the error.
        expected: The end of the error: what was expected, and the fix.

    Raises:
        CheckpointError: It does not.
    """
    found = BaseCheckpoint(str(directory), directory, read_config(directory / CONFIG))
    recorded = recorded_plan(found.config)
    if found.num_layers != len(plan) or recorded not in (None, plan):
        raise CheckpointError(
            f"{where} holds a model of {found.num_layers} layers{f' ({recorded})' if recorded else ''}, {expected}"
        )
    _ = found.tensors  # Reads the headers, so that damaged weights are found before anything is measured.
