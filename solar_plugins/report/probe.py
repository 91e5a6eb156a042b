"""`solar probe`: measures plans of a base on texts, and writes metrics, a picture and a page into a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from solar_plugins.errors import ArgsError, CheckpointError
from solar_plugins.evaluation.probe.candidates import Candidate, every_repeat, read_candidates
from solar_plugins.evaluation.probe.probe import Probe, Settings
from solar_plugins.extras import require
from solar_plugins.logs import logger
from solar_plugins.report.picture import save_picture
from solar_plugins.report.probe_picture import probe_figure
from solar_plugins.report.probe_results import as_json, as_text, recommendation, recommendation_text, render_page
from solar_plugins.storage.atomic import write_file
from solar_plugins.upscaling.base_model import BaseCheckpoint, find_base
from solar_plugins.upscaling.estimates import size_from_shards
from solar_plugins.upscaling.upscaled_config import upscale_config
from solar_plugins.upscaling.upscaled_tensors import planned_shards

LOG = logger("probe")

RECORD, METRICS, PICTURE, PAGE = "measured.jsonl", "probe.json", "probe.png", "probe.html"
GIGABYTE = 1_000_000_000


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
    block = None if target_layers is None else recommendation_text(recommendation(result, target_layers))
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
