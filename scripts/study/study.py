"""Does a plan that is better before training stay better, and is depth up-scaling better than training the base?

    python scripts/study/study.py RUNS RECORD

RUNS is the demo's folder, with the small model and its articles; RECORD gets one entry for each run when it is done, so
that an interrupted study goes on. `study_page.py` makes docs/study.md of it.

Order: the probe of every repeated block that gives 48 layers; ten of these plans, trained alike; then the arms, each
with three learning rates on seed 0 and its best rate on two more seeds. Runs that two questions need are made once.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import yaml
from commands import PROGRAMS, warm, warm_server
from study_arms import DUS, EVERY_WEIGHT, LAYERS, STARTS, STEPS, TARGET, Arm, Solar, arms, repeated
from study_figures import nats_per_token

from solar_plugins.plugins.recipe_packs import recipe_directory

SEQUENCE_LEN, PROBE_LEN = 256, 129
PLANS = 10
SEEDS = (0, 1, 2)
AT_ONCE = 2
"""Runs at a time, with one thread each: at this size two threads in one run take more CPU time for the same steps."""
HELD_OUT = 3
"""Every third article of the demo's training set, and all of its held-out set, are held out here."""


def block_name(start: int) -> str:
    """A repeated block, for people."""
    return f"[{start}, {start + TARGET - LAYERS})"


def run_key(solar: Solar | None, rate: float, seed: int, steps: int = STEPS) -> str:
    """What a run is, in the record."""
    return json.dumps([solar, rate, seed, steps])


class Study:
    """The work folder, the record, and how a run is made.

    Args:
        runs: The demo's folder.
        record: The JSON file of metrics.
    """

    def __init__(self, runs: Path, record: Path) -> None:
        self.base, self.folder, self.record = runs / "SmolLM2-135M", runs / "study", record
        self.figures: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {"runs": {}}
        self.idle_folders: SimpleQueue[Path] = SimpleQueue()
        self.keeping = Lock()
        for number in range(AT_ONCE):
            (self.folder / f"run-{number}").mkdir(parents=True, exist_ok=True)
            self.idle_folders.put(self.folder / f"run-{number}")
        self._split(runs / "data")

    def _split(self, data: Path) -> None:
        articles = (data / "wiki_train.jsonl").read_text().splitlines()
        held_out = articles[HELD_OUT - 1 :: HELD_OUT] + (data / "wiki_held_out.jsonl").read_text().splitlines()
        train = [line for number, line in enumerate(articles, 1) if number % HELD_OUT]
        for name, lines in (("train", train), ("held_out", held_out)):
            (self.folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        digest = hashlib.sha256("\n".join([*train, *held_out]).encode()).hexdigest()[:16]
        texts = {"train": len(train), "held_out": len(held_out), "sha256": digest}
        if self.figures.setdefault("texts", texts) != texts:
            sys.exit(f"Error: {self.record} was made on other texts ({self.figures['texts']}, now {texts}); remove it")

    def keep(self) -> None:
        """Write the record atomically."""
        beside = self.record.with_suffix(".partial")
        rest = {key: value for key, value in self.figures.items() if key != "runs"}
        runs = ",\n".join(f"  {json.dumps(key)}: {json.dumps(run)}" for key, run in self.figures["runs"].items())
        beside.write_text(f'{json.dumps(rest)[:-1]},\n "runs": {{\n{runs}\n}}}}\n')
        beside.replace(self.record)

    def probe(self) -> dict[int, dict[str, Any]]:
        """For each repeated block, by its start: loss over the base's before training, on the training articles."""
        if "probe" not in self.figures:
            plans = self.folder / "plans.yml"
            plans.write_text(yaml.safe_dump([repeated(start)["init"] for start in STARTS]))
            command = [PROGRAMS / "solar", "probe", self.base, "--text", self.folder / "train.jsonl", "--plans", plans]
            options = ["--sequence-len", str(PROBE_LEN), "--output", self.folder / "probe", "--json"]
            found = subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True, text=True).stdout
            self.figures["probe"] = json.loads(found)["plans"]
            self.keep()
        by_start = {plan["init"]["slices"][1][0]: plan for plan in self.figures["probe"]}
        return {start: by_start[start] for start in STARTS}

    def run(self, arm: Arm, rate: float, seed: int) -> dict[str, Any]:
        """What was measured in one run; it is made now if it is not in the record. Threads may call this at once."""
        key = run_key(arm.solar, rate, seed, arm.steps)
        runs = self.figures["runs"]
        if key not in runs:
            folder = self.idle_folders.get()
            print(f"{arm.name}: {arm.steps} steps at {rate:.0e}, seed {seed}\n", end="", flush=True)
            measured = self._measure(folder, self._recipe(arm, rate, seed))
            with self.keeping:
                runs[key] = {"arm": arm.name, "rate": rate, "seed": seed, "steps": arm.steps} | measured
                self.keep()
            self.idle_folders.put(folder)
        return dict(runs[key])

    def _measure(self, folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
        result = folder / "result.json"
        result.unlink(missing_ok=True)
        (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
        script = Path(__file__).with_name("study_run.py")
        command = warm("python", script, "recipe.yml", "../held_out.jsonl", str(SEQUENCE_LEN), "result.json")
        with (folder / "log").open("w") as log:
            status = subprocess.run(command, cwd=folder, stdout=log, stderr=log, check=False).returncode
        if status or not result.exists():
            raise RuntimeError(f"the run failed with status {status}; see {folder / 'log'}")
        return dict(json.loads(result.read_text()))

    def _recipe(self, arm: Arm, rate: float, seed: int) -> dict[str, Any]:
        recipe = yaml.safe_load((recipe_directory() / "smollm2" / "solar_dus.yml").read_text())
        changes = {
            "base_model": os.path.relpath(self.base, self.folder / "run-0"),
            "datasets": [{"path": "../train.jsonl", "ds_type": "json", "type": "completion"}],
            "dataset_prepared_path": "prepared",
            "output_dir": "out",
            "solar": {**arm.solar, "cache_dir": "cache"} if arm.solar else None,
            "max_steps": arm.steps,
            "save_steps": arm.steps,
            "learning_rate": rate,
            "seed": seed,
        }
        left_out = {"test_datasets", "eval_steps", *(() if arm.solar else ("solar", "plugins"))}
        return {key: value for key, value in (recipe | changes).items() if key not in left_out}


def chosen(losses: Mapping[int, float]) -> list[int]:
    """Ten plans across the range of the probe: the best, the worst, SOLAR's own, and evenly between them by rank."""
    ranked = sorted(losses, key=losses.__getitem__)
    places = [round(number * (len(ranked) - 1) / (PLANS - 1)) for number in range(PLANS)]
    picked = [ranked[place] for place in places]
    if DUS not in picked:
        nearest = min(places[1:-1], key=lambda place: abs(place - ranked.index(DUS)))
        picked[places.index(nearest)] = DUS
    return picked


def run_arm(study: Study, arm: Arm) -> None:
    """The arm's runs: three learning rates, then the best one with more seeds; the record says which they are."""
    first = {rate: study.run(arm, rate, SEEDS[0]) for rate in arm.rates}
    best = min(first, key=lambda rate: nats_per_token(first[rate]))
    again = [study.run(arm, best, seed) for seed in SEEDS[1:]]
    runs = [(rate, SEEDS[0]) for rate in arm.rates] + [(best, seed) for seed in SEEDS[1:]]
    with study.keeping:
        study.figures.setdefault("arms", {})[arm.name] = [run_key(arm.solar, *run, arm.steps) for run in runs]
        study.keep()
    losses = ", ".join(f"{nats_per_token(run):.3f}" for run in [*first.values(), *again])
    print(f"{arm.name}: {losses}\n", end="", flush=True)


def main(runs: Path, record: Path) -> None:
    """Make every run that the record does not have."""
    os.environ["OMP_NUM_THREADS"] = "1"
    study = Study(runs, record)
    losses = {start: plan["delta"] for start, plan in study.probe().items()}
    plans = [Arm(f"repeat {block_name(start)}", repeated(start)) for start in chosen(losses)]
    warm_server()  # One for all threads.
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda plan: study.run(plan, EVERY_WEIGHT[1], SEEDS[0]), plans))
        list(pool.map(lambda arm: run_arm(study, arm), arms(min(losses, key=losses.__getitem__), str(study.base))))
    spent = sum(run["cpu_seconds"] for run in study.figures["runs"].values())
    print(f"{len(study.figures['runs'])} runs, {spent / 3600:.1f} CPU hours")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
