"""What the plugin adds to Axolotl's start-up, and how long `solar plan` takes; whole processes.

    python scripts/benchmarks/startup.py [ROUNDS]

prints the latter: `solar plan` against the import of the libraries it uses, in turn in the same run.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from checkpoints import DROP_LAYERS, make_base
from processes import Usage, run_process

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
assert ("solar_plugins" in sys.modules) == (hidden == "-"), "this variant expects the opposite"
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
metrics = {}
metrics["import"], plugin = timed(load)
for name in ("plain", "block"):
    cfg = yaml.safe_load(open(name + ".yml"))
    metrics[name], _ = timed(lambda: plugin.register(cfg))
print(json.dumps(metrics))
"""
OFFLINE = {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1"}


def measure_startup(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds and CPU seconds of each variant and round, and of the plugin's part inside the process."""
    folder.mkdir()
    make_base(folder / "base", hidden=64)
    (folder / "plain.yml").write_text(RECIPE)
    (folder / "block.yml").write_text(RECIPE + BLOCK)
    (folder / "train.jsonl").write_text(json.dumps({"text": "one two three"}) + "\n")
    log = folder / "log"
    for arguments in VARIANTS.values():  # writes the cached checkpoint and fills the page cache
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


LIBRARIES = "import pydantic, click, yaml, pluggy"
MODEL = f"{LIBRARIES}\nclass Args(pydantic.BaseModel):\n    m: int\nArgs.model_validate({{'m': 8}})"
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "vocab_size": 32000,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def measure_plan(folder: Path, rounds: int) -> dict[str, list[Usage]]:
    """Runs of each kind: importing the libraries, the same with one pydantic model, and `solar plan`."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    solar = Path(sys.executable).with_name("solar")
    commands: dict[str, list[str | Path]] = {
        LIBRARIES: [sys.executable, "-c", LIBRARIES],
        "the same, and one pydantic model": [sys.executable, "-c", MODEL],
        "solar plan": [solar, "plan", "--base", folder / "config.json", "--drop-layers", "8"],
    }
    for command in commands.values():  # fills the page cache
        run_process(command, folder / "log")
    usages: dict[str, list[Usage]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name in random.sample(list(commands), len(commands)):
            usages[name].append(run_process(commands[name], folder / "log"))
    return usages


def plan_table(usages: dict[str, list[Usage]]) -> str:
    """Median CPU time of each kind, and its ratio to the first two in the same round.

    The second is the floor for any command that validates its input with pydantic.
    """
    first, second, *_ = usages
    lines = [f"{'median of whole processes':<40}{'CPU ms':>8}{'to 1st':>8}{'to 2nd':>8}"]
    for name, runs in usages.items():
        milliseconds = 1000 * statistics.median(run.cpu_seconds for run in runs)
        ratios = [
            statistics.median(run.cpu_seconds / peer.cpu_seconds for run, peer in zip(runs, usages[of], strict=True))
            for of in (first, second)
        ]
        lines.append(f"{name:<40}{milliseconds:>8.0f}" + "".join(f"{ratio:>8.2f}" for ratio in ratios))
    return "\n".join(lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(plan_table(measure_plan(Path(temporary), int(sys.argv[1]) if len(sys.argv) > 1 else 15)))
