"""The model that a recipe trains, also where an earlier stage has still to make it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from solar_plugins.errors import ArgsError, CheckpointError
from solar_plugins.memory.parameters import Model
from solar_plugins.recipe import Recipe, read_recipe
from solar_plugins.upscaling.base_model import CONFIG, FoundConfig, find_config
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.estimates import Shape, shapes_from_config, shapes_from_shards
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.provenance import plan_of_model, requested_plan
from solar_plugins.upscaling.upscaled_config import upscale_config
from solar_plugins.upscaling.upscaled_tensors import planned_shards

MAX_STAGES = 20


class FoundModel(NamedTuple):
    """The model, and where it comes from."""

    model: Model
    decoder: Decoder
    """Of the base at the start of the chain."""
    plan: LayerPlan | None
    """By which the model is upscaled, or was before; None where nothing says so."""
    stages: tuple[str, ...]
    """The recipes, first to last, and before them the base."""
    already_grown: bool = False
    """Whether the base came out of the first recipe's own plan, so that it is used as it is."""


def model_of(recipe: Recipe, base: str | None) -> FoundModel:
    """The model that the recipe trains.

    Where its ``base_model`` does not exist, a recipe beside it makes that: one whose ``output_dir`` it is, or a merge
    whose command writes it. So the chain is followed to its start.

    Args:
        recipe: The recipe, read from a file.
        base: A config.json, a directory or a hub id, in place of the ``base_model`` at the start of the chain.

    Raises:
        SolarError: The chain does not lead to a model whose parameters are known.
    """
    assert recipe.path is not None
    path = recipe.path
    stages = [path.name]
    while True:
        name, revision = recipe.base
        maker = None if recipe.upscales or (Path(name) / CONFIG).is_file() else _maker(name, path.parent)
        if maker is None:
            break
        stages.insert(0, str(maker.relative_to(path.parent)))
        if len(stages) > MAX_STAGES:
            raise ArgsError(f"{path}: the recipes before it form a circle: {' -> '.join(stages[:4])} -> ...")
        recipe = read_recipe(maker)
        if recipe.base_model is None:
            raise ArgsError(f"{maker}: a merge that names no base_model, so the chain to {path.name} ends here")
    try:
        found = find_config(
            base or name,
            None if base else revision,
            trust_remote_code=recipe.trusts_code,
            trusted_keys=recipe.trusted_keys,
        )
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}\n{path.name} begins with base_model: {name}; no recipe in {path.parent} makes it. Give the "
            "config.json of that model, or of one like it, with --base"
        ) from None
    stages.insert(0, base or name)
    if recipe.solar is None or not recipe.upscales:
        return FoundModel(_unchanged(found), found.decoder, plan_of_model(found.decoder, base or name), tuple(stages))
    plan, already_grown = requested_plan(found.decoder, base or name, recipe.solar.init)
    if not already_grown:
        found, plan = found.with_donors(plan, recipe.solar.init)
    model = _unchanged(found) if already_grown else _grown(found, plan)
    return FoundModel(model, found.decoder, plan, tuple(stages), already_grown)


def _grown(base: FoundConfig, plan: LayerPlan) -> Model:
    # Refuses what the plan would make of the config.
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
            "config.json: quantization_config; the weights are packed, and how wide they are in training is not known "
            "here. Give the config of the model before it was quantised, with --base"
        )
    found = shapes or shapes_from_config(decoder, num_layers)
    if found is None:
        raise CheckpointError(
            f"config.json alone does not tell the parameters for model_type {decoder.model_type!r}; give the folder "
            "with its weights"
        )
    return Model(found, decoder.widths, num_layers, decoder.model_type)


def _maker(name: str, folder: Path) -> Path | None:
    """The recipe in a folder that writes what another one calls ``base_model: name``."""
    wanted = name.rstrip("/").removesuffix("/merged")  # what merge-lora adds to an output_dir
    beside = (path for pattern in ("*.yml", "*/*.yml") for path in sorted(folder.glob(pattern)) if path.is_file())
    return next((path for path in beside if wanted in _written_by(path)), None)


def _written_by(path: Path) -> Iterator[str]:
    """The folders that a recipe writes. Its text is searched, because to parse every recipe would take too long."""
    text = path.read_text(encoding="utf-8", errors="replace")
    yield from re.findall(r"^output_dir: *[\"']?([^\s\"'#]+)", text, re.MULTILINE)
    yield from re.findall(r"^# run: +mergekit-yaml \S+ (\S+)", text, re.MULTILINE)
