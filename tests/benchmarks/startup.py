"""What the plugin adds to Axolotl's start: whole processes that load a recipe, and our own part timed inside one."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from checkpoints import DROP_LAYERS, make_base
from processes import run_process

RECIPE = """\
base_model: base
datasets:
  - {path: train.jsonl, ds_type: json, type: completion}
dataset_prepared_path: prepared
output_dir: out
sequence_len: 128
micro_batch_size: 1
gradient_accumulation_steps: 1
max_steps: 1
learning_rate: 1.0e-4
optimizer: adamw_torch
lr_scheduler: cosine
bf16: false
fp16: false
tf32: false
"""
BLOCK = f"""\
plugins: [solar_plugins.SolarPlugin]
solar:
  init: {{strategy: dus, drop_layers: {DROP_LAYERS}}}
  cache_dir: cache
"""

LOAD = """
import importlib.metadata, sys
recipe, hidden = sys.argv[1:]
real = importlib.metadata.entry_points
def entry_points(**parameters):
    found = real(**parameters)
    if parameters.get("group", "").startswith("axolotl."):
        return importlib.metadata.EntryPoints(p for p in found if p.dist.name.replace("-", "_") != hidden)
    return found
importlib.metadata.entry_points = entry_points
from axolotl.cli.config import load_cfg
cfg = load_cfg(recipe)
assert ("solar_plugins" in sys.modules) == (hidden == "-"), "the plugin is not as this variant wants it"
assert str(cfg.base_model).endswith("base") == (recipe != "block.yml"), cfg.base_model
"""
VARIANTS = {
    "no plugin": ("plain.yml", "solar_plugins"),
    "plugin, recipe without a block": ("plain.yml", "-"),
    "plugin, block, checkpoint cached": ("block.yml", "-"),
}

INSIDE = """
import json, sys, time, yaml
import axolotl.cli.config
def timed(function):
    wall, cpu = time.perf_counter(), time.process_time()
    value = function()
    return [time.perf_counter() - wall, time.process_time() - cpu], value
def load():
    from solar_plugins import SolarPlugin
    return SolarPlugin()
figures = {}
figures["import"], plugin = timed(load)
for name in ("plain", "block"):
    cfg = yaml.safe_load(open(name + ".yml"))
    figures[name], _ = timed(lambda: plugin.register(cfg))
print(json.dumps(figures))
"""
OFFLINE = {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1"}


def measure_startup(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds and CPU seconds of each variant and round, and what our part takes inside a process."""
    folder.mkdir()
    make_base(folder / "base", hidden=64)
    (folder / "plain.yml").write_text(RECIPE)
    (folder / "block.yml").write_text(RECIPE + BLOCK)
    (folder / "train.jsonl").write_text(json.dumps({"text": "one two three"}) + "\n")
    log = folder / "log"
    for arguments in VARIANTS.values():  # makes the cached checkpoint, and fills the page cache
        run_process([sys.executable, "-c", LOAD, *arguments], log, folder, OFFLINE)
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    inside: list[dict[str, list[float]]] = []
    for _ in range(rounds):
        for name in random.sample(list(VARIANTS), len(VARIANTS)):
            usage = run_process([sys.executable, "-c", LOAD, *VARIANTS[name]], log, folder, OFFLINE)
            runs[name].append((usage.seconds, usage.cpu_seconds))
        run_process([sys.executable, "-c", INSIDE], log, folder, OFFLINE)
        inside.append(json.loads(log.read_text().splitlines()[-1]))
    return {"runs": runs, "inside": inside}
