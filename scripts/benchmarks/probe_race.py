"""What the racing in `solar probe` saves: its time against that of a naive loop over all plans, in the same run.

    python scripts/benchmarks/probe_race.py BASE TEXTS.jsonl SEQUENCE_LEN FOLDER

FOLDER gets the measurements of `solar probe --output FOLDER`, so that the same probe can plot them at once.

The naive loop runs each plan's full model on each document of the race; it is timed on 20 randomly sampled plans and
extrapolated to all. Also printed: how often a sampled plan beats the race's winner of its size, on all documents.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import torch
from torch import nn

from solar_plugins.evaluation.models import load_model
from solar_plugins.evaluation.probe.candidates import every_repeat
from solar_plugins.evaluation.probe.probe import Probe, Settings
from solar_plugins.report.probe import RECORD
from solar_plugins.upscaling.base_model import find_base

DRAWN = 20


def naive_seconds(directory: Path, probe: Probe, places: list[int]) -> tuple[float, dict[int, float]]:
    """The seconds of a plain loop over some plans, and the loss of each in nats per token."""
    model = load_model(directory)
    layers, losses = list(model.model.layers), {}
    started = time.monotonic()
    with torch.inference_mode():
        for place in places:
            sources = [layer.source for layer in probe.candidates[place].plan.layers]
            model.model.layers = nn.ModuleList([layers[source] for source in sources])
            model.config.num_hidden_layers = len(sources)
            nats = tokens = 0.0
            for document in probe.documents.race:
                ids = torch.tensor([document.ids])
                nats += model(input_ids=ids, labels=ids, use_cache=False).loss.item() * document.predicted
                tokens += document.predicted
            losses[place] = nats / tokens
    return time.monotonic() - started, losses


def main(directory: Path, texts: Path, sequence_len: int, folder: Path) -> None:
    """Print both times, their ratio, and the largest difference between the losses."""
    base = find_base(str(directory))
    candidates = every_repeat(base.num_layers)
    probe = Probe(base, candidates, [texts], Settings(sequence_len, None, 2_000_000_000, None))
    drawn = sorted(random.Random(0).sample(range(len(candidates)), DRAWN))
    result = probe.run(folder / RECORD)
    seconds, losses = naive_seconds(directory, probe, drawn)
    layers = sum(len(candidates[place].plan) for place in drawn)
    whole = seconds * sum(len(one.plan) for one in candidates) / layers
    full = [place for place in drawn if len(result.plans[place].loss.window_nats) == len(probe.documents.race)]
    apart = max((abs(result.plans[place].loss.nats_per_token - losses[place]) for place in full), default=0.0)
    tokens = sum(document.predicted for document in probe.documents.race)
    print(f"{len(candidates)} plans, {len(probe.documents.race)} documents, {tokens:,} tokens")
    print(f"probe  {result.seconds:8.1f} s, including loading and the unseen documents")
    print(f"naive  {whole:8.1f} s, from {DRAWN} plans in {seconds:.1f} s")
    print(f"ratio  {result.seconds / whole:8.3f}")
    print(f"losses of the {len(full)} sampled plans that finished the race differ by at most {apart:.1e}")
    worse = 0
    for place in drawn:
        best = result.plans[result.sizes[candidates[place].added].best]
        worse += losses[place] < best.loss.nats_per_token - 2 * (best.delta.standard_error or 0)
    print(f"{worse} of {DRAWN} sampled plans beat the race's winner of their size by more than two standard errors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
