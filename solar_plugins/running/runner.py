"""Run a pipeline: a process for each stage, a record and a log of each, and the first failure ends it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click

from solar_plugins.errors import ArgsError, SolarError
from solar_plugins.lineage.merges import MERGE_FILE, describe
from solar_plugins.pipeline import Pipeline, Stage, read_pipeline
from solar_plugins.running.identity import Listing, digest, inputs_of, listing, producer_of
from solar_plugins.running.record import StageRecord, Verdict, read_record, verdict, write_record
from solar_plugins.running.training_checkpoints import damage, saves_model_only, training_checkpoints
from solar_plugins.versions import package_versions

LAST_LINES = 15
"""Of a failed stage's log that are shown."""
POLL_SECONDS, WAIT_MESSAGE_SECONDS = 0.2, 5.0


class StageError(SolarError):
    """A stage failed, or would overwrite what is there."""


class Situation(NamedTuple):
    """A stage, what is known of it, and what therefore happens."""

    stage: Stage
    content: Mapping[str, Any]
    inputs: dict[str, str]
    record: StageRecord | None
    verdict: Verdict


def run_pipeline(
    path: Path,
    *,
    start: str | None = None,
    only: Collection[str] = (),
    rerun: Collection[str] = (),
    dry_run: bool = False,
) -> None:
    """Run the stages of a pipeline that are not done.

    Args:
        path: The pipeline file.
        start: The first stage to look at; those before it are taken as they are.
        only: The only stages to look at; empty: all.
        rerun: Stages that are run again; what they wrote is moved aside.
        dry_run: Only say what would be done.

    Raises:
        SolarError: The pipeline cannot be used, a stage failed, or one would overwrite what is there.
    """
    pipeline = read_pipeline(path)
    chosen = _chosen(pipeline, start, only, rerun)
    pipeline.records.mkdir(parents=True, exist_ok=True)
    with _sole_run(pipeline.records):
        changed: list[str] = []
        for number, stage in enumerate(pipeline.stages, 1):
            if stage.name not in chosen:
                continue
            label = f"[{number}/{len(pipeline.stages)}] {stage.name}"
            upstream = _waits_for(pipeline, stage, changed) if dry_run else None
            if upstream is not None:
                click.echo(f"{label}: would run after {upstream}")
                changed.append(stage.name)
                continue
            situation = situation_of(pipeline, stage)
            if stage.name in rerun:
                situation = situation._replace(verdict=Verdict("start", "asked for by --rerun"))
            if dry_run:
                click.echo(f"{label}: {_would(situation)}")
                changed += [stage.name] if situation.verdict.action != "skip" else []
            else:
                _carry_out(pipeline, situation, label, again=stage.name in rerun)


def _chosen(pipeline: Pipeline, start: str | None, only: Collection[str], rerun: Collection[str]) -> set[str]:
    names = [stage.name for stage in pipeline.stages]
    for name in filter(None, (start, *only, *rerun)):
        if name not in names:
            raise ArgsError(f"{pipeline.path}: no stage is called {name!r}; its stages: {', '.join(names)}")
    if only and start is not None:
        raise ArgsError("--from and --only exclude each other; give one of them")
    return set(only) or set(names[names.index(start) if start else 0 :])


def situation_of(pipeline: Pipeline, stage: Stage) -> Situation:
    """What is known of a stage now.

    Raises:
        StageError: An input is missing.
        OSError: An input or output cannot be read.
    """
    earlier = pipeline.stages[: pipeline.stages.index(stage)]
    written = {output: one for one in earlier for output in one.outputs}
    inputs = {}
    for path in inputs_of(stage, list(written)):
        producer = producer_of(path, list(written))
        inputs[path] = _input_digest(pipeline, stage, path, written[producer] if producer else None)
    record = read_record(record_path(pipeline, stage))
    content = json.loads(json.dumps(stage.content, default=str))
    outputs = {output: _output_listing(Path(os.path.expanduser(output)), record, output) for output in stage.outputs}
    return Situation(stage, content, inputs, record, verdict(record, content, inputs, outputs))


def _input_digest(pipeline: Pipeline, stage: Stage, path: str, producer: Stage | None) -> str:
    """Of an earlier stage's output, only the files that it wrote count: other files may be added later."""
    place = Path(os.path.expanduser(path))
    if not place.exists():
        by = f"; the stage {producer.name} writes it: run that first" if producer else "; check the path"
        raise StageError(f"{pipeline.path}: stage {stage.name}: {path} does not exist{by}")
    record = read_record(record_path(pipeline, producer)) if producer else None
    if record is not None and path in record.outputs:
        found = listing(place)
        return digest({name: found.get(name) for name in record.outputs[path]})
    return digest(listing(place))


def _output_listing(place: Path, record: StageRecord | None, output: str) -> Listing:
    """The files of an output; of a stage that is done, those that it wrote."""
    if record is not None and record.status == "done":
        found = listing(place)
        return {name: found[name] for name in record.outputs.get(output, {}) if name in found}
    if place.is_dir():
        return {"": "a folder"} if any(place.iterdir()) else {}
    return {"": "a file"} if place.exists() else {}


def record_path(pipeline: Pipeline, stage: Stage) -> Path:
    """Where the record of a stage is."""
    return pipeline.records / f"{stage.name}.json"


def log_path(pipeline: Pipeline, stage: Stage) -> Path:
    """Where what a stage prints is kept."""
    return pipeline.records / f"{stage.name}.log"


def _waits_for(pipeline: Pipeline, stage: Stage, changed: Collection[str]) -> str | None:
    """In a dry run: the stage that would run before this one and write an input of it."""
    written = {output: one.name for one in pipeline.stages if one.name in changed for output in one.outputs}
    producers = (producer_of(path, list(written)) for path in inputs_of(stage, list(written)))
    return next((written[producer] for producer in producers if producer is not None), None)


def _would(situation: Situation) -> str:
    action, reason = situation.verdict
    says = {
        "skip": "done",
        "start": f"would run ({reason}): {shlex.join(situation.stage.command)}",
        "continue": f"would continue ({reason}): {shlex.join(situation.stage.command)}",
        "refuse": f"would stop: {reason}; --rerun {situation.stage.name} would move it aside and run the stage again",
    }
    return says[action]


def _carry_out(pipeline: Pipeline, situation: Situation, label: str, *, again: bool) -> None:
    stage, action = situation.stage, situation.verdict.action
    if action == "skip":
        click.echo(f"{label}: done{_other_versions(situation.record)}")
        return
    if action == "refuse":
        raise StageError(
            f"{pipeline.path}: stage {stage.name}: {situation.verdict.reason}. Running it would overwrite "
            f"{', '.join(stage.outputs)}: `solar run {pipeline.path} --rerun {stage.name}` moves that aside first"
        )
    options: list[str] = []
    if again:
        _set_aside(stage, "before", label)
    elif action == "continue" and (options := _resume_options(stage, label)) == []:
        _set_aside(stage, "unfinished", label)
    command = [*stage.command, *options]
    click.echo(f"{label}: {situation.verdict.reason}; {shlex.join(command)}")
    started = time.monotonic()
    versions = package_versions()
    record = StageRecord("started", situation.content, situation.inputs, versions=versions)
    write_record(record_path(pipeline, stage), record)
    status = run_supervised(command, log_path(pipeline, stage), pipeline.records / "lock")
    seconds = time.monotonic() - started
    if status != 0:
        raise StageError(_failure(pipeline, stage, status))
    _describe_merges(stage, label)
    outputs = {output: listing(Path(os.path.expanduser(output))) for output in stage.outputs}
    missing = [output for output, files in outputs.items() if not files]
    if missing:
        raise StageError(
            f"{pipeline.path}: stage {stage.name} ended with status 0 and did not write {missing[0]}; see "
            f"{log_path(pipeline, stage)}"
        )
    done = StageRecord("done", situation.content, situation.inputs, outputs, versions, round(seconds, 1))
    write_record(record_path(pipeline, stage), done)
    click.echo(f"{label}: done in {_duration(seconds)}")


def _describe_merges(stage: Stage, label: str) -> None:
    """Write the lineage and the card of what mergekit merged; a stage does not fail for its card."""
    if stage.kind not in ("merge", "command"):
        return
    for folder in (Path(os.path.expanduser(output)) for output in stage.outputs):
        if not (folder / MERGE_FILE).is_file():
            continue
        try:
            described = describe(folder)
        except (SolarError, OSError) as error:
            click.echo(f"{label}: no model card for {folder}: {error}", err=True)
            continue
        for warning in described.warnings:
            click.echo(f"{label}: {described.path}: {warning}", err=True)


def _resume_options(stage: Stage, label: str) -> list[str]:
    """How a training stage resumes; empty if it cannot, or is no training."""
    if stage.kind != "recipe":
        return []
    for checkpoint in training_checkpoints(Path(os.path.expanduser(stage.outputs[0]))):
        if saves_model_only(checkpoint):
            click.echo(f"{label}: {checkpoint} has the model only, no optimizer: the stage starts again")
            return []
        problem = damage(checkpoint)
        if problem is None:
            return [f"--resume_from_checkpoint={checkpoint}"]
        aside = _free_name(checkpoint.with_name(f"damaged-{checkpoint.name}"))
        checkpoint.rename(aside)
        click.echo(f"{label}: {checkpoint} cannot be resumed from ({problem}); it is now {aside}")
    return []


def _set_aside(stage: Stage, why: str, label: str) -> None:
    """Rename what a stage has written; nothing is ever deleted."""
    for output in stage.outputs:
        place = Path(os.path.expanduser(output))
        if place.exists():
            aside = _free_name(place.with_name(f"{place.name}.{why}-1"))
            place.rename(aside)
            click.echo(f"{label}: {output} is now {aside}; remove it if you do not need it")


def _free_name(path: Path) -> Path:
    stem, _, number = path.name.rpartition("-")
    if not number.isdigit() or path.name.startswith("damaged-"):
        stem, number = path.name, "1"
        if not path.exists():
            return path
    candidate = int(number)
    while (found := path.with_name(f"{stem}-{candidate}")).exists():
        candidate += 1
    return found


def run_supervised(command: list[str], log: Path, lock: Path, environment: Mapping[str, str] | None = None) -> int:
    """Run a command under the supervisor; what it prints goes to the terminal and to its log."""
    supervised = [sys.executable, "-m", "solar_plugins.running.supervisor", str(os.getpid()), str(lock), *command]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with (
        log.open("wb") as kept,
        subprocess.Popen(
            supervised,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PATH": path} | dict(environment or {}),
        ) as process,
    ):
        assert process.stdout is not None
        try:
            while piece := os.read(process.stdout.fileno(), 65536):
                kept.write(piece)
                kept.flush()
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
        finally:  # Ctrl-C reaches the supervisor too; with any other error here the stage must end as well.
            if process.poll() is None:
                process.terminate()
        return process.wait()


def _failure(pipeline: Pipeline, stage: Stage, status: int) -> str:
    log = log_path(pipeline, stage)
    return (
        f"{pipeline.path}: stage {stage.name} failed with status {status}. The end of {log}:\n{last_lines(log)}\n"
        f"Fix the cause and repeat the command; stages that are done are skipped"
    )


def last_lines(log: Path) -> str:
    """The end of a log, for a message."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    last = [line for line in lines if line.strip()][-LAST_LINES:]
    return "\n".join(f"  {line[:300]}" for line in last) or "  (it printed nothing)"


def _other_versions(record: StageRecord | None) -> str:
    now = package_versions()
    was = record.versions if record else {}
    other = [f"{name} {was[name]}, now {now.get(name)}" for name in was if now.get(name) != was[name]]
    return f" (with {', '.join(other)}; it is not run again for that)" if other else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextmanager
def _sole_run(records: Path) -> Iterator[None]:
    """One `solar run` for the records at a time; waits for processes of an earlier one that are still ending."""
    import fcntl

    with (records / "run.lock").open("w") as run, (records / "lock").open("a") as stage:
        try:
            fcntl.flock(run, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(f"{records}: another `solar run` is using this folder; wait for it, or stop it") from None
        waited = 0.0
        while True:
            try:
                fcntl.flock(stage, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waited == 0:
                    click.echo("Waiting for the processes of an earlier `solar run` to end", err=True)
                waited += POLL_SECONDS
                time.sleep(POLL_SECONDS)
        fcntl.flock(stage, fcntl.LOCK_UN)
        yield
