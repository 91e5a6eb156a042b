"""`solar probe`: measures plans of a base on texts, and writes metrics, a picture and a page into a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from solar_plugins.errors import ArgsError, CheckpointError
from solar_plugins.evaluation.loss import Difference
from solar_plugins.evaluation.probe.candidates import Candidate, every_repeat, read_candidates
from solar_plugins.evaluation.probe.probe import Comparison, PlanResult, Probe, ProbeResult, Settings
from solar_plugins.extras import require
from solar_plugins.logs import logger
from solar_plugins.report.page import template
from solar_plugins.report.picture import save_picture
from solar_plugins.report.probe_picture import cell_id, probe_figure, probe_svgs
from solar_plugins.storage.atomic import write_file
from solar_plugins.tables import lines, table
from solar_plugins.upscaling.base_model import BaseCheckpoint, find_base
from solar_plugins.upscaling.estimates import size_from_shards
from solar_plugins.upscaling.upscaled_config import upscale_config
from solar_plugins.upscaling.upscaled_tensors import planned_shards

LOG = logger("probe")

RECORD, METRICS, PICTURE, PAGE = "measured.jsonl", "probe.json", "probe.png", "probe.html"
GIGABYTE = 1_000_000_000

JSON_VERSION = 1
LIMITS = (
    "Loss before training ranks seams. It shows how little a plan disturbs the base, not how well the upscaled model "
    "learns or reasons after training."
)


def probe_base(
    base: str,
    texts: Sequence[Path],
    plans: Path | None,
    output: Path,
    *,
    target_layers: int | None,
    sequence_len: int,
    limit_tokens: int | None,
    memory: float,
    dtype: str | None,
    revision: str | None,
    trust_remote_code: bool,
    as_json_text: bool,
) -> str:
    """Measure plans, and write the results into ``output``.

    Args:
        base: A directory or a hub id.
        texts: JSON lines, each with a text.
        plans: A YAML list of ``solar.init`` blocks; None for every contiguous repeat.
        output: A folder.
        target_layers: The depth for which a plan is recommended.
        sequence_len: Documents are cut after so many tokens.
        limit_tokens: At most so many tokens of each file are read.
        memory: GB for hidden states and logits.
        dtype: As in `Settings`.
        revision: Of a hub id.
        trust_remote_code: Whether to run code that comes with the base.
        as_json_text: Whether to return the metrics as JSON instead of text.

    Returns:
        The text to print.

    Raises:
        SolarError: Base, plans or texts cannot be used, or the base's layers cannot run in another order.
    """
    require("solar probe")
    found = find_base(base, revision, trust_remote_code=trust_remote_code)
    candidates = _candidates(found, plans)
    if target_layers is not None:
        _require_depth(target_layers, found.num_layers, candidates)
    settings = Settings(sequence_len, limit_tokens, round(memory * GIGABYTE), dtype)
    result = Probe(found, candidates, texts, settings).run(output / RECORD)
    sizes = [size_from_shards(planned_shards(found, one.plan), found.decoder).parameters for one in candidates]
    block = None if target_layers is None else recommendation(result, target_layers)
    metrics = json.dumps(as_json(result, sizes), indent=2)
    write_file(output / METRICS, f"{metrics}\n".encode())
    save_picture(probe_figure(result), output / PICTURE)
    write_file(output / PAGE, render_page(result, sizes, block).encode())
    if as_json_text:
        return metrics
    files = f"page: {output / PAGE}\npicture: {output / PICTURE}\nmetrics: {output / METRICS}"
    return "\n\n".join(part for part in (as_text(result), files, block) if part)


def _candidates(base: BaseCheckpoint, plans: Path | None) -> list[Candidate]:
    if plans is not None:
        found = read_candidates(plans, base.num_layers)
        for one in found:
            upscale_config(base.decoder, one.plan)
        return found
    every = every_repeat(base.num_layers)
    possible = [one for one in every if _can_be_made(base, one)]
    if len(possible) < len(every):
        LOG.info(
            "%d of %d repeats cannot be expressed in this model's config.json and are skipped",
            len(every) - len(possible),
            len(every),
        )
    return possible


def _can_be_made(base: BaseCheckpoint, candidate: Candidate) -> bool:
    try:
        upscale_config(base.decoder, candidate.plan)
    except CheckpointError:
        return False
    return True


def _require_depth(target_layers: int, num_layers: int, candidates: Sequence[Candidate]) -> None:
    depths = sorted({len(one.plan) for one in candidates})
    if target_layers not in depths:
        raise ArgsError(
            f"--target-layers: {target_layers} is not the depth of any plan here; expected one of "
            f"{', '.join(map(str, depths))} (the base has {num_layers} layers)"
        )


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
        best, dus = result.plans[comparison.best], comparison.dus
        error = best.delta.standard_error
        rows.append(
            [
                f"{result.num_layers + size}",
                short_name(best.candidate),
                _signed(best.delta),
                "-" if error is None else f"{error:.3f}",
                f"{best.loss.tokens:,}",
                *map(_signed, best.by_text[: len(texts)]),
                "-" if dus is None else f"m = {(result.num_layers - size) // 2}",
                "-" if dus is None else _signed(result.plans[dus].delta),
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


def recommendation(result: ProbeResult, target_layers: int) -> str:
    """The best plan of a depth as the block of a recipe, and how reliable the choice is."""
    found = result.sizes[target_layers - result.num_layers]
    best = result.plans[found.best].candidate
    block = json.loads(json.dumps({"solar": {"init": dict(best.init)}}))
    as_yaml = yaml.safe_dump(block, sort_keys=False, default_flow_style=None).rstrip()
    return f"# {best.plan}\n# {_verdict(found)}\n{as_yaml}"


def _verdict(found: Comparison) -> str:
    unseen = found.difference
    if found.dus is None:
        return "DUS only makes even depths, so there is nothing to compare with"
    if found.best == found.dus:
        return "DUS itself is the best plan of this size"
    if unseen is None or unseen.standard_error is None:
        return "compared with DUS on one unseen document, so the standard error of the difference is unknown"
    better = f"{-unseen.nats_per_token:.3f} +- {unseen.standard_error:.3f} nats per token better than DUS of this size"
    if abs(unseen.nats_per_token) <= 2 * unseen.standard_error:
        return f"on unseen documents {better}: within two standard errors, so either will do"
    return f"on unseen documents {better}, before training"


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


def _signed(found: Difference | None) -> str:
    return "-" if found is None else f"{found.nats_per_token:+.3f}"


def _with_error(found: Difference | None) -> str:
    error = found and found.standard_error
    return _signed(found) if error is None else f"{_signed(found)} +- {error:.3f}"


def render_page(result: ProbeResult, parameters: Sequence[int], block: str | None) -> str:
    """The page. Everything that comes from models and files is escaped.

    Args:
        result: The probe's result.
        parameters: Of each plan's model.
        block: The recommendation, as YAML.
    """
    from markupsafe import Markup

    titles = {
        cell_id(plan.candidate.block): _cell_title(plan, count)
        for plan, count in zip(result.plans, parameters, strict=True)
        if plan.candidate.block
    }
    svgs = {name: Markup(svg) for name, svg in probe_svgs(result, titles).items()}
    return template("probe.html.jinja").render(
        result=result, sizes=size_table(result), block=block, limits=LIMITS, **svgs
    )


def _cell_title(plan: PlanResult, parameters: int) -> str:
    """What is shown while the mouse is over a cell."""
    return (
        f"{short_name(plan.candidate)}: {plan.candidate.plan}\n"
        f"{_with_error(plan.delta)} nats per token above the base\n"
        f"{parameters:,} parameters\nmeasured on {plan.loss.tokens:,} tokens"
    )
