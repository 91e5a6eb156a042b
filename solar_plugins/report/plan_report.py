"""``solar plan``: the plan of a recipe or a base, with sizes and memory, as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solar_plugins.errors import ArgsError
from solar_plugins.memory.estimate import NOTE, SetupMemory, common_setups
from solar_plugins.memory.parameters import Model
from solar_plugins.solar_block import InitArgs
from solar_plugins.text import format_bytes, span
from solar_plugins.upscaling.base_model import FoundConfig, find_config
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.estimates import (
    ModelSize,
    shapes_from_config,
    shapes_from_shards,
    size_from_config,
    size_from_shards,
)
from solar_plugins.upscaling.layer_plan import LayerPlan, as_dict, seam_as_dict, start_words
from solar_plugins.upscaling.planned_checkpoint import planned_checkpoint
from solar_plugins.upscaling.provenance import PROVENANCE_KEY, requested_plan
from solar_plugins.upscaling.strategies import plan_of, strategy_arguments
from solar_plugins.upscaling.upscaled_config import upscale_config
from solar_plugins.upscaling.upscaled_tensors import planned_shards

if TYPE_CHECKING:
    from solar_plugins.upscaling.base_model import BaseCheckpoint
    from solar_plugins.upscaling.trained_layers import Trained

DEFAULT_SEQUENCE_TOKENS = 4096

NOT_CHECKED = "weights     not checked: the plan comes from config.json alone; `solar upscale` reads the weights"


@dataclass(frozen=True)
class PlanReport:
    """A plan with its sizes and memory."""

    base: FoundConfig
    """With the donors of the plan."""
    init: InitArgs
    plan: LayerPlan
    size: ModelSize | None
    """Of the upscaled model; None if it needs the weights and they are not here."""
    base_size: ModelSize | None
    """Of the plan's base; if the recipe's base was upscaled already, only if the config is enough."""
    sequence_tokens: int
    memory: list[SetupMemory]
    """In common setups; empty if sizes or widths are unknown."""
    already_grown: bool = False
    """Whether this plan already made ``base``, so that the recipe uses it unchanged."""
    trained: Trained | None = None
    """What ``solar.train`` of the recipe trains; None without that key."""

    @property
    def weights_checked(self) -> bool:
        """Whether the base's weights were read and match its config."""
        return self.base.folder is not None


def plan_for_recipe(path: Path) -> PlanReport:
    """The plan of a recipe's ``solar:`` block. A base that this plan already made is reported unchanged.

    Raises:
        SolarError: The recipe, its block or its base cannot be used.
    """
    from solar_plugins.recipe import read_recipe  # Late: `solar plan --base` has no recipe.

    recipe = read_recipe(path)
    if recipe.solar is None:
        raise ArgsError(f"{path}: has no `solar:` block, so there is nothing to plan; see recipes/solar_dus.yml")
    init = recipe.solar.init
    base = find_config(*recipe.base, trust_remote_code=recipe.trusts_code, trusted_keys=recipe.trusted_keys)
    plan, already_grown = requested_plan(base.decoder, base.name, init)
    if not already_grown:
        base, plan = base.with_donors(plan, init)
    trained = None
    if recipe.solar.train is not None:
        from solar_plugins.upscaling.trained_layers import trained_parts

        trained = trained_parts(recipe.solar.train, base.decoder, plan)
    return _report(base, init, plan, recipe.sequence_tokens, already_grown=already_grown, trained=trained)


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
        where: Prefix of a key in error messages.
        sequence_tokens: For the memory of activations.
        trust_remote_code: Accept a base whose config names its own code.

    Raises:
        SolarError: The base or the arguments cannot be used.
    """
    found = find_config(base, revision, trust_remote_code=trust_remote_code, trusted_keys=init.trusted_keys)
    found, plan = found.with_donors(plan_of(init, found.decoder.num_layers, where), init)
    return _report(found, init, plan, sequence_tokens)


def _report(
    base: FoundConfig,
    init: InitArgs,
    plan: LayerPlan,
    sequence_tokens: int,
    *,
    already_grown: bool = False,
    trained: Trained | None = None,
) -> PlanReport:
    made = _unchanged(len(plan)) if already_grown else plan
    if base.folder:
        planned_checkpoint(base.folder, made)  # Raises what `solar upscale` would raise.
    elif not already_grown:
        # Raises before a download what writing the config would raise.
        upscale_config(base.decoder, plan, [donor.decoder for donor in base.donors])
    before = None if already_grown else base.folder
    return PlanReport(
        base=base,
        init=init,
        plan=plan,
        size=_size(base.decoder, base.folder, made),
        base_size=_size(base.decoder, before, _unchanged(plan.base_layers)),
        sequence_tokens=sequence_tokens,
        memory=_memory(base, made, sequence_tokens),
        already_grown=already_grown,
        trained=trained,
    )


def _unchanged(num_layers: int) -> LayerPlan:
    return LayerPlan.from_sources(num_layers, range(num_layers))


def _size(decoder: Decoder, folder: BaseCheckpoint | None, plan: LayerPlan) -> ModelSize | None:
    return size_from_shards(planned_shards(folder, plan), decoder) if folder else size_from_config(decoder, len(plan))


WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def _memory(base: FoundConfig, plan: LayerPlan, sequence_tokens: int) -> list[SetupMemory]:
    """Of training the model that the plan makes, if that can be estimated."""
    decoder = base.decoder
    if decoder.quantization is not None or not all(decoder.text_config.get(key) for key in WIDTHS):
        return []
    from_files = shapes_from_shards(planned_shards(base.folder, plan)) if base.folder else None
    shapes = from_files or shapes_from_config(decoder, len(plan))
    if not shapes:
        return []
    return common_setups(Model(shapes, decoder.widths, len(plan), decoder.model_type), sequence_tokens)


def as_json(report: PlanReport) -> dict[str, Any]:
    """The report as JSON-ready values. Layer indices are 0-based, sizes are in bytes.

    ``already_grown``: this plan already made the recipe's base, which is used unchanged. Then ``base_layers`` and
    ``base_parameters`` are those of the plan's own base (null if its size is unknown); the other sizes and the memory
    are those of the existing model.
    """
    plan = report.plan
    return {
        "base": report.base.name,
        "already_grown": report.already_grown,
        "weights_checked": report.weights_checked,
        "strategy": report.init.strategy,
        "arguments": strategy_arguments(report.init),
        "duplicates": report.init.duplicates,
        **({"donors": [donor._asdict() for donor in plan.donors]} if plan.donors else {}),
        "base_layers": plan.base_layers,
        "num_layers": len(plan),
        "trained": report.trained._asdict() if report.trained else None,
        "layers": [as_dict(layer) for layer in plan.layers],
        "seams": [seam_as_dict(seam) for seam in plan.seams()],
        "base_parameters": report.base_size.parameters if report.base_size else None,
        "parameters": report.size.parameters if report.size else None,
        "dtype": report.base.decoder.dtype,
        "checkpoint_bytes": report.size.checkpoint_bytes if report.size else None,
        "sequence_tokens": report.sequence_tokens,
        "memory": [estimate._asdict() for estimate in report.memory],
        "memory_note": NOTE,
    }


def as_text(report: PlanReport) -> str:
    """The report for a terminal, with the upscaled model's top layer on top."""
    plan = report.plan
    head = [
        f"{report.base.name}: {plan.base_layers} -> {len(plan)} layers by {report.init.strategy}",
        *_growth_lines(report),
        *_size_lines(report),
        *([] if report.weights_checked else [NOT_CHECKED]),
        *([f"training    {report.trained}"] if report.trained else []),
        "",
    ]
    memory = [*_memory_lines(report), "", f"- {NOTE}"] if report.memory else []
    return "\n".join([*head, *_drawing(plan), "", *memory])


def _growth_lines(report: PlanReport) -> list[str]:
    if report.already_grown:
        return [
            f"upscaled    by this plan already; used unchanged, with its {len(report.plan)} layers, NOT upscaled again"
        ]
    if PROVENANCE_KEY in report.base.decoder.config:
        return ["upscaled    before, according to its config.json; this plan upscales it once more"]
    return []


def _size_lines(report: PlanReport) -> list[str]:
    decoder = report.base.decoder
    if report.size is None:
        return [
            f"parameters  unknown: for model_type {decoder.model_type!r} config.json alone is not enough; give the "
            "folder with its weights"
        ]
    before = f"{report.base_size.parameters:,} -> " if report.base_size else ""
    return [
        f"parameters  {before}{report.size.parameters:,}",
        f"checkpoint  {format_bytes(report.size.checkpoint_bytes)} in {decoder.dtype}",
    ]


def _drawing(plan: LayerPlan) -> list[str]:
    seams = {seam.position: seam for seam in plan.seams()}
    lines, position = [], 0
    for part in plan.ranges():
        count = part.end - part.start
        if position in seams:
            lines.append(f"  ~~~~~~~~~~~~~~  seam: {plan.seam_words(seams[position])}")
        new, old = span(position, position + count), span(part.start, part.end)
        start = "" if part.initialization == "copy" else f" as {start_words(part)}"
        lines.append(f"  new {new:>9}   = {plan.model_words(part.model)} {old}{start}")
        position += count
    return lines[::-1]


def _memory_lines(report: PlanReport) -> list[str]:
    """Of fixed width: the names are known, and rich would take a tenth of the time that `solar plan` takes."""
    title = f"memory of each GPU, {report.sequence_tokens} tokens"
    rows = [(title, "model states", "peak")]
    rows += [
        (f"  {estimate.setup}", format_bytes(estimate.state_bytes), format_bytes(estimate.total_bytes))
        for estimate in report.memory
    ]
    return [f"{setup:<40}{states:>14}{peak:>10}" for setup, states, peak in rows]
