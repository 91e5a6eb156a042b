"""Where a recipe left its trained model, and whether that was upscaled by the plan."""

from __future__ import annotations

from pathlib import Path

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.base_model import CONFIG, BaseCheckpoint, read_config
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.provenance import recorded_plan


def trained_directory(output_dir: Path, recipe_path: Path) -> Path:
    """The directory of the whole model that a recipe trained: its ``output_dir``, or after LoRA the merged one in it.

    Raises:
        CheckpointError: There is none.
    """
    train = f"accelerate launch -m axolotl.cli.train {recipe_path}"
    directory = output_dir
    if is_adapter(output_dir):
        directory, train = output_dir / "merged", f"axolotl merge-lora {recipe_path}"
    if holds_model(directory):
        return directory
    if directory == output_dir:
        raise CheckpointError(
            f"output_dir: {output_dir} holds no trained model (config.json and model*.safetensors)"
            f"{_interrupted(output_dir)}; train first:\n  {train}"
        )
    raise CheckpointError(
        f"output_dir: {output_dir} holds a LoRA adapter, and the report measures whole models; merge it "
        f"first:\n  {train}"
    )


def is_adapter(directory: Path) -> bool:
    """Whether a LoRA adapter lies in it."""
    return (directory / "adapter_config.json").is_file()


def holds_model(directory: Path) -> bool:
    """Whether a whole model lies in it. Axolotl writes the config before the first step, so that is not enough."""
    return (directory / CONFIG).is_file() and any(directory.glob("model*.safetensors"))


def _interrupted(output_dir: Path) -> str:
    checkpoints = sorted(output_dir.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime_ns)
    if not checkpoints:
        return ""
    return (
        f", but {checkpoints[-1].name}: its run was interrupted, or is still going on. To go on from there, set "
        "auto_resume_from_checkpoints: true"
    )


def require_plan(directory: Path, plan: LayerPlan, where: str, expected: str) -> None:
    """Nothing, if a directory holds a model that was upscaled by ``plan``, with weights that are not damaged.

    Args:
        directory: Of a whole model.
        plan: The plan.
        where: What to call the directory in the error.
        expected: How to go on after what was found: what was expected, and what to do.

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
