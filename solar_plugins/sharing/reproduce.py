"""`solar recipes reproduce`: what differs here, then the training of a bundle again, and whether it was the same."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click

from solar_plugins.axolotl_adapter.run_record import STOP_AFTER
from solar_plugins.errors import ArgsError, SolarError
from solar_plugins.running.identity import absolute
from solar_plugins.running.runner import last_lines, run_supervised
from solar_plugins.sharing.bundle import (
    VARIABLE,
    Bundle,
    BundleStage,
    Dataset,
    Step,
    read_bundle,
    texts_in,
    with_values,
)
from solar_plugins.sharing.foreign_code import foreign_code
from solar_plugins.sharing.run_facts import (
    RunFacts,
    cached_commit,
    local_files,
    model_digest,
    read_run,
    rows_hash,
)
from solar_plugins.sharing.sources import DataPlace, datasets_of, read_sources
from solar_plugins.sharing.variables import BUNDLE, LEFT_OUT, OUTPUT_KEYS, OUTPUTS
from solar_plugins.storage.atomic import write_file
from solar_plugins.tables import lines, table
from solar_plugins.text import printable
from solar_plugins.versions import package_versions

RECIPES, LOGS = "recipes", "logs"
REPEATED = ("recipe", "mixture")
"""Kinds of stages. Commands and launchers of a bundle are never run."""
NOT_WITH_STEPS = (
    *("save_steps", "saves_per_epoch", "save_total_limit", "save_only_model", "save_first_step"),
    *("load_best_model_at_end", "early_stopping_patience", "metric_for_best_model"),
)
"""Keys about checkpoints, which a run that is stopped early does not write. None changes a step."""

TOLERANCES: Mapping[tuple[bool, str], float] = {
    (True, "fp32"): 1e-4,
    (True, "bf16"): 5e-4,
    (True, "fp16"): 5e-4,
    (False, "fp32"): 1e-3,
    (False, "bf16"): 5e-3,
    (False, "fp16"): 5e-3,
}
"""The relative difference of losses that counts as equal: on the same device, number of processes and versions of
torch and transformers, or on others; by precision.

Measured with a Llama of 4 layers on a CPU, 25 steps: repeated, or with another number of threads, 0; with 2 x 4 rows
instead of 8, or another attention kernel, up to 2e-7 in fp32 and 3e-5 in bf16; bf16 against fp32 1.5e-3. GPUs were not
measured.
"""

type Result = Literal["same", "differ", "not compared"]


class Here(NamedTuple):
    """This machine."""

    device: str
    processes: int
    versions: Mapping[str, str]


class Comparison(NamedTuple):
    """What became of a stage."""

    stage: str
    rows: Result
    rows_said: str
    losses: Result
    losses_said: str


@dataclass(frozen=True)
class Reproduction:
    """A bundle that is being reproduced.

    Args:
        bundle: The bundle.
        steps: Optimizer steps of each training; None: all.
        values: Of every variable.
        given: The output variables that the user gave: stages that exist already.
        output: The folder to write to.
        launch: Text before ``-m axolotl.cli.train``; None: by the number of processes.
        here: This machine.
    """

    bundle: Bundle
    steps: int | None
    values: Mapping[str, str]
    given: Collection[str]
    output: Path
    launch: str | None
    here: Here


def machine_here() -> Here:
    """This machine: its device, how many processes train on it, and the versions of packages."""
    import torch

    gpus = torch.cuda.device_count()
    device = torch.cuda.get_device_name() if gpus else "CPU"
    return Here(device, max(gpus, 1), package_versions())


def machine_differences(bundle: Bundle, here: Here) -> list[list[str]]:
    """Packages, devices and numbers of processes that are not those of the bundle: what, there, here."""
    rows = []
    for stage in bundle.manifest.stages:
        there = bundle.versions.get(stage.name, {})
        rows += [[name, was, here.versions.get(name, "not installed")] for name, was in there.items()]
        rows += [["device", stage.device, here.device]] if stage.device else []
        rows += [["processes", str(stage.processes), str(here.processes)]] if stage.processes else []
    different = [row for row in rows if row[1] != row[2]]
    return [row for number, row in enumerate(different) if row not in different[:number]]


def input_differences(bundle: Bundle, stage: BundleStage, content: Mapping[str, Any]) -> list[list[str]]:
    """Datasets and a base that are not those of the bundle: what, there, here.

    Args:
        bundle: The bundle.
        stage: One of its stages.
        content: The keys of its recipe, with variables replaced.
    """
    rows = []
    places = {place.key: place for place in datasets_of(content)}
    for dataset in bundle.data.get(stage.name, []):
        if dataset.key in places and dataset.sha256 is not None:
            rows += _data_difference(stage.name, dataset, places[dataset.key])
        elif dataset.revision and (found := cached_commit(dataset.name, "dataset")) not in (None, dataset.revision):
            rows.append([f"{stage.name} {dataset.key}", f"{dataset.name} at {dataset.revision:.12}", f"{found:.12}"])
    base = str(content.get("base_model"))
    here, there = model_digest(Path(base).expanduser()), stage.base_digest
    if here is None:
        here, there = cached_commit(base), stage.base_commit
    if here and there and here != there:
        rows.append([f"{stage.name} base_model", f"{stage.base} ({there:.12})", f"{base} ({here:.12})"])
    return rows


def _data_difference(stage: str, dataset: Dataset, place: DataPlace) -> list[list[str]]:
    files = local_files(place)
    if not files:
        raise ArgsError(
            f"{dataset.variable or dataset.key}: {place.path}: does not exist; expected the {dataset.rows} rows of "
            f"{dataset.name}; give its path with --set {dataset.variable}=..."
        )
    rows, sha256 = rows_hash(files)
    if sha256 == dataset.sha256:
        return []
    there, here = f"{dataset.rows} rows, hash {dataset.sha256:.12}", f"{rows} rows, hash {sha256:.12}"
    return [[f"{stage} {dataset.key} ({dataset.name})", there, here]]


def reproduce(
    folder: Path,
    *,
    steps: int | None = None,
    stages: Collection[str] = (),
    values: Mapping[str, str] | None = None,
    output: Path = Path("reproduction"),
    launch: str | None = None,
    trust_code: bool = False,
) -> None:
    """Say what differs here, train the stages of a bundle again, and compare rows and losses.

    Args:
        folder: The bundle.
        steps: Optimizer steps of each training, with the schedule of the entire run; default: all.
        stages: The stages to repeat; empty: all.
        values: Of variables: a local path, or a hub id.
        output: A new folder for what the stages write.
        launch: Text before ``-m axolotl.cli.train``.
        trust_code: Run recipes that run third-party code.

    Raises:
        SolarError: A variable has no value, a stage failed, or rows or losses differ.
    """
    bundle, values = read_bundle(folder), dict(values or {})
    bundle.missing(values)
    names = [stage.name for stage in bundle.manifest.stages]
    if unknown := next((name for name in stages if name not in names), None):
        raise ArgsError(f"{folder}: no stage is called {unknown!r}; its stages: {', '.join(names)}")
    here = machine_here()
    _show_table(["", "in the bundle", "here"], machine_differences(bundle, here), "The same packages and devices here.")
    own: dict[str, str] = {}
    for name, variable in bundle.manifest.variables.items():
        if variable.kind == "output":
            first = str(output / (variable.producer or name.lower()))
            own[name] = first if first not in own.values() else str(output / name.lower())
    own[OUTPUTS], own[BUNDLE] = str(output), str(folder.resolve())
    full = {name: value for name, value in (own | values).items() if name in bundle.manifest.variables}
    chosen = [stage for stage in bundle.manifest.stages if not stages or stage.name in stages]
    bundle.open(full, [stage.file for stage in chosen if stage.file and stage.kind in REPEATED])
    given = [one.producer for name, one in bundle.manifest.variables.items() if one.producer and name in values]
    run = Reproduction(bundle, steps, full, given, output, launch, here)
    _refuse_code(folder, trust_code)
    if output.exists() and any(output.iterdir()):
        raise ArgsError(f"{output}: exists; give another --output, or remove it")
    compared = []
    for stage in chosen:
        compared += list(_repeat(run, stage))
    _conclude(compared)


def _show_table(headings: Sequence[str], rows: Sequence[Sequence[str]], otherwise: str) -> None:
    if not rows:
        click.echo(otherwise)
        return
    click.echo("What differs here:")
    click.echo("\n".join(lines(table(headings, rows, left=(0, 1, 2)))))


def _refuse_code(folder: Path, trust_code: bool) -> None:
    """Refuse third-party code without ``--trust-code``."""
    sources = [source for source in read_sources(folder, []) if source.kind != "pipeline"]
    found = [(source, code) for source in sources for code in foreign_code(source) if code.certain]
    if found and not trust_code:
        said = "\n".join(f"  {source.name}: {code.key}: {code.what}" for source, code in found)
        raise ArgsError(
            f"{folder}: this bundle runs third-party code:\n{printable(said)}\nRead that code first; then repeat the "
            "command with --trust-code"
        )


def _repeat(run: Reproduction, stage: BundleStage) -> Iterator[Comparison]:
    """Repeat a stage and compare it; nothing where it was given, or is no training and has nothing to compare."""
    if stage.name in run.given:
        click.echo(f"{stage.name}: given, not repeated")
        return
    if stage.kind not in REPEATED or stage.file is None:
        yield _not_compared(stage, f"a {stage.kind}, which is not repeated")
        return
    if missing := _missing_output(run, stage):
        writer = run.bundle.manifest.variables[missing].producer
        why = (
            f"starts from what stage {writer} writes, which is not here; repeat that stage too, or --set {missing}=..."
        )
        yield _not_compared(stage, why)
        return
    opened = run.bundle.open(run.values, [stage.file])[stage.file]
    if stage.kind == "mixture":
        content = opened | {"output": str(run.output / stage.name)}
        _run_stage(run, stage, ["solar", "mix", str(_write(run, stage, content))])
        return
    content = opened | {key: with_values(value, run.values) for key, value in stage.overrides.items()}
    differences = input_differences(run.bundle, stage, content)
    _show_table([stage.name, "in the bundle", "here"], differences, f"{stage.name}: the same data and base here")
    place = run.output / stage.name
    content = _adjusted(run, stage, content)
    content["output_dir"] = str(place)
    _run_stage(run, stage, _launch(run, stage, _write(run, stage, content)))
    other_base = any(row[0] == f"{stage.name} base_model" for row in differences)
    yield _compared(run, stage, read_run(place), other_base=other_base)


def _missing_output(run: Reproduction, stage: BundleStage) -> str | None:
    """The variable of something that another stage writes, this one reads, and that is neither given nor here."""
    content = {**run.bundle.contents[str(stage.file)], **stage.overrides}
    used: list[str] = [name for text in texts_in(content) for name in VARIABLE.findall(text)]
    for name in used:
        producer = run.bundle.manifest.variables[name].producer
        if producer not in (None, stage.name, *run.given) and not Path(run.values[name]).exists():
            return name
    return None


def _not_compared(stage: BundleStage, why: str) -> Comparison:
    return Comparison(stage.name, "not compared", why, "not compared", why)


def _adjusted(run: Reproduction, stage: BundleStage, content: dict[str, Any]) -> dict[str, Any]:
    """The recipe without accounts and uploads, with the global batch of the bundle, and for K steps no checkpoints."""
    content = _inside({key: value for key, value in content.items() if not LEFT_OUT.fullmatch(key)}, run.output)
    if run.steps is not None:
        content = {key: value for key, value in content.items() if key not in NOT_WITH_STEPS} | {"save_strategy": "no"}
    there, here = stage.processes or 1, _processes(run, stage)
    if there != here and run.launch is None:
        before = int(content.get("gradient_accumulation_steps") or 1)
        if there * before % here == 0:
            content["gradient_accumulation_steps"] = there * before // here
            click.echo(
                f"{stage.name}: {there} processes there, {here} here: gradient_accumulation_steps {before} becomes "
                f"{there * before // here}, so that a step has the same rows"
            )
        else:
            click.echo(f"{stage.name}: {there} processes there, {here} here: a step has other rows")
    return content


def _inside(content: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """The keys of a recipe with every folder that it writes moved below ``output``."""
    moved = dict(content)
    for key, value in content.items():
        if isinstance(value, Mapping) and key == "solar":
            moved[key] = _inside(value, output)
        elif key in OUTPUT_KEYS and value is not None:
            place = absolute(str(value))
            moved[key] = str(value) if place.is_relative_to(absolute(str(output))) else str(output / OUTPUT_KEYS[key])
    return moved


def _processes(run: Reproduction, stage: BundleStage) -> int:
    return min(stage.processes or 1, run.here.processes)


def _launch(run: Reproduction, stage: BundleStage, recipe: Path) -> list[str]:
    launch = run.launch or f"accelerate launch --num_processes {_processes(run, stage)}"
    return [*shlex.split(launch), "-m", "axolotl.cli.train", str(recipe)]


def _write(run: Reproduction, stage: BundleStage, content: Mapping[str, Any]) -> Path:
    import yaml

    path = run.output / RECIPES / f"{stage.name}.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True).encode())
    return path


def _run_stage(run: Reproduction, stage: BundleStage, command: list[str]) -> None:
    log = run.output / LOGS / f"{stage.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    stop = {STOP_AFTER: str(run.steps)} if run.steps is not None and stage.kind == "recipe" else {}
    click.echo(f"{stage.name}: {shlex.join(command)}")
    status = run_supervised(command, log, run.output / LOGS / "lock", stop)
    if status != 0:
        raise SolarError(f"stage {stage.name} failed with status {status}. The end of {log}:\n{last_lines(log)}")


def _compared(run: Reproduction, stage: BundleStage, facts: RunFacts, *, other_base: bool) -> Comparison:
    there = run.bundle.steps.get(stage.name, [])
    here = {step.step: step for step in facts.steps}
    pairs = [(one, here[one.step]) for one in there if one.step in here]
    if not there or not pairs:
        why = "the bundle has no recorded steps" if not there else "; ".join(facts.notes) or "no step was recorded here"
        return _not_compared(stage, why)
    wrong = next((old.step for old, new in pairs if old.sha256 != new.sha256), None)
    number = f"{len(pairs)} step{'' if len(pairs) == 1 else 's'}"
    rows: Result = "same" if wrong is None else "differ"
    rows_said = f"{number} of {sum(old.rows for old, _ in pairs)} rows" if wrong is None else f"from step {wrong} on"
    if other_base and run.steps is not None:
        why = "the base is not that of the bundle"
        return Comparison(stage.name, rows, rows_said, "not compared", why)
    losses, said = compare_losses(pairs, tolerance(run, stage, facts))
    return Comparison(stage.name, rows, rows_said, losses, said)


def tolerance(run: Reproduction, stage: BundleStage, facts: RunFacts) -> float:
    """The relative difference of losses that counts as equal (`TOLERANCES`)."""
    now = facts.run
    alike = (
        now is not None
        and (now.device, now.processes, now.precision) == (stage.device, stage.processes, stage.precision)
        and all(
            run.bundle.versions.get(stage.name, {}).get(name) == now.versions.get(name)
            for name in ("torch", "transformers")
        )
    )
    precisions = {stage.precision or "bf16", now.precision if now else "bf16"}
    return max(TOLERANCES.get((alike, precision), 2e-2) for precision in precisions)


def compare_losses(pairs: Sequence[tuple[Step, Step]], allowed: float) -> tuple[Result, str]:
    """Whether the losses of steps agree, and in words how far.

    >>> steps = [Step(step=1, rows=2, sha256="0" * 64, loss=loss) for loss in (2.0, 2.001, None)]
    >>> compare_losses([(steps[0], steps[0])], 1e-3)
    ('same', '1 loss exactly equal')
    >>> compare_losses([(steps[0], steps[1])], 1e-4)
    ('differ', 'step 1: 2 there, 2.001 here (0.05 %, at most 0.01 % allowed)')
    >>> compare_losses([(steps[0], steps[2])], 1e-4)
    ('differ', 'step 1: 2 there, not finite here')
    """
    largest = 0.0
    for old, new in pairs:
        if (old.loss is None) != (new.loss is None):
            losses = ["not finite" if loss is None else f"{loss:.6g}" for loss in (old.loss, new.loss)]
            return "differ", f"step {old.step}: {losses[0]} there, {losses[1]} here"
        if old.loss is None or new.loss is None:
            continue
        relative = abs(new.loss - old.loss) / max(abs(old.loss), 1e-8)
        if relative > allowed:
            return "differ", (
                f"step {old.step}: {old.loss:.6g} there, {new.loss:.6g} here ({100 * relative:.2g} %, at most "
                f"{100 * allowed:.2g} % allowed)"
            )
        largest = max(largest, relative)
    words = f"{len(pairs)} loss{'' if len(pairs) == 1 else 'es'}"
    if largest == 0:
        return "same", f"{words} exactly equal"
    return "same", f"{words} within {100 * largest:.2g} % (at most {100 * allowed:.2g} % allowed)"


def _conclude(compared: Sequence[Comparison]) -> None:
    rows = [[one.stage, one.rows, one.rows_said, one.losses, one.losses_said] for one in compared]
    click.echo()
    click.echo("\n".join(lines(table(["stage", "rows", "", "losses", ""], rows, left=range(5)))))
    if any("differ" in (one.rows, one.losses) for one in compared):
        raise SolarError("not reproduced: rows or losses differ; the table has the first step of each stage that does")
    if not any("same" in (one.rows, one.losses) for one in compared):
        raise SolarError("nothing was compared; the table has why")
    click.echo("Reproduced: everything that was compared is the same.")
