"""The model that a recipe trains, even if an earlier stage has not been run yet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from solar_plugins.errors import ArgsError, CheckpointError
from solar_plugins.memory.parameters import Model
from solar_plugins.pipeline import Stage, read_pipeline
from solar_plugins.recipe import Recipe, read_recipe
from solar_plugins.upscaling.base_model import CONFIG, FoundConfig, find_config
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.estimates import Shape, shapes_from_config, shapes_from_shards
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.provenance import plan_of_model, requested_plan
from solar_plugins.upscaling.upscaled_config import upscale_config
from solar_plugins.upscaling.upscaled_tensors import planned_shards

MAX_STAGES = 20
MAX_RECIPE_BYTES = 1_000_000

OUTPUT_DIR = re.compile(r"^output_dir: *[\"']?([^\s\"'#]+)", re.MULTILINE)
STAGES = re.compile(r"^stages:", re.MULTILINE)
"""Text searches: parsing every recipe of a folder would take too long."""


class FoundModel(NamedTuple):
    """The model and its origin."""

    model: Model
    decoder: Decoder
    """Of the base at the start of the chain."""
    plan: LayerPlan | None
    """By which the model is, or was, upscaled; None if there is no record of one."""
    stages: tuple[str, ...]
    """The base, then the recipes in order."""
    already_grown: bool = False
    """Whether the base was already upscaled by the first recipe's plan, so that it is used as it is."""


def model_of(recipe: Recipe, base: str | None) -> FoundModel:
    """The model that the recipe trains.

    If its ``base_model`` does not exist, it is looked up in the recipes of the same folder: the one with that
    ``output_dir``, or a merge to which a pipeline file there gives that output. So the chain is followed to its start.

    Args:
        recipe: The recipe, read from a file.
        base: A config.json, a directory or a hub id that replaces the ``base_model`` at the start of the chain.

    Raises:
        SolarError: The chain does not lead to a model with known parameters.
    """
    assert recipe.path is not None
    path = recipe.path
    recipe, stages = start_of(recipe)
    name, revision = recipe.base
    try:
        found = find_config(
            base or name,
            None if base else revision,
            trust_remote_code=recipe.trusts_code,
            trusted_keys=recipe.trusted_keys,
        )
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}\nThe stages of {path.name} start from base_model: {name}, and no recipe in {path.parent} writes "
            "it. Give the config.json of that model, or of a similar one, with --base"
        ) from None
    stages = [base or name, *stages]
    if recipe.solar is None or not recipe.upscales:
        return FoundModel(_unchanged(found), found.decoder, plan_of_model(found.decoder, base or name), tuple(stages))
    plan, already_grown = requested_plan(found.decoder, base or name, recipe.solar.init)
    if not already_grown:
        found, plan = found.with_donors(plan, recipe.solar.init)
    model = _unchanged(found) if already_grown else _upscaled(found, plan)
    return FoundModel(model, found.decoder, plan, tuple(stages), already_grown)


def start_of(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe at the start of the chain of stages that leads to a recipe, and the recipes of the chain in order.

    Args:
        recipe: The recipe, read from a file.

    Raises:
        SolarError: A recipe of the chain cannot be read, or the chain is a cycle.
    """
    assert recipe.path is not None
    path = recipe.path
    stages = [path.name]
    while True:
        name = recipe.base.name
        maker = None if recipe.upscales or (Path(name) / CONFIG).is_file() else _maker(name, path.parent)
        if maker is None:
            return recipe, stages
        stages.insert(0, str(maker.relative_to(path.parent)))
        if len(stages) > MAX_STAGES:
            raise ArgsError(
                f"{path}: the recipes before it form a cycle ({' -> '.join(stages[:4])} -> ...); change base_model or "
                "output_dir in one of them"
            )
        recipe = read_recipe(maker)
        if recipe.base_model is None:
            raise ArgsError(
                f"{maker}: a merge without base_model, so the base of {path.name} is not known. Run the merge first"
            )


def _upscaled(base: FoundConfig, plan: LayerPlan) -> Model:
    # Checked: it rejects a plan that the config cannot hold.
    upscale_config(base.decoder, plan, [donor.decoder for donor in base.donors])
    shapes = shapes_from_shards(planned_shards(base.checkpoint, plan)) if base.checkpoint else None
    return _model(base.decoder, shapes, len(plan))


def _unchanged(base: FoundConfig) -> Model:
    tensors = base.checkpoint.tensors if base.checkpoint else {}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return _model(base.decoder, shapes, base.decoder.num_layers)


def _model(decoder: Decoder, shapes: Mapping[str, Shape] | None, num_layers: int) -> Model:
    if decoder.quantization is not None:
        raise CheckpointError(
            "config.json: quantization_config; memory is not estimated for packed weights. Give the config.json of the "
            "model before quantization with --base"
        )
    found = shapes or shapes_from_config(decoder, num_layers)
    if found is None:
        raise CheckpointError(
            f"config.json: model_type {decoder.model_type!r}; for this type the config alone does not give the "
            "parameters. Give the folder with the weights"
        )
    return Model(found, decoder.widths, num_layers, decoder.model_type)


def _maker(name: str, folder: Path) -> Path | None:
    """The recipe in a folder that writes ``name``; where a merge is written, a pipeline says."""
    wanted = name.rstrip("/").removesuffix("/merged")  # merge-lora adds this to an output_dir.
    files = [path for pattern in ("*.yml", "*/*.yml") for path in sorted(folder.glob(pattern)) if path.is_file()]
    found = {path: _writes(path, path.stat().st_mtime_ns) for path in files}
    trained = next((path for path, (outputs, _) in found.items() if wanted in outputs), None)
    if trained is not None:
        return trained
    stages = (stage for path, (_, is_pipeline) in found.items() if is_pipeline for stage in _stages(path))
    return next((stage.file for stage in stages if stage.kind == "merge" and wanted in stage.outputs), None)


@lru_cache(maxsize=2000)
def _writes(path: Path, modified: int) -> tuple[frozenset[str], bool]:
    """The ``output_dir`` of a recipe, and whether the file is a pipeline.

    Args:
        path: The file.
        modified: When; a changed file is read again.
    """
    if path.stat().st_size > MAX_RECIPE_BYTES:
        return frozenset(), False
    text = path.read_text(encoding="utf-8", errors="replace")
    return frozenset(OUTPUT_DIR.findall(text)), bool(STAGES.search(text))


def _stages(pipeline: Path) -> tuple[Stage, ...]:
    try:
        return read_pipeline(pipeline).stages
    except ArgsError:
        return ()  # Not the user's question: this recipe may have nothing to do with that file.
