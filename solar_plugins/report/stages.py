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

    type Windows = Callable[[PreTrainedTokenizerBase], list[list[int]]]
    """Encodes the held-out text."""

NAMES = ("base", "upscaled", "trained")
"""The names of the base, the upscaled model and, in a report on one recipe, the trained model."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The full model in ``directory``, which one recipe or one merge made.

    Args:
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
    def where(self) -> str:
        """What names it in an error: the recipe, or the folder of a merged model."""
        return str(self.recipe.path if self.recipe else self.directory)

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
        if (recipe := self.recipe) is None or recipe.rl != "dpo":
            return False
        # Weights scale the loss; the reference has no adapter from lora_model_dir.
        other = recipe.dpo_use_weighting or recipe.dpo_loss_weights or recipe.lora_model_dir
        return recipe.dpo_loss_type in (None, "sigmoid", ["sigmoid"]) and not other

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
    first = _trained_stage(recipe) if later else replace(_trained_stage(recipe), name=NAMES[2])
    again = f"but this recipe's plan is {plan}; it comes from another recipe. Train this recipe, or give the one that "
    require_plan(first, plan, f"{again}was trained")
    stages = [first]
    for argument in later:
        stage, own = _later_stage(argument), None
        expected = (
            f"but {first.where}, the first stage, makes {plan}; later stages come from that upscaled model. Give the "
            "stages that were trained from it, or also the recipe that upscales by the other plan"
        )
        if stage.recipe and stage.recipe.upscales:
            if stage.recipe.base != recipe.base:
                raise ArgsError(
                    f"{argument}: upscales base_model: {stage.recipe.base.name}, but {first.where} upscales "
                    f"{recipe.base.name}; a report compares plans of one base. Give each base a report of its own"
                )
            own, expected = plan_of_recipe(stage.recipe), "but this recipe's plan is another one; train it again"
        require_plan(stage, own or plan, expected)
        stages.append(replace(stage, plan=own, began_with=_began_with(stage, stages)))
    _require_different(stages)
    return tuple(stages)


def _began_with(stage: Stage, earlier: Sequence[Stage]) -> str | None:
    base = stage.recipe and Path(os.path.expanduser(str(stage.recipe.base_model))).resolve()
    return next((other.name for other in earlier if other.directory.resolve() == base), None)


def _trained_stage(recipe: Recipe) -> Stage:
    assert recipe.path is not None
    output = recipe.output_directory
    name = recipe.path.stem.removeprefix("solar_")
    return Stage(name, model_directory(output, recipe.path), recipe, read_training_log(output))


def _later_stage(argument: Path) -> Stage:
    if argument.is_dir():
        return Stage(argument.resolve().name, model_directory(argument))
    if not argument.is_file() and argument.suffix not in (".yml", ".yaml"):
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
        return _trained_stage(read_recipe(argument))
    except (ArgsError, CheckpointError, PluginError) as error:
        raise type(error)(f"{argument}: {error}") from None


def _require_different(stages: Sequence[Stage]) -> None:
    """Check that no two stages share a name or a folder: the later one would have overwritten the earlier one."""
    seen: dict[str | Path, str] = dict.fromkeys(NAMES[:2], "the report itself")
    for stage in stages:
        for what, value in (("name in the report", stage.name), ("model's folder", stage.directory.resolve())):
            if value in seen:
                raise ArgsError(
                    f"{stage.where}: its {what} is '{value}', like that of {seen[value]}; each stage needs its own. "
                    "Leave one out, rename the recipe or the folder, or train it with an output_dir of its own"
                )
            seen[value] = stage.where


def check_tokenizer(
    stage: Stage, base: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase, windows: Windows
) -> None:
    """Check that a stage's ``own`` tokenizer encodes the held-out text as the base's does; it may have more tokens.

    Raises:
        CheckpointError: It does not.
    """
    found, expected = own.get_vocab(), base.get_vocab()
    if moved := [token for token, place in expected.items() if found.get(token) != place]:
        token = min(moved, key=expected.__getitem__)
        difference = f"{token!r} is token {found.get(token, 'none')} in it and {expected[token]} in the base's"
    elif windows(own) == windows(base):
        return
    else:
        difference = "it encodes the held-out text differently"
    raise CheckpointError(
        f"{stage.directory}: the tokenizer of the stage {stage.name} differs from the base's ({difference}); all "
        "models of a report are measured on the same token ids. Give stages that keep the base's tokenizer"
    )


def model_directory(folder: Path, recipe: Path | None = None) -> Path:
    """The directory of a full model: ``folder``, or ``merged`` in it if a recipe trained a LoRA adapter.

    Raises:
        CheckpointError: It holds no model.
    """
    is_adapter = (folder / "adapter_config.json").is_file()
    directory = folder / "merged" if is_adapter and recipe else folder
    # Axolotl writes the config before the first step, so the config alone does not prove a trained model.
    if (directory / CONFIG).is_file() and any(directory.glob("model*.safetensors")):
        return directory
    where = f"output_dir: {folder}" if recipe else str(folder)
    if is_adapter:
        raise CheckpointError(
            f"{where} holds a LoRA adapter, but the report measures full models; merge it"
            + (f" first:\n  axolotl merge-lora {recipe}" if recipe else ", and give the merged folder")
        )
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime_ns)
    interrupted = checkpoints and (
        f", but {checkpoints[-1].name}: its run was interrupted, or is still running. To resume it, set "
        "auto_resume_from_checkpoints: true"
    )
    train = f"train first:\n  accelerate launch -m axolotl.cli.train {recipe}"
    raise CheckpointError(
        f"{where} holds no trained model (config.json and model*.safetensors){interrupted or ''}; "
        + (train if recipe else "expected the folder of a merged model. Merge first, or give the stage's recipe")
    )


def require_plan(stage: Stage, plan: LayerPlan, expected: str) -> None:
    """Check that a stage's model was upscaled by ``plan`` and has readable weights; else ``expected`` ends the error.

    Raises:
        CheckpointError: It was not, or has not.
    """
    directory = stage.directory
    found = BaseCheckpoint(str(directory), directory, read_config(directory / CONFIG))
    recorded = recorded_plan(found.config)
    if found.num_layers != len(plan) or recorded not in (None, plan):
        where = f"{stage.where}: output_dir: {directory}" if stage.recipe else str(directory)
        raise CheckpointError(
            f"{where} holds a model of {found.num_layers} layers{f' ({recorded})' if recorded else ''}, {expected}"
        )
    _ = found.tensors  # Reads the headers, so that damaged weights are found before anything is measured.
