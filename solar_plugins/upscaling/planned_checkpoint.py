"""What an upscaled checkpoint will hold, and every refusal that headers allow: `solar plan` and `upscale` agree."""

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
    """What is written anew for an upscaled checkpoint."""

    config: dict[str, Any]
    shards: list[Shard]
    changed: dict[str, bytes]
    """As `changed_companions`."""


def changed_companions(base: BaseCheckpoint, plan: LayerPlan) -> dict[str, bytes]:
    """The content, by name, of files beside the weights that are not copied as they are.

    Those that say how the weights are quantised, where they name layers by number; and a generation config that
    transformers would refuse to save.

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
    """What is written anew for the upscaled checkpoint. Reads headers only, and refuses all that they can tell.

    Raises:
        CheckpointError: The base cannot be used, or not with this plan.
    """
    config = upscale_config(base.decoder, plan, [donor.decoder for donor in base.donors])
    shards = planned_shards(base, plan)
    refuse_undeclared_integers({name: tensor.dtype for name, tensor in base.tensors.items()}, base.decoder)
    headless = not base.decoder.has_language_model_head or saved_without_head(base.tensors, base.decoder)
    _require_expected_parameters(shards, base.decoder, plan, base.name, headless=headless)
    for model in base.models:
        _require_residual_writers(model.tensors, model.decoder, model.name)
        _ = model.files  # Refuses links that lead out of the folder, and git-lfs pointers.
    if base.donors:
        from solar_plugins.upscaling.donors import refuse_other_files  # Imported late: few plans have donors.

        for donor in base.donors:
            refuse_other_files(base, donor)
    return PlannedCheckpoint(config, shards, changed_companions(base, plan))


def _require_expected_parameters(
    shards: Iterable[Shard], decoder: Decoder, plan: LayerPlan, base_name: str, *, headless: bool
) -> None:
    """Refuse tensors that are not the parameters which the config promises: loading would invent the missing ones.

    Nothing is known, and nothing refused, where `shapes_from_config` cannot tell. Tensors beside the layers that the
    model does not have, such as a value head, are no harm: transformers ignores them.

    Args:
        shards: Of the deeper model.
        decoder: The base's.
        plan: What becomes of its layers.
        base_name: What to call the base in an error.
        headless: Whether the base has no head for language modelling.

    Raises:
        CheckpointError: A tensor is missing, has another shape, or a layer holds one that the model has not.
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
            f"{base_name}: with {len(plan)} layers, tensor {wrong} {has}; its config.json makes it "
            f"{list(expected[wrong])}. The checkpoint is incomplete, or the config belongs to another model"
        )
    extra = next((name for name in found if name.startswith("model.layers.") and _is_extra(name, expected)), None)
    if extra:
        raise CheckpointError(
            f"{base_name}: tensor {extra!r:.200} is not a parameter of the model that its config.json makes, so "
            "transformers would leave it out; the config belongs to another model"
        )


def _require_residual_writers(names: Iterable[str], decoder: Decoder, base_name: str) -> None:
    """Refuse layers without a module that every layer of the type has: its tensors are called otherwise.

    For the types of which no more is known than these modules; transformers would load random weights there.

    Args:
        names: Of all tensors, as the model names them.
        decoder: The base's.
        base_name: What to call the base in an error.

    Raises:
        CheckpointError: A layer has no tensor of one of them.
    """
    matches = [match for match in (layer_prefix_of(name, decoder) for name in names) if match]
    parts: dict[int, list[str]] = {}
    for match in matches:
        if match[1] in layer_prefixes(decoder):
            parts.setdefault(int(match[2]), []).append(match[3])
    for number, module in product(range(decoder.num_layers), decoder.architecture.residual_writers):
        if not any(part.startswith(f"{module}.") for part in parts.get(number, ())):
            raise CheckpointError(
                f"{base_name}: layer {number} has no tensor of {module}, as every layer of model_type "
                f"{decoder.model_type!r} has; transformers would load random weights there. The checkpoint is "
                "incomplete, or its tensors are misnamed"
            )


def _full_name(name: str) -> str:
    """As the causal model spells it, which transformers completes or shortens when it loads."""
    name = name.removeprefix("transformer.")
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"


def _is_extra(name: str, expected: Mapping[str, Shape]) -> bool:
    """Rotary buffers do not count: old Llama checkpoints hold them."""
    return name not in expected and not name.endswith("rotary_emb.inv_freq")
