"""What a finished training run left behind: what it ran on, its first steps, its log, its data and its results."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from solar_plugins.axolotl_adapter.run_record import RECORD_FOLDER, RUN_FILE, STEPS_FILES
from solar_plugins.data.formatters.base import RowError
from solar_plugins.data.row_files import JSON_NAMES, PARQUET_NAMES, parsed_rows
from solar_plugins.errors import ArgsError, SolarError
from solar_plugins.recipe import Recipe
from solar_plugins.report.training_log import read_training_state
from solar_plugins.running.identity import digest, listing
from solar_plugins.sharing.bundle import Dataset, Metric, Step
from solar_plugins.sharing.sources import DataPlace, datasets_of
from solar_plugins.solar_block import invalid
from solar_plugins.storage.atomic import files_below
from solar_plugins.storage.content import content_hashes
from solar_plugins.storage.untrusted import parse_json_object, read_json_object
from solar_plugins.upscaling.base_model import CONFIG

WEIGHTS = (".safetensors", ".bin")
MAX_CURVE_POINTS = 1500
"""Of a stage in `curves.csv`; more are thinned out evenly."""
CURVE_KEYS = ("loss", "eval_loss", "learning_rate", "grad_norm", "rewards/accuracies", "eval_rewards/accuracies")
RUN_AGAIN = "run the recipe again, or restore the file"


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class RecordedDataset(_Lenient):
    """What became of the rows of a dataset (`axolotl_adapter.run_record`)."""

    key: str
    rows_kept: int
    examples: int
    dropped: dict[str, int]


class RunFile(_Lenient):
    """The content of ``run.json`` (`axolotl_adapter.run_record`)."""

    processes: int
    device: str
    precision: str
    steps: int
    eval_rows: int | None
    versions: dict[str, str]
    datasets: list[RecordedDataset]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is known of a training run.

    Args:
        run: On what it ran; None if it was not recorded, as before solar_plugins recorded runs.
        steps: The rows and losses of the first steps; empty if unknown.
        history: What the Trainer logged.
        last_step: The last step of the log.
        planned_steps: The steps of the entire run.
        notes: What is missing, and why.
    """

    run: RunFile | None
    steps: list[Step]
    history: list[dict[str, Any]]
    last_step: int | None
    planned_steps: int | None
    notes: tuple[str, ...] = ()


def read_run(output: Path) -> RunFacts:
    """The facts of the run that wrote an output folder.

    Raises:
        SolarError: A record is damaged.
        OSError: A file cannot be read.
    """
    folder = output / RECORD_FOLDER
    notes = []
    run = None
    if (path := folder / RUN_FILE).is_file():
        try:
            run = RunFile.model_validate(read_json_object(path, error=SolarError, fix=RUN_AGAIN))
        except ValidationError as error:
            raise SolarError(f"{invalid(error, f'{path}: ')}; {RUN_AGAIN}") from None
    else:
        notes.append("its run was not recorded (solar_run/run.json): device, processes and rows per step are unknown")
    files = sorted(folder.glob(STEPS_FILES))
    steps = list[Step]()
    if run and len(files) != run.processes:
        notes.append(f"the steps of {len(files)} of its {run.processes} processes are here: rows per step are unknown")
    elif run:
        steps = _steps(files)
    state = read_training_state(output)
    if state is None:
        notes.append("no log of the Trainer is left (trainer_state.json): no losses and no curves")
        state = {"log_history": []}
    return RunFacts(run, steps, state["log_history"], state.get("global_step"), state.get("max_steps"), tuple(notes))


def _steps(files: Sequence[Path]) -> list[Step]:
    """The steps that every process recorded. Of a step that was repeated after a checkpoint the last record counts."""
    of_ranks: list[dict[int, tuple[list[str], float | None]]] = []
    for path in files:
        found: dict[int, tuple[list[str], float | None]] = {}
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            entry = parse_json_object(Path(f"{path}, line {number}"), line, error=SolarError, fix=RUN_AGAIN)
            try:
                loss = entry["loss"]
                found[int(entry["step"])] = (
                    [str(row) for row in entry["rows"]],
                    None if loss is None else float(loss),
                )
            except (KeyError, TypeError, ValueError):
                raise SolarError(f"{path}, line {number}: not a record of a step; {RUN_AGAIN}") from None
        of_ranks.append(found)
    common = set.intersection(*(set(found) for found in of_ranks)) if of_ranks else set()
    steps = []
    for step in sorted(common):
        rows = sorted(row for found in of_ranks for row in found[step][0])
        losses = [found[step][1] for found in of_ranks]
        known = [loss for loss in losses if loss is not None]
        steps.append(
            Step(
                step=step,
                rows=len(rows),
                sha256=hashlib.sha256("\n".join(rows).encode()).hexdigest(),
                loss=math.fsum(known) / len(known) if len(known) == len(losses) else None,
            )
        )
    return steps


def local_files(place: DataPlace) -> list[Path]:
    """The files of a local dataset, in order; empty if it is on a hub, or gone."""
    path = Path(place.path).expanduser()
    named = place.entry.get("data_files")
    if named and (path.is_dir() or place.path in ("json", "parquet", "csv", "text")):
        names = [named] if isinstance(named, str) else [str(name) for name in named]
        files = [one if (one := Path(name)).exists() else path / name for name in names]
        return [file for file in files if file.is_file()]
    if path.is_file():
        return [path]
    return [path / name for name in sorted(files_below(path))] if path.is_dir() else []


def rows_hash(files: Iterable[Path]) -> tuple[int, str]:
    """The number of rows in files, and a hash of the rows in order.

    Rows count, not bytes: the order of keys, spaces and the compression of the file make no difference. Of formats
    other than JSON and Parquet every file counts as one row.

    Raises:
        SolarError: A file cannot be read.
    """
    from tqdm import tqdm

    found, number = hashlib.sha256(), 0
    named = list(files)
    with tqdm(total=None, desc="hashing rows", unit="row", mininterval=0.5, delay=2, leave=False) as bar:
        for file in named:
            if not any(suffix in (*JSON_NAMES, *PARQUET_NAMES) for suffix in file.suffixes):
                found.update(content_hashes([str(file)])[str(file)].encode())
                number += 1
                continue
            for numbered in parsed_rows(str(file)):
                row = str(numbered.row) if isinstance(numbered.row, RowError) else numbered.row
                text = json.dumps(row, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)
                found.update(f"{text}\n".encode())
                number += 1
                bar.update()
    return number, found.hexdigest()


def dataset_facts(
    content: Mapping[str, Any], run: RunFile | None, names: Mapping[str, str], variables: Mapping[str, str]
) -> list[Dataset]:
    """What is known of the datasets of a recipe.

    Args:
        content: The keys of the recipe.
        run: What became of their rows.
        names: What a local path is called.
        variables: The variable that stands for a local path.
    """
    recorded: dict[str, RecordedDataset] = {one.key: one for one in run.datasets} if run else {}
    facts = []
    for place in (one for one in datasets_of(content) if one.path):
        files = local_files(place)
        rows, sha256 = rows_hash(files) if files else (None, None)
        kept = recorded.get(place.key)
        local = place.path in variables or bool(files)
        facts.append(
            Dataset(
                key=place.key,
                name=names.get(place.path, place.path),
                revision=None if local else _text(place.entry.get("revision")) or cached_commit(place.path, "dataset"),
                split=_text(place.entry.get("split")),
                variable=variables.get(place.path),
                rows=rows,
                sha256=sha256,
                formatter=_text(place.entry.get("type")),
                rows_kept=kept.rows_kept if kept else None,
                examples=kept.examples if kept else None,
                dropped={_line(reason): count for reason, count in kept.dropped.items()} if kept else {},
            )
        )
    return facts


def _text(value: Any) -> str | None:
    return _line(value) if isinstance(value, str) and value else None


def _line(text: str) -> str:
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())[:300]


def cached_commit(repo: str, kind: str = "model") -> str | None:
    """The commit of a hub repository's main branch that this machine downloaded; None if it has none."""
    from huggingface_hub import constants

    path = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}" / "refs" / "main"
    try:
        commit = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return commit if len(commit) == 40 and commit.isalnum() else None


def model_digest(folder: Path) -> str | None:
    """A hash of a local model's weights and config; None if it is not there. Large files are sampled."""
    if not folder.is_dir():
        return None
    files = [path for path in sorted(folder.iterdir()) if path.suffix in WEIGHTS or path.name == CONFIG]
    kept = {path.name: listing(path)[""] for path in files if path.is_file()}
    return digest(kept) if kept else None


def is_finished(output: Path) -> bool:
    """Whether an output folder holds a model or an adapter."""
    return any(path.suffix in WEIGHTS for path in output.glob("*model*")) or any(output.glob("pytorch_model*"))


def require_finished(recipe: Path, output: Path, facts: RunFacts) -> None:
    """Refuse a run that did not reach its last step.

    Raises:
        ArgsError: It did not.
    """
    last, planned = facts.last_step, facts.planned_steps or (facts.run.steps if facts.run else None)
    if not is_finished(output):
        raise ArgsError(
            f"{recipe}: {output} has no trained model; run the recipe first: accelerate launch -m axolotl.cli.train "
            f"{recipe}"
        )
    if last is not None and planned and last < planned:
        raise ArgsError(f"{recipe}: {output} is of a run that ended at step {last} of {planned}; finish it first")


def metrics_of(recipe: Recipe, facts: RunFacts) -> list[Metric]:
    """The results that the Trainer logged, with how each was measured."""
    run = facts.run
    where = f"{run.precision} on {run.processes} x {run.device}" if run else "device not recorded"
    pairs = recipe.rl is not None
    unit = f"{recipe.rl} loss" if pairs else "cross-entropy in nats per token that is trained on"
    rows = f"{run.eval_rows} eval rows" if run and run.eval_rows else "the eval rows"
    metrics = []
    for key, name, how in (
        ("loss", "train_loss", f"{unit}, the last logged mean over training batches; {where}"),
        ("eval_loss", "eval_loss", f"{unit}, by the Trainer on {rows}; {where}"),
        ("eval_rewards/accuracies", "eval_reward_accuracy", f"share of pairs, by the Trainer on {rows}; {where}"),
        ("train_runtime", "train_seconds", f"by the Trainer, evals and checkpoints included; {where}"),
    ):
        found = [entry for entry in facts.history if isinstance(entry.get(key), int | float)]
        value = float(found[-1][key]) if found else math.nan
        if math.isfinite(value):
            metrics.append(Metric(name=name, value=value, step=found[-1].get("step"), how=how))
        first = found[0] if name == "eval_loss" and len(found) > 1 else None
        if first is not None and math.isfinite(first[key]):
            metrics.append(Metric(name="first_eval_loss", value=float(first[key]), step=first.get("step"), how=how))
    return metrics


def curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """The logged values of each stage by step, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["stage", "step", *CURVE_KEYS])
    for stage, history in histories.items():
        of_steps: dict[int, dict[str, float]] = {}
        for entry in history:
            step = entry.get("step")
            values = {key: float(entry[key]) for key in CURVE_KEYS if isinstance(entry.get(key), int | float)}
            if isinstance(step, int) and values:
                of_steps.setdefault(step, {}).update(values)
        for step in thinned(sorted(of_steps), {step for step, one in of_steps.items() if "eval_loss" in one}):
            writer.writerow([stage, step, *(of_steps[step].get(key, "") for key in CURVE_KEYS)])
    return text.getvalue().encode()


def thinned(steps: Sequence[int], kept: set[int]) -> list[int]:
    """At most `MAX_CURVE_POINTS` steps, evenly, and those that must stay."""
    every = max(1, math.ceil(len(steps) / MAX_CURVE_POINTS))
    return [step for number, step in enumerate(steps) if number % every == 0 or step in kept or step == steps[-1]]
