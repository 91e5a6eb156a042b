"""The content of an upscaled checkpoint, with all checks that need only headers, so `solar plan` finds all errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, NamedTuple

from solar_plugins.errors import CheckpointError
from solar_plugins.storage.safetensors import Shard
from solar_plugins.upscaling.base_model import BaseCheckpoint
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.estimates import Shape, shapes_from_config, shapes_from_shards
from solar_plugins.upscaling.generation_config import GENERATION_CONFIG, savable_copy
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.quantization import refuse_undeclared_integers, reordered_quantizations
from solar_plugins.upscaling.tensor_names import is_tied, layer_prefix_of, layer_prefixes, saved_without_head
from solar_plugins.upscaling.upscaled_config import upscale_config
from solar_plugins.upscaling.upscaled_tensors import planned_shards


class PlannedCheckpoint(NamedTuple):
    """The files of an upscaled checkpoint that are not plain copies."""

    config: dict[str, Any]
    shards: list[Shard]
    changed: dict[str, bytes]
    """See `changed_companions`."""


def changed_companions(base: BaseCheckpoint, plan: LayerPlan) -> dict[str, bytes]:
    """The new content, by name, of companion files that have to change.

    These are quantization configs that name layers by number, and a generation config that transformers would refuse
    to save.

    Raises:
        CheckpointError: As `reordered_quantizations`.
    """
    reordered = reordered_quantizations(base.decoder, plan)
    side_files = {name: reordered[name] for name, said in base.side_files.items() if said and reordered[name] != said}
    changed = {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in side_files.items()}
    path = base.directory / GENERATION_CONFIG
    savable = savable_copy(path) if path.is_file() else None
    return changed if savable is None else changed | {GENERATION_CONFIG: savable}


def planned_checkpoint(base: BaseCheckpoint, plan: LayerPlan) -> PlannedCheckpoint:
    """The content of the upscaled checkpoint. Reads only headers, and makes all checks that they allow.

    Raises:
        CheckpointError: The base cannot be used, or cannot be upscaled by this plan.
    """
    config = upscale_config(base.decoder, plan, [donor.decoder for donor in base.donors])
    shards = planned_shards(base, plan)
    refuse_undeclared_integers({name: tensor.dtype for name, tensor in base.tensors.items()}, base.decoder)
    headless = not base.decoder.has_language_model_head or saved_without_head(base.tensors, base.decoder)
    _require_expected_parameters(shards, base.decoder, plan, base.name, headless=headless)
    for model in base.models:
        _require_residual_writers(model.tensors, model.decoder, model.name)
        _ = model.files  # Refuses links out of the directory and git-lfs pointers.
    if base.donors:
        from solar_plugins.upscaling.donors import refuse_other_files  # Imported late: few plans have donors.

        for donor in base.donors:
            refuse_other_files(base, donor)
    return PlannedCheckpoint(config, shards, changed_companions(base, plan))


def _require_expected_parameters(
    shards: Iterable[Shard], decoder: Decoder, plan: LayerPlan, base_name: str, *, headless: bool
) -> None:
    """Refuse tensors that do not match the config: transformers would initialize missing parameters randomly.

    Checks only models that `shapes_from_config` supports. Extra tensors outside the layers, such as a value head, are
    allowed: transformers ignores them.

    Args:
        shards: The shards of the deeper model.
        decoder: The base's decoder.
        plan: The plan.
        base_name: The base's name in an error.
        headless: Whether the base has no language-modeling head.

    Raises:
        CheckpointError: A tensor is missing or has another shape, or a layer has a tensor that the model does not.
    """
    expected = shapes_from_config(decoder, len(plan))
    if expected is None:
        return
    found = {_full_name(name): shape for name, shape in shapes_from_shards(shards).items()}
    optional = {"lm_head.weight"} if is_tied(decoder) or headless else set()
    wrong = next((name for name, shape in expected.items() if found.get(name) != shape and name not in optional), None)
    if wrong:
        has = f"has the shape {list(found[wrong])}" if wrong in found else "is missing"
        raise CheckpointError(
            f"{base_name}: with {len(plan)} layers, tensor {wrong} {has}; expected {list(expected[wrong])} from its "
            "config.json. The checkpoint is incomplete, or the config belongs to another model: download it again"
        )
    extra = next((name for name in found if name.startswith("model.layers.") and _is_extra(name, expected)), None)
    if extra:
        raise CheckpointError(
            f"{base_name}: tensor {extra!r:.200} is not a parameter of the model in its config.json, so transformers "
            "would ignore it; the config belongs to another model: download it again"
        )


def _require_residual_writers(names: Iterable[str], decoder: Decoder, base_name: str) -> None:
    """Refuse layers that lack a module that every layer of the model type has; transformers would load random weights.

    Needed for types whose other parameters are not known.

    Args:
        names: The names of all tensors in the model.
        decoder: The base's decoder.
        base_name: The base's name in an error.

    Raises:
        CheckpointError: A layer has no tensor of such a module.
    """
    matches = [match for match in (layer_prefix_of(name, decoder) for name in names) if match]
    parts: dict[int, list[str]] = {}
    for match in matches:
        if match[1] in layer_prefixes(decoder):
            parts.setdefault(int(match[2]), []).append(match[3])
    for number, module in product(range(decoder.num_layers), decoder.architecture.residual_writers):
        if not any(part.startswith(f"{module}.") for part in parts.get(number, ())):
            raise CheckpointError(
                f"{base_name}: layer {number} has no tensor of {module}, expected in every layer of model_type "
                f"{decoder.model_type!r}; transformers would load random weights instead. The checkpoint is "
                "incomplete, or its tensors are misnamed: download it again"
            )


def _full_name(name: str) -> str:
    """The name in the causal language model; transformers adds or removes prefixes when it loads."""
    name = name.removeprefix("transformer.")
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"


def _is_extra(name: str, expected: Mapping[str, Shape]) -> bool:
    """Whether a tensor is unexpected. Rotary buffers are not: old Llama checkpoints have them."""
    return name not in expected and not name.endswith("rotary_emb.inv_freq")
