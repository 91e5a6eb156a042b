"""What ``solar plan`` tells: the plan of a recipe or a base, with sizes and memory, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solar_plugins.args import InitArgs, parse_solar_block
from solar_plugins.errors import ArgsError
from solar_plugins.memory.common_setups import NOTE, SetupMemory, common_setups
from solar_plugins.memory.parameters import Model
from solar_plugins.recipes import base_of, read_recipe
from solar_plugins.upscaling.architecture import base_depth, decoder_config, upscale_config
from solar_plugins.upscaling.base_model import BaseCheckpoint, find_config
from solar_plugins.upscaling.checkpoint import planned_shards
from solar_plugins.upscaling.estimates import (
    ModelSize,
    decoder_widths,
    format_bytes,
    shapes_from_config,
    shapes_from_shards,
    size_from_config,
    size_from_shards,
    stored_dtype,
)
from solar_plugins.upscaling.layer_plan import LayerPlan

DEFAULT_SEQUENCE_TOKENS = 4096


@dataclass(frozen=True)
class PlanReport:
    """A plan and what follows from it."""

    base: str
    revision: str | None
    config: Mapping[str, Any]
    init: InitArgs
    plan: LayerPlan
    size: ModelSize | None
    """Of the deeper model; None where only the weights could tell and they are not here."""
    base_size: ModelSize | None
    sequence_tokens: int
    memory: list[SetupMemory]
    """In common set-ups; empty where sizes or widths are not known."""


def plan_for_recipe(path: Path) -> PlanReport:
    """The plan of a recipe's ``solar:`` block.

    Raises:
        SolarError: The recipe, its block or its base cannot be used.
    """
    recipe = read_recipe(path)
    solar = parse_solar_block(recipe)
    if solar is None:
        raise ArgsError(f"{path}: has no `solar:` block, so there is nothing to plan; see recipes/solar_dus.yml")
    base, revision = base_of(recipe)
    trusted = recipe.get("trust_remote_code") is True
    sequence_tokens = recipe.get("sequence_len")
    if type(sequence_tokens) is not int or sequence_tokens < 1:
        sequence_tokens = DEFAULT_SEQUENCE_TOKENS
    return plan_for_base(base, revision, solar.init, sequence_tokens=sequence_tokens, trust_remote_code=trusted)


def plan_for_base(
    base: str,
    revision: str | None,
    init: InitArgs,
    where: str = "solar.init.",
    sequence_tokens: int = DEFAULT_SEQUENCE_TOKENS,
    trust_remote_code: bool = False,
) -> PlanReport:
    """The plan of a strategy for a base.

    Args:
        base: A directory, a config.json or a hub id.
        revision: Of a hub id.
        init: Strategy and arguments.
        where: What stands before a key in error messages.
        sequence_tokens: For the estimate of activations.
        trust_remote_code: Accept a base whose config names code of its own.

    Raises:
        SolarError: The base or the arguments cannot be used.
    """
    config, checkpoint = find_config(base, revision, trust_remote_code=trust_remote_code)
    plan = init.plan_for(base_depth(config), where)
    upscale_config(config, plan)  # Refuses here, not first after a download, what the plan would make of the config.
    size, base_size = (_size(config, checkpoint, made) for made in (plan, _unchanged(plan)))
    model = _model(config, checkpoint, plan)
    memory = common_setups(model, sequence_tokens) if model else []
    return PlanReport(base, revision, config, init, plan, size, base_size, sequence_tokens, memory)


def _unchanged(plan: LayerPlan) -> LayerPlan:
    return LayerPlan.from_sources(plan.base_layers, range(plan.base_layers))


def _size(config: Mapping[str, Any], checkpoint: BaseCheckpoint | None, plan: LayerPlan) -> ModelSize | None:
    if checkpoint:
        return size_from_shards(planned_shards(checkpoint, plan), config)
    return size_from_config(config, len(plan))


WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def _model(config: Mapping[str, Any], checkpoint: BaseCheckpoint | None, plan: LayerPlan) -> Model | None:
    """The deeper model, where its memory in training can be estimated."""
    if config.get("quantization_config") or not all(decoder_config(config).get(key) for key in WIDTHS):
        return None
    from_files = shapes_from_shards(planned_shards(checkpoint, plan)) if checkpoint else None
    shapes = from_files or shapes_from_config(config, len(plan))
    return Model(shapes, decoder_widths(config), len(plan), str(config["model_type"])) if shapes else None


def as_json(report: PlanReport) -> dict[str, Any]:
    """The report as JSON-ready values. Layer indices are 0-based, sizes are in bytes."""
    plan = report.plan
    return {
        "base": report.base,
        "strategy": report.init.strategy,
        "arguments": report.init.model_extra or {},
        "base_layers": plan.base_layers,
        "num_layers": len(plan),
        "layers": [layer._asdict() for layer in plan.layers],
        "seams": [seam._asdict() | {"distance": seam.distance} for seam in plan.seams()],
        "base_parameters": report.base_size.parameters if report.base_size else None,
        "parameters": report.size.parameters if report.size else None,
        "dtype": stored_dtype(report.config),
        "checkpoint_bytes": report.size.checkpoint_bytes if report.size else None,
        "sequence_tokens": report.sequence_tokens,
        "memory": [estimate._asdict() for estimate in report.memory],
        "memory_note": NOTE,
    }


def as_text(report: PlanReport) -> str:
    """The report for a terminal, the deeper model drawn with its top layer on top."""
    plan = report.plan
    head = [
        f"{report.base}: {plan.base_layers} -> {len(plan)} layers by {report.init.strategy}",
        *_size_lines(report),
        "",
    ]
    memory = [*_memory_table(report), "", f"- {NOTE}"] if report.memory else []
    return "\n".join([*head, *_drawing(plan), "", *memory])


def _size_lines(report: PlanReport) -> list[str]:
    if report.size is None or report.base_size is None:
        return [
            f"parameters  config.json alone does not tell for model_type {report.config['model_type']!r}; give the "
            "folder with its weights"
        ]
    return [
        f"parameters  {report.base_size.parameters:,} -> {report.size.parameters:,}",
        f"checkpoint  {format_bytes(report.size.checkpoint_bytes)} in {stored_dtype(report.config)}",
    ]


def _drawing(plan: LayerPlan) -> list[str]:
    seams = {seam.position: seam for seam in plan.seams()}
    lines, position = [], 0
    for part in plan.ranges():
        count = part.end - part.start
        if position in seams:
            seam = seams[position]
            lines.append(
                f"  ~~~~~~~~~~~~~~  seam: layer {seam.below} feeds layer {seam.above}, distance {seam.distance}"
            )
        new, old = f"{position}..{position + count - 1}", f"{part.start}..{part.end - 1}"
        lines.append(f"  new {new:>9}   = base {old}" + (" as identity" if part.initialization == "identity" else ""))
        position += count
    return lines[::-1]


def _memory_table(report: PlanReport) -> list[str]:
    title = f"memory of each GPU, {report.sequence_tokens} tokens"
    rows = [f"{title:<40}{'model states':>14}{'peak':>10}"]
    rows += [
        f"  {estimate.setup:<38}{format_bytes(estimate.state_bytes):>14}{format_bytes(estimate.total_bytes):>10}"
        for estimate in report.memory
    ]
    return rows
