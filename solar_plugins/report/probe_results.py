"""The results of a probe: as JSON, as text for the terminal, as the block of a recipe, and as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from solar_plugins.errors import ArgsError
from solar_plugins.evaluation.loss import Difference
from solar_plugins.evaluation.probe.candidates import Candidate
from solar_plugins.evaluation.probe.probe import Comparison, PlanResult, ProbeResult
from solar_plugins.report.page import template
from solar_plugins.report.probe_picture import ColorScale, cell_side
from solar_plugins.tables import lines, table

JSON_VERSION = 1
LIMITS = (
    "Loss before training ranks seams. It shows how little a plan disturbs the base, not how well the upscaled model "
    "learns or reasons after training."
)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The best plan of one size.

    Args:
        best: The best plan.
        dus: DUS of that size; None if the size is odd or DUS was not measured.
        comparison: Of the two, on documents that were not used to choose the best plan.
    """

    best: PlanResult
    dus: PlanResult | None
    comparison: Comparison


def recommendation(result: ProbeResult, target_layers: int) -> Recommendation:
    """The best plan for a depth.

    Raises:
        ArgsError: No plan of that depth was measured.
    """
    added = target_layers - result.num_layers
    if added not in result.sizes:
        known = ", ".join(str(result.num_layers + size) for size in sorted(result.sizes))
        raise ArgsError(f"--target-layers: {target_layers}; no plan of that depth was measured, only of {known}")
    return _recommended(result, result.sizes[added])


def _recommended(result: ProbeResult, comparison: Comparison) -> Recommendation:
    dus = None if comparison.dus is None else result.plans[comparison.dus]
    return Recommendation(result.plans[comparison.best], dus, comparison)


def as_json(result: ProbeResult, parameters: Sequence[int]) -> dict[str, Any]:
    """All metrics.

    Args:
        result: The probe's result.
        parameters: Of each plan's model.
    """
    return {
        "version": JSON_VERSION,
        "base": result.base_name,
        "base_layers": result.num_layers,
        "base_loss": result.base_loss.nats_per_token,
        "base_tokens": result.base_loss.tokens,
        "texts": list(result.documents.names),
        "race_documents": len(result.documents.race),
        "unseen_documents": len(result.documents.unseen),
        "device": result.device,
        "dtype": result.dtype,
        "seconds": round(result.seconds, 1),
        "layer_passes": result.layer_passes,
        "plans": [_plan_json(plan, count) for plan, count in zip(result.plans, parameters, strict=True)],
        "sizes": [
            {
                "added_layers": size,
                "best": str(result.plans[found.best].candidate.plan),
                "dus": None if found.dus is None else str(result.plans[found.dus].candidate.plan),
                "best_above_dus_on_unseen": _difference_json(found.difference),
            }
            for size, found in sorted(result.sizes.items())
        ],
        "block_influence": list(result.influences),
        "angular_distance": [list(row) for row in result.angles],
    }


def _plan_json(result: PlanResult, parameters: int) -> dict[str, Any]:
    candidate = result.candidate
    start, end = candidate.block or (None, None)
    return {
        "start": start,
        "end": end,
        "plan": str(candidate.plan),
        "init": dict(candidate.init),
        "added_layers": candidate.added,
        "parameters": parameters,
        "loss": result.loss.nats_per_token,
        "delta": result.delta.nats_per_token,
        "stderr": result.delta.standard_error,
        "tokens": result.loss.tokens,
        "delta_by_text": [_difference_json(one) for one in result.by_text],
        "unseen": _difference_json(result.unseen),
    }


def _difference_json(found: Difference | None) -> dict[str, float | None] | None:
    return None if found is None else {"delta": found.nats_per_token, "stderr": found.standard_error}


def size_table(result: ProbeResult) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each size: its best plan next to DUS."""
    texts = result.documents.names if len(result.documents.names) > 1 else ()
    head = ["layers", "best plan", "above base", "error", "tokens", *texts, "DUS", "above base", "best - DUS, unseen"]
    rows = []
    for size, comparison in sorted(result.sizes.items()):
        found = _recommended(result, comparison)
        dus = found.dus
        rows.append(
            [
                f"{result.num_layers + size}",
                short_name(found.best.candidate),
                *_signed(found.best.delta),
                f"{found.best.loss.tokens:,}",
                *(_signed(one)[0] if one else "-" for one in found.best.by_text[: len(texts)]),
                f"m = {(result.num_layers - size) // 2}" if dus else "-",
                _signed(dus.delta)[0] if dus else "-",
                _with_error(comparison.difference),
            ]
        )
    return head, rows


def as_text(result: ProbeResult) -> str:
    """The best plan of each size next to DUS of that size."""
    base = result.base_loss
    return "\n".join(
        [
            f"{result.base_name}: {result.num_layers} layers, {base.nats_per_token:.3f} nats per token on "
            f"{len(result.documents.race)} documents ({base.tokens:,} tokens); {result.device}, {result.dtype}",
            f"{len(result.plans)} plans, untrained; losses are above the base's on the same tokens, errors are over "
            "documents",
            "",
            *lines(table(*size_table(result))),
            "",
            LIMITS,
        ]
    )


def recommendation_text(found: Recommendation) -> str:
    """The block to paste into a recipe, and how reliable the choice is."""
    plan = found.best.candidate.plan
    block = {"solar": {"init": dict(found.best.candidate.init)}}
    return f"# {plan}\n# {_verdict(found)}\n{_block_yaml(block)}"


def _verdict(found: Recommendation) -> str:
    unseen = found.comparison.difference
    if found.dus is None:
        return "DUS only makes even depths, so there is nothing to compare with"
    if found.best is found.dus:
        return "DUS itself is the best plan of this size"
    if unseen is None or unseen.standard_error is None:
        return "compared with DUS on one unseen document, so the standard error of the difference is unknown"
    better = f"{-unseen.nats_per_token:.3f} +- {unseen.standard_error:.3f} nats per token better than DUS of this size"
    if abs(unseen.nats_per_token) <= 2 * unseen.standard_error:
        return f"on unseen documents {better}: within two standard errors, so either will do"
    return f"on unseen documents {better}, before training"


def _block_yaml(block: dict[str, Any]) -> str:
    return yaml.safe_dump(json.loads(json.dumps(block)), sort_keys=False, default_flow_style=None).rstrip()


def short_name(candidate: Candidate) -> str:
    """The repeated block, or strategy and arguments.

    >>> from solar_plugins.evaluation.probe.candidates import repeat
    >>> short_name(repeat(30, 2, 20))
    '[2, 20) twice'
    """
    if candidate.block is None:
        return " ".join(
            f"{value}" if key == "strategy" else f"{key}={_plain(value)}" for key, value in candidate.init.items()
        )
    return f"[{candidate.block[0]}, {candidate.block[1]}) twice"


def _plain(value: object) -> str:
    """An argument; a map in YAML, as it can be written in a recipe."""
    if isinstance(value, Mapping):
        return yaml.safe_dump(dict(value), sort_keys=False, default_flow_style=True).strip()
    return str(value)


def _signed(found: Difference) -> tuple[str, str]:
    error = "-" if found.standard_error is None else f"{found.standard_error:.3f}"
    return f"{found.nats_per_token:+.3f}", error


def _with_error(found: Difference | None) -> str:
    return "-" if found is None else " +- ".join(_signed(found))


def render_page(result: ProbeResult, parameters: Sequence[int], block: str | None) -> str:
    """The page. Everything that comes from models and files is escaped.

    Args:
        result: The probe's result.
        parameters: Of each plan's model.
        block: The recommendation, as YAML.
    """
    return template("probe.html.jinja").render(
        result=result, cells=_cells(result, parameters), sizes=size_table(result), block=block, limits=LIMITS
    )


def _cells(result: ProbeResult, parameters: Sequence[int]) -> list[dict[str, Any]]:
    """The repeated blocks as cells of the heat map. Lengths are in cells, from the upper left corner."""
    best = {found.best for found in result.sizes.values()}
    blocks = [(place, plan) for place, plan in enumerate(result.plans) if plan.candidate.block]
    if not blocks:
        return []
    scale = ColorScale.of([plan for _, plan in blocks])
    most = max(plan.loss.tokens for _, plan in blocks)
    cells = []
    for place, plan in blocks:
        start, end = plan.candidate.block or (0, 0)
        side, top = cell_side(plan.loss.tokens, most), result.num_layers - end
        error = "" if plan.delta.standard_error is None else f" +- {plan.delta.standard_error:.3f}"
        cells.append(
            {
                "start": start,
                "top": top,
                "x": round(start + (1 - side) / 2, 3),
                "y": round(top + (1 - side) / 2, 3),
                "side": round(side, 3),
                "color": scale.color(plan.delta.nats_per_token),
                "title": f"{short_name(plan.candidate)}: {plan.candidate.plan}\n"
                f"{plan.delta.nats_per_token:+.3f}{error} nats per token above the base\n"
                f"{parameters[place]:,} parameters\nmeasured on {plan.loss.tokens:,} tokens",
                "best": place in best,
                "dus": plan.candidate.is_dus,
            }
        )
    return cells
