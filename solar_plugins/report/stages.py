"""The stages of a chain of recipes: which model each left, and whether it belongs to the chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from solar_plugins.errors import ArgsError, CheckpointError, PluginError
from solar_plugins.recipe import TYPE_PREFIX, Recipe, read_recipe, read_yaml
from solar_plugins.report.trained_models import holds_model, is_adapter, require_plan, trained_directory
from solar_plugins.report.training_log import TrainingLog, read_training_log
from solar_plugins.upscaling.layer_plan import LayerPlan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = ("base", "upscaled", "trained")
"""What the base, the upscaled and, in a report on one recipe, the trained model are called."""

RECIPE_PREFIX = "solar_"
RECIPE_SUFFIXES = (".yml", ".yaml")


@dataclass(frozen=True, slots=True)
class Stage:
    """What one recipe, or one merge, left.

    Args:
        name: The model's name in the report.
        directory: Of the whole model.
        recipe: The Axolotl recipe; None for a merged model, which is given by its folder.
        log: What the Trainer logged, if the run kept that.
        began_with: The earlier stage that its ``base_model`` is, if that is in the report.
    """

    name: str
    directory: Path
    recipe: Recipe | None = None
    log: TrainingLog | None = None
    began_with: str | None = None

    @property
    def recipe_path(self) -> Path | None:
        """Where the recipe lies."""
        return self.recipe.path if self.recipe else None

    @property
    def method(self) -> str | None:
        """``rl`` of the recipe: the method of preference training."""
        return self.recipe.rl if self.recipe else None

    @property
    def steps(self) -> int | None:
        """Optimizer steps that its model has; None where the log ends before, or a better model in between is kept."""
        keeps_best = self.recipe and (self.recipe.load_best_model_at_end or self.recipe.early_stopping_patience)
        if self.log is None or keeps_best or self.log.last_step < self.log.planned_steps:
            return None
        return self.log.last_step

    @property
    def starts_at_ln_2(self) -> bool:
        """Whether the loss is DPO's own, unweighted, and model and reference are the same at first: then it is ln 2."""
        recipe = self.recipe
        if recipe is None or recipe.rl != "dpo":
            return False
        own = recipe.dpo_loss_type in (None, "sigmoid", ["sigmoid"])
        # DPO's loss is scaled, or training begins with an adapter that the reference has not.
        return own and not (recipe.dpo_use_weighting or recipe.dpo_loss_weights or recipe.lora_model_dir)

    @property
    def uses_chat_format(self) -> bool:
        """Whether it trains on SOLAR's chat format, or on another one."""
        if self.recipe is None:
            return False
        kinds = [str(entry.get("type")) for _, entry in self.recipe.entries("datasets")]
        return any(kind.startswith((TYPE_PREFIX, "chat_template")) for kind in kinds) or bool(self.recipe.chat_template)


def find_stages(recipe: Recipe, plan: LayerPlan, later: Sequence[Path]) -> tuple[Stage, ...]:
    """The stages of a report, in order.

    Args:
        recipe: The recipe that upscales, read from a file.
        plan: What it makes of its base.
        later: Of each later stage the Axolotl recipe, or the folder of a merged model.

    Raises:
        SolarError: A stage was not trained, is not of this plan, or cannot be told from another by its name.
    """
    assert recipe.path is not None
    directory = trained_directory(recipe.output_directory, recipe.path)
    require_plan(
        directory,
        plan,
        f"output_dir: {directory}",
        f"but this recipe's plan is {plan}; it comes from another recipe. Train this one, or give the recipe that was "
        "trained",
    )
    name = _stage_name(recipe.path) if later else NAMES[2]
    stages = [_trained_stage(name, directory, recipe)]
    for argument in later:
        stage = _later_stage(argument)
        require_plan(
            stage.directory,
            plan,
            f"{argument}: output_dir: {stage.directory}" if stage.recipe_path else str(argument),
            f"but {recipe.path}, the first stage, makes {plan}; all stages of a report come from one upscaled model. "
            "Give the stages that were trained from it",
        )
        stages.append(stage)
    _refuse_equals(stages)
    return tuple(replace(stage, began_with=_began_with(stage, stages[:place])) for place, stage in enumerate(stages))


def _began_with(stage: Stage, earlier: Sequence[Stage]) -> str | None:
    if stage.recipe is None:
        return None
    base = Path(str(stage.recipe.base_model)).expanduser().resolve()
    return next((other.name for other in earlier if other.directory.resolve() == base), None)


def _stage_name(path: Path) -> str:
    return path.stem.removeprefix(RECIPE_PREFIX)


def _later_stage(argument: Path) -> Stage:
    if argument.is_dir():
        return _merged_stage(argument)
    if not argument.is_file() and argument.suffix not in RECIPE_SUFFIXES:
        raise ArgsError(
            f"{argument}: neither a recipe nor a folder; expected a later stage's Axolotl recipe, or the folder of a "
            "merged model"
        )
    recipe = _read_later(argument)
    try:
        directory = trained_directory(recipe.output_directory, argument)
    except CheckpointError as error:
        raise CheckpointError(f"{argument}: {error}") from None
    return _trained_stage(_stage_name(argument), directory, recipe)


def _read_later(path: Path) -> Recipe:
    if "merge_method" in read_yaml(path):
        raise ArgsError(
            f"{path}: a recipe for mergekit, which does not say where its model is; give the folder into which "
            f"mergekit-yaml {path} FOLDER wrote it"
        )
    try:
        return read_recipe(path)
    except (ArgsError, PluginError) as error:
        raise type(error)(f"{path}: {error}") from None


def _merged_stage(directory: Path) -> Stage:
    if not holds_model(directory):
        raise CheckpointError(
            f"{directory}: a LoRA adapter, and the report measures whole models; merge it, and give the folder merged"
            if is_adapter(directory)
            else f"{directory}: holds no model (config.json and model*.safetensors); expected the folder of a merged "
            "model. Merge first, or give the Axolotl recipe of the stage"
        )
    return Stage(directory.resolve().name, directory)


def _trained_stage(name: str, directory: Path, recipe: Recipe) -> Stage:
    return Stage(name, directory, recipe, read_training_log(recipe.output_directory))


def _refuse_equals(stages: Sequence[Stage]) -> None:
    """Nothing, if names differ and folders too: of two stages in one folder the later has written over the earlier."""
    taken = {name: "the report itself" for name in NAMES[:2]}
    folders = dict[Path, str]()
    for stage in stages:
        where = str(stage.recipe_path or stage.directory)
        if stage.name in taken:
            raise ArgsError(
                f"{where}: would be called {stage.name!r} in the report, as {taken[stage.name]} is; give each stage "
                "once, or rename the recipe or the folder"
            )
        taken[stage.name] = where
        if (folder := stage.directory.resolve()) in folders:
            raise ArgsError(
                f"{where}: its model is in {stage.directory}, as that of {folders[folder]} is; give each stage an "
                "output_dir of its own and train it, or leave one out"
            )
        folders[folder] = where


def check_tokenizer(
    stage: Stage,
    reference: PreTrainedTokenizerBase,
    tokenizer: PreTrainedTokenizerBase,
    windows: Callable[[PreTrainedTokenizerBase], list[list[int]]],
) -> None:
    """Nothing, if a stage's tokenizer reads the held-out text as the base's does; more tokens may have been added.

    Args:
        stage: The stage.
        reference: The base's tokenizer.
        tokenizer: The stage's.
        windows: From a tokenizer to what the models read.

    Raises:
        CheckpointError: It reads it differently.
    """
    found = tokenizer.get_vocab()
    moved = [(token, place) for token, place in reference.get_vocab().items() if found.get(token) != place]
    if moved:
        token, place = min(moved, key=lambda pair: pair[1])
        difference = f"{token!r} is token {found.get(token, 'none')} in it and {place} in the base's"
    elif windows(tokenizer) != windows(reference):
        difference = "it reads the held-out text as other tokens than the base's does"
    else:
        return
    raise CheckpointError(
        f"{stage.directory}: the tokenizer of the stage {stage.name} is another one than the base's ({difference}); "
        "all models of a report are measured on the same token ids. Give stages that keep the base's tokenizer"
    )
