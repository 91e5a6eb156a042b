"""The training checkpoint that a run would resume from: rejected if it belongs to a model with other layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.recipe import Recipe
from solar_plugins.storage.untrusted import read_json_object
from solar_plugins.upscaling.base_model import CONFIG
from solar_plugins.upscaling.checkpoint import CACHE_PREFIX
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.provenance import recorded_plan

ADAPTER_CONFIG = "adapter_config.json"


def refuse_other_plans_checkpoint(recipe: Recipe, plan: LayerPlan, upscaled: Path) -> None:
    """Refuse to resume from a checkpoint of a model that was upscaled by another plan.

    transformers loads the tensors that fit and ignores the rest, so the run would resume with layers of two plans.

    Args:
        recipe: The recipe.
        plan: Its plan.
        upscaled: The upscaled checkpoint, which is the base in a LoRA checkpoint's config.

    Raises:
        CheckpointError: The training checkpoint has another plan, or its adapter another upscaled checkpoint.
    """
    checkpoint = checkpoint_to_resume(recipe)
    if checkpoint is None:
        return
    other = _other_model(checkpoint, plan, upscaled)
    if other is not None:
        key = "auto_resume_from_checkpoints" if recipe.resume_from_checkpoint is None else "resume_from_checkpoint"
        raise CheckpointError(
            f"{key}: {checkpoint} belongs to {other}, but this recipe trains {plan} ({upscaled.name}). Set another "
            "output_dir, or move that folder away"
        )


def checkpoint_to_resume(recipe: Recipe) -> Path | None:
    """The checkpoint from which Axolotl would resume (``determine_last_checkpoint`` in axolotl/utils/train.py)."""
    if recipe.resume_from_checkpoint is not None:
        return Path(recipe.resume_from_checkpoint)
    if not recipe.auto_resume_from_checkpoints:
        return None
    found = [path for path in Path(recipe.output_dir).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    return max(found, key=lambda path: int(path.name.split("-")[-1]), default=None)


def _other_model(checkpoint: Path, plan: LayerPlan, upscaled: Path) -> str | None:
    """The checkpoint's model in words if it is another one; sharded states may have no config at all."""
    recorded = recorded_plan(_content(checkpoint / CONFIG))
    if recorded is not None and recorded != plan:
        return f"another plan, {recorded}"
    base = _content(checkpoint / ADAPTER_CONFIG).get("base_model_name_or_path")
    name = Path(base).name if isinstance(base, str) else ""
    if name.startswith(CACHE_PREFIX) and name != upscaled.name:
        return f"another upscaled checkpoint, {name}"
    return None


def _content(path: Path) -> Mapping[str, Any]:
    try:
        return read_json_object(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
