"""One run of the study: measure the model on held-out texts, train it with Axolotl, and measure it again.

    python scripts/study/study_run.py RECIPE TEXTS SEQUENCE_LEN RESULT

Runs in the folder that the recipe's paths are relative to. RESULT gets JSON: for each text the predicted tokens and the
negative log-likelihood in nats, before and after; the loss of each step; seconds, also of the CPU. A model's own files
are removed at the end: the study keeps figures.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

Nats = list[tuple[int, float]]


def held_out_nats(directory: Path, texts: list[str], sequence_len: int) -> Nats:
    """Of each text's first tokens: how many are predicted, and their negative log-likelihood in nats."""
    import torch

    from solar_plugins.evaluation.models import load_model, load_tokenizer

    model, tokenizer = load_model(directory), load_tokenizer(directory)
    found = []
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([tokenizer(text)["input_ids"][:sequence_len]])
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss.item()
            found.append((ids.shape[1] - 1, round(loss * (ids.shape[1] - 1), 4)))
    return found


def train(recipe: Path) -> dict[str, Any]:
    """Train, and give the loss of each step, and the seconds, loading and saving included."""
    from axolotl.cli.train import do_cli

    started = time.monotonic()
    do_cli(config=str(recipe))
    seconds = time.monotonic() - started
    history = json.loads(next(Path("out").rglob("trainer_state.json")).read_text())["log_history"]
    return {"losses": [entry["loss"] for entry in history if "loss" in entry], "training_seconds": seconds}


def measure(recipe: Path, texts: list[str], sequence_len: int) -> dict[str, Any]:
    """Everything that the study keeps of a run."""
    from axolotl.cli.config import load_cfg

    started = time.monotonic()
    before = held_out_nats(Path(load_cfg(str(recipe)).base_model), texts, sequence_len)
    trained = train(recipe)
    after = held_out_nats(Path("out"), texts, sequence_len)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "before": before,
        "after": after,
        **trained,
        "seconds": time.monotonic() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


def main(recipe: Path, texts: Path, sequence_len: int, result: Path) -> None:
    """Measure one run."""
    rows = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    figures = measure(recipe, rows, sequence_len)
    for folder in ("out", "cache"):
        shutil.rmtree(folder, ignore_errors=True)
    result.write_text(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
