"""`solar recipes share`: a finished run or pipeline as a bundle: built, shown, checked, and uploaded if asked."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click

from solar_plugins import lineage
from solar_plugins.errors import ArgsError, SolarError
from solar_plugins.lineage.public import is_hub_id
from solar_plugins.pipeline import Kind, is_pipeline, read_pipeline
from solar_plugins.recipe import parse_recipe
from solar_plugins.running.runner import situation_of
from solar_plugins.sharing.bundle import (
    CARD,
    CURVES,
    DATA,
    MANIFEST,
    METRICS,
    PICTURES,
    PLANS,
    STEPS,
    VERSIONS,
    Bundle,
    BundleStage,
    Dataset,
    Metric,
    StagePlan,
    as_json,
    stages_json,
    write_bundle,
)
from solar_plugins.sharing.bundle_card import MARK, CardFacts, Evaluation, bundle_card
from solar_plugins.sharing.hub import download, list_files, upload
from solar_plugins.sharing.hub_session import MissingError
from solar_plugins.sharing.run_facts import (
    RunFacts,
    cached_commit,
    curves,
    dataset_facts,
    metrics_of,
    model_digest,
    read_run,
    require_finished,
)
from solar_plugins.sharing.secrets import SECRET_NAME, in_file
from solar_plugins.sharing.sources import datasets_of, kind_of, recipes_in
from solar_plugins.sharing.variables import RECIPES, Variables, names_machine
from solar_plugins.storage.cards import read_card, split_card
from solar_plugins.storage.untrusted import parse_yaml, read_json_object, read_text
from solar_plugins.tables import lines, table
from solar_plugins.text import format_bytes
from solar_plugins.upscaling.base_model import CONFIG
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.provenance import recorded_plan

PIPELINE_FILE = "pipeline.yml"
FRONT_KEYS = ("base_model", "base_model_relation", "datasets", "license", "license_name", "license_link", "language")
"""Metadata of the trained model's card that hold for its recipe too."""
SECRET_VARIABLE_LENGTH = 8


@dataclass(frozen=True, slots=True)
class RunStage:
    """A finished stage.

    Args:
        name: Its name in the bundle.
        kind: As in a pipeline file.
        files: The text of its recipe, merge or mixture, by path; of a command those of the recipes that it names.
        content: Its keys, with overrides; of a command the command.
        overrides: Keys with other values than in the file.
        outputs: What it wrote, as its file says.
        place: Where it wrote a model.
        versions: Of the packages that ran it, if a pipeline recorded them.
        seconds: How long it took, if a pipeline recorded it.
    """

    name: str
    kind: Kind
    files: Mapping[Path, str]
    content: Mapping[str, Any]
    outputs: tuple[str, ...]
    place: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None


class Run(NamedTuple):
    """A finished run: a pipeline, or one recipe."""

    stages: list[RunStage]
    pipeline: Path | None = None


class Built(NamedTuple):
    """A bundle, and what its author should know."""

    bundle: Bundle
    left_out: list[str]
    notes: list[str]


def find_run(path: Path) -> Run:
    """The finished run that a user names.

    Args:
        path: A pipeline file, a recipe file, or the output folder of a training.

    Raises:
        SolarError: It is none of them, or it is not finished.
    """
    if path.is_dir():
        return _run_of_folder(path)
    if is_pipeline(path):
        return _run_of_pipeline(path)
    text = read_text(path)
    content = parse_yaml(text, str(path))
    if not isinstance(content, Mapping) or "base_model" not in content:
        raise ArgsError(
            f"{path}: no base_model; expected a recipe whose training has finished, a pipeline that `solar run` "
            "finished, or the output folder of a training"
        )
    recipe = parse_recipe(content, path, text)
    outputs, place = (recipe.output_dir,), recipe.output_directory
    stage = RunStage(_stage_name(path.stem), "recipe", {path: text}, content, outputs, place)
    return Run([stage])


def _run_of_folder(folder: Path) -> Run:
    found = lineage.read(folder)
    last = found.stages[-1] if found and found.stages else None
    if last is None or last.recipe is None:
        raise ArgsError(
            f"{folder}: {lineage.LINEAGE_FILE} with the recipe of the run is missing; give the recipe file instead"
        )
    content = parse_yaml(last.recipe, f"{folder}/{lineage.LINEAGE_FILE}")
    if not isinstance(content, Mapping):
        raise ArgsError(
            f"{folder}/{lineage.LINEAGE_FILE}: the recipe is not a map of keys; give the recipe file instead"
        )
    name = _stage_name(folder.resolve().name)
    outputs = (str(content.get("output_dir") or folder),)
    return Run([RunStage(name, "recipe", {Path(f"{name}.yml"): last.recipe}, content, outputs, folder)])


def _run_of_pipeline(path: Path) -> Run:
    pipeline = read_pipeline(path)
    stages = []
    for stage in pipeline.stages:
        situation = situation_of(pipeline, stage)
        if situation.verdict.action != "skip" or situation.record is None:
            raise ArgsError(
                f"{path}: stage {stage.name} is not done ({situation.verdict.reason}); finish it first: "
                f"solar run {path}"
            )
        files = [stage.file] if stage.file else recipes_in(stage)
        stages.append(
            RunStage(
                stage.name,
                stage.kind,
                {file: read_text(file) for file in files},
                stage.content,
                stage.outputs,
                Path(stage.outputs[0]).expanduser(),
                stage.overrides,
                situation.record.versions,
                situation.record.seconds,
            )
        )
    return Run(stages, path)


def _stage_name(text: str) -> str:
    """A name for the stage of a run without a pipeline, from that of its file or folder."""
    name = re.sub(r"[^\w.-]+", "_", text, flags=re.ASCII).lstrip("_.-")[:60]
    return name if name and not names_machine(name, Variables().machine) else "run"


def build(
    run: Run,
    folder: Path,
    repo: str,
    *,
    results: Sequence[Path] = (),
    report: Path | None = None,
    pictures: bool = True,
) -> Built:
    """Write the bundle of a finished run. The same run gives the same bytes.

    Args:
        run: The run.
        folder: Where; a bundle that is there is replaced.
        repo: Where it will be shared, for the card.
        results: Files of lm_eval, next to those in the output folders.
        report: The JSON file of `solar report`.
        pictures: Draw the plan and the curves, if matplotlib is installed.

    Raises:
        SolarError: Something is not finished, is secret, or cannot be read.
    """
    variables = Variables()
    for stage in run.stages:
        for number, output in enumerate(stage.outputs):
            what = "model" if stage.kind in ("recipe", "merge") else "data" if stage.kind == "mixture" else "output"
            name = stage.name if not number else f"{stage.name}_{number + 1}"
            variables.add_output(stage.name, name, output, f"the {what} that stage {stage.name} writes")
    left_out: list[str] = []
    texts: dict[str, str] = {}
    recipes = {path: text for stage in run.stages for path, text in stage.files.items()}
    names = {path: variables.path_in_bundle(path, "recipe") for path in recipes}
    for path, text in recipes.items():
        content = parse_yaml(text, str(path))
        _refuse_secrets(text, content, path.name)
        prompts = content.get("prompts") if kind_of(content) == "maths" else None
        included = {one: variables.include(path.parent / one, "prompt") for one in (prompts or {}).values()}
        relative = {one: name.removeprefix(RECIPES) for one, name in included.items()}
        shared = variables.in_file(text, names[path].removeprefix(RECIPES), relative)
        texts[names[path]] = shared.text
        left_out += shared.left_out
    for stage in run.stages:
        _refuse_secrets("", {**stage.content, **stage.overrides}, stage.name)
    pipeline = _pipeline_text(run, variables, left_out)
    texts |= {PIPELINE_FILE: pipeline} if pipeline else {}
    trained = [stage for stage in run.stages if stage.kind == "recipe"]
    facts = {stage.name: read_run(stage.place) for stage in trained}
    notes = [f"stage {name}: {note}" for name, of_run in facts.items() for note in of_run.notes]
    for stage in trained:
        require_finished(next(iter(stage.files)), stage.place, facts[stage.name])
    stages = [_bundle_stage(stage, facts.get(stage.name), variables) for stage in run.stages]
    plans = dict(_plans(trained, variables))
    data = {stage.name: _datasets(stage, facts[stage.name], variables) for stage in trained}
    recorded = {name: of_run.run.versions for name, of_run in facts.items() if of_run.run}
    versions = {stage.name: dict(recorded.get(stage.name, stage.versions)) for stage in run.stages}
    versions = {name: packages for name, packages in versions.items() if packages}
    evaluations = list(_evaluations([stage.place for stage in run.stages], results))
    metrics = {stage.name: metrics_of(parse_recipe(stage.content), facts[stage.name]) for stage in trained}
    last = metrics.setdefault(run.stages[-1].name, [])
    last += _report_metrics(report, variables) if report else ()
    of_card = {name: list(found) for name, found in metrics.items()}  # It has a table of its own for lm_eval.
    last += [one.metric_of_stage for one in evaluations]
    drawn = dict(_pictures(plans, facts, run)) if pictures else {}
    if pictures and not drawn:
        notes.append("no pictures: matplotlib is not installed; pip install 'solar_plugins[report]'")
    files = {path: text.encode() for path, text in texts.items()}
    for name, path in variables.included.items():
        files[name] = read_text(path, fix="restore the file, or remove the key that names it").encode()
    files |= {
        PLANS: stages_json(plans),
        DATA: stages_json(data),
        VERSIONS: stages_json(versions),
        METRICS: stages_json({name: found for name, found in metrics.items() if found}),
        STEPS: stages_json({name: of_run.steps for name, of_run in facts.items() if of_run.steps}),
        CURVES: curves({name: of_run.history for name, of_run in facts.items()}),
    }
    title = repo.rpartition("/")[2]
    declared = dict(sorted(variables.declared.items()))
    files[CARD] = bundle_card(
        CardFacts(
            title=title,
            repo=repo,
            front=_front(run),
            stages=stages,
            variables=declared,
            plans=plans,
            data=data,
            metrics=of_card,
            versions=versions,
            evaluations=evaluations,
            pictures={path: meaning for path, (meaning, _) in drawn.items()},
            texts=texts,
            notes=notes,
            compared_steps={name: len(of_run.steps) for name, of_run in facts.items()},
        )
    ).encode()
    listed = as_json([list(files), *(one.model_dump(mode="json") for one in (*stages, *declared.values()))])
    for name, written in (files | {MANIFEST: listed}).items():
        _refuse_private(name, written, variables)
    files |= {path: picture for path, (_, picture) in drawn.items()}
    bundle = write_bundle(
        folder,
        files,
        name=title,
        stages=stages,
        variables=variables.declared,
        pipeline=PIPELINE_FILE if pipeline else None,
        replace=True,
    )
    return Built(bundle, left_out, notes)


def _pipeline_text(run: Run, variables: Variables, left_out: list[str]) -> str:
    """The pipeline file, with the files of its stages in `RECIPES`."""
    if run.pipeline is None:
        return ""
    text = read_text(run.pipeline)
    content = parse_yaml(text, str(run.pipeline))
    _refuse_secrets(text, content, run.pipeline.name)
    named = {stage["name"]: stage for stage in content["stages"]}
    files = {
        named[stage.name][stage.kind]: variables.path_in_bundle(next(iter(stage.files)), "recipe")
        for stage in run.stages
        if stage.kind != "command"
    }
    shared = variables.in_file(text, run.pipeline.name, files)
    left_out += shared.left_out
    return shared.text


def _bundle_stage(stage: RunStage, facts: RunFacts | None, variables: Variables) -> BundleStage:
    run = facts.run if facts else None
    base = stage.content.get("base_model") if stage.kind == "recipe" else None
    named = variables.replaced(base, ("base_model",)) if isinstance(base, str) else None
    revision = stage.content.get("revision_of_model")
    return BundleStage(
        name=stage.name,
        kind=stage.kind,
        file=variables.path_in_bundle(next(iter(stage.files)), "recipe") if stage.files else None,
        overrides={
            key: (variables.replaced(value, (key,)) or value) if isinstance(value, str) else value
            for key, value in stage.overrides.items()
        },
        steps=facts.planned_steps or (run.steps if run else None) if facts else None,
        processes=run.processes if run else None,
        device=run.device if run else None,
        precision=run.precision if run else None,
        base=named or base,
        base_commit=(str(revision) if revision else cached_commit(base)) if base and named is None else None,
        base_digest=model_digest(Path(base).expanduser()) if base and named else None,
        seconds=stage.seconds,
    )


def _plans(trained: Sequence[RunStage], variables: Variables) -> Iterator[tuple[str, StagePlan]]:
    """The plans of the stages whose own recipe upscales."""
    for stage in trained:
        config = stage.place / CONFIG
        upscales = "init" in (stage.content.get("solar") or {}) and config.is_file()
        if upscales and (plan := recorded_plan(read_json_object(config))) is not None:
            content = plan.to_dict()
            for donor in content.get("donors", ()):
                donor["name"] = donor["name"] if is_hub_id(donor["name"]) else variables.file_name(donor["name"])
            yield stage.name, StagePlan(text=str(plan), plan=content)


def _datasets(stage: RunStage, facts: RunFacts, variables: Variables) -> list[Dataset]:
    local = [place.path for place in datasets_of(stage.content) if variables.replaced(place.path, ("path",))]
    names = {path: variables.file_name(path) for path in local}
    named = {path: name for path in local if (name := variables.variable_of(path)) is not None}
    return dataset_facts(stage.content, facts.run, names, named)


def _front(run: Run) -> dict[str, Any]:
    """Metadata of the last trained model's card that hold for its recipes too."""
    for stage in reversed(run.stages):
        front, _ = split_card(read_card(stage.place))
        found = {key: front[key] for key in FRONT_KEYS if front.get(key)}
        for key in ("base_model", "datasets"):
            named = [found[key]] if isinstance(found.get(key), str) else found.get(key) or []
            found[key] = [one for one in named if isinstance(one, str) and is_hub_id(one)]
        if any(found.values()):
            return {key: value for key, value in found.items() if value}
    bases = [str(stage.content.get("base_model")) for stage in run.stages if stage.kind == "recipe"]
    return {"base_model": bases[0]} if bases and is_hub_id(bases[0]) and not Path(bases[0]).exists() else {}


def _evaluations(places: Sequence[Path], more: Sequence[Path]) -> Iterator[Evaluation]:
    """The results of lm_eval: of the newest file in each folder, and of the files given."""
    files = list(more)
    for place in dict.fromkeys(places):
        found = sorted(place.rglob("results_*.json")) if place.is_dir() else []
        files += found[-1:]  # Their names end in the time.
    for file in files:
        content = read_json_object(file, error=SolarError, fix="give a file of results that lm_eval wrote")
        shots, samples = content.get("n-shot") or {}, content.get("n-samples") or {}
        results = content.get("results")
        if not isinstance(results, Mapping):
            raise SolarError(f"{file}: no results; give a file that lm_eval wrote, such as results_2026-01-31.json")
        for task, scores in results.items():
            for key, value in scores.items() if isinstance(scores, Mapping) else ():
                metric, _, filtered = str(key).partition(",")
                number = isinstance(value, int | float) and math.isfinite(value)
                if filtered and number and not metric.endswith("_stderr"):
                    size = samples.get(task, {})
                    examples = size.get("effective") if isinstance(size, Mapping) else None
                    yield Evaluation(str(task), metric, filtered, float(value), shots.get(task), examples)


def _report_metrics(path: Path, variables: Variables) -> Iterator[Metric]:
    """The held-out losses and pair accuracies that `solar report` measured."""
    content = read_json_object(path, error=SolarError, fix="give the JSON file that `solar report` wrote")
    try:
        conditions = content["conditions"]
        where = f"{conditions['hardware']['dtype']} on {conditions['hardware']['device']}"
        texts = variables.file_name(str(conditions["held_out"]))
        for name, model in content["models"].items():
            how = f"solar report: cross-entropy in nats per token, {model['tokens']} tokens of {texts}; {where}"
            yield Metric(name=f"held_out_loss of {name}", value=model["nats_per_token"], how=how)
            if answers := model.get("answers"):
                how = f"solar report: the same on {answers['tokens']} tokens of eval responses; {where}"
                yield Metric(name=f"response_loss of {name}", value=answers["nats_per_token"], how=how)
            if (pairs := model.get("pairs")) and pairs["preferred"] is not None:
                how = f"solar report: share of {pairs['pairs']} eval pairs whose chosen response is likelier; {where}"
                yield Metric(name=f"pair_accuracy of {name}", value=pairs["preferred"] / pairs["pairs"], how=how)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SolarError(
            f"{path}: not the metrics of `solar report` ({type(error).__name__}: {error!s:.100}); give its JSON file, "
            "such as report.json"
        ) from None


def _pictures(
    plans: Mapping[str, StagePlan], facts: Mapping[str, RunFacts], run: Run
) -> Iterator[tuple[str, tuple[str, bytes]]]:
    """Pictures of the plans and the loss curves: path, what it shows, PNG; none without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return
    from solar_plugins.report.picture import save_picture
    from solar_plugins.report.plan_picture import plan_figure
    from solar_plugins.report.training_log import Chart, curve_figure, training_log

    contents = {stage.name: stage.content for stage in run.stages}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "picture.png"
        for name, plan in plans.items():
            save_picture(plan_figure(LayerPlan.from_dict(plan.plan)), path)
            yield f"{PICTURES}plan-{name}.png", (f"The layer plan of {name}", path.read_bytes())
        for name, of_run in facts.items():
            log = training_log({"log_history": of_run.history})
            if log.loss.points:
                chart = Chart(log.loss, "loss", ln_2=contents[name].get("rl") == "dpo")
                save_picture(curve_figure(chart), path)
                yield f"{PICTURES}loss-{name}.png", (f"{chart.alternative_text} ({name})", path.read_bytes())


def _refuse_secrets(text: str, content: Any, where: str) -> None:
    """Refuse a file of the run that has a secret, even where it would be left out."""
    found = next((one for one in in_file(text, content) if one.kind == "secret"), None)
    if found is not None:
        raise ArgsError(
            f"{where}: {found.where}: has {found.what}. Remove it, revoke it if the file was ever shared, and give it "
            "by `hf auth login` or an environment variable instead; nothing was written"
        )


def _refuse_private(name: str, content: bytes, variables: Variables) -> None:
    """Refuse a file of the bundle that has a secret, or a path or name of this machine."""
    text = content.decode()
    value = parse_yaml(text, name) if name.endswith((".yml", ".json")) else None
    for one in in_file(text, value, variables.machine):
        raise ArgsError(
            f"{name}: {one.where}: {one.what if one.kind == 'secret' else f'has {one.what}'}, which is only of this "
            "machine. Change it in the recipe, or remove it; nothing was written"
        )
    for number, line in enumerate(text.splitlines(), 1):
        if names_machine(line, variables.machine):
            raise ArgsError(
                f"{name}: line {number}: has the name of the user or of the machine. Change it in the recipe, or "
                "remove it; nothing was written"
            )
    for variable, secret in os.environ.items():
        if SECRET_NAME.search(variable) and len(secret) >= SECRET_VARIABLE_LENGTH and secret in text:
            raise ArgsError(f"{name}: has the value of the environment variable {variable}; remove it from the recipe")


def share(
    path: Path,
    repo: str,
    *,
    yes: bool = False,
    public: bool = False,
    output: Path | None = None,
    results: Sequence[Path] = (),
    report: Path | None = None,
) -> None:
    """Build the bundle of a finished run, show it, check it, and with ``yes`` upload it in one commit.

    Args:
        path: A pipeline file, a recipe file, or the output folder of a training.
        repo: ``ORG/NAME``.
        yes: Upload it.
        public: Whether a new repository is public.
        output: Where to write the bundle; default: the name of the repository.
        results: Files of lm_eval.
        report: The JSON file of `solar report`.

    Raises:
        SolarError: The run is not finished, something is private, the check fails, or the upload does.
    """
    if not is_hub_id(repo):
        raise ArgsError(f"--to {repo}: not the name of a repository; expected ORG/NAME, such as me/solar-recipe")
    folder = output or Path(repo.rpartition("/")[2])
    built = build(find_run(path), folder, repo, results=results, report=report)
    click.echo("\n".join(_shown(built, folder)))
    _check(folder)
    if not yes:
        kind = "public" if public else "private"
        click.echo(f"\nNothing was sent. Repeat the command with --yes to upload it to {repo} ({kind} if it is new).")
        return
    _upload(repo, folder, built, private=not public)


def _shown(built: Built, folder: Path) -> Iterator[str]:
    manifest = built.bundle.manifest
    sizes = {CARD: (folder / CARD).stat().st_size} | {name: entry.bytes for name, entry in manifest.files.items()}
    yield f"{folder}: {len(sizes) + 1} files, {format_bytes(sum(sizes.values()))}"
    yield from lines(table(["file", "size"], [[name, format_bytes(size)] for name, size in sizes.items()]))
    inputs = {name: one for name, one in manifest.variables.items() if one.kind == "input"}
    if inputs:
        yield ""
        rows = [[name, one.meaning] for name, one in inputs.items()]
        yield from lines(table(["variable", "given by the person who reproduces it"], rows, left=(0, 1)))
    if built.left_out:
        yield ""
        yield "Left out, because it is of this machine or account:"
        yield from (f"  {one}" for one in built.left_out)
    if built.notes:
        yield ""
        yield "Not known:"
        yield from (f"  {note}" for note in built.notes)
    yield ""
    yield f"The card, {folder / CARD}:"
    card = (folder / CARD).read_text(encoding="utf-8").partition("\n## Recipes")[0]
    yield from (f"  {line}".rstrip() for line in card.splitlines())


def _check(folder: Path) -> None:
    from solar_plugins.sharing.check import as_text, check, has_errors

    findings = check(folder)
    click.echo(f"\n{as_text(findings)}")
    if has_errors(findings):
        raise SolarError(f"{folder}: the check found errors; fix the recipe, run it again, and share that run")


def _upload(repo: str, folder: Path, built: Built, *, private: bool) -> None:
    files, parent = {CARD, MANIFEST, *built.bundle.manifest.files}, None
    old: set[str] = set()
    try:
        there = list_files(repo)
        known = download(there, [one.path for one in there.files if one.path in (CARD, MANIFEST)], 5_000_000)
        parent = there.remote.commit  # A card that arrives after this look is not overwritten.
    except MissingError:
        known = {}  # It does not exist yet.
    if CARD in known and MARK not in known[CARD].read_text(encoding="utf-8", errors="replace"):
        files.remove(CARD)
        click.echo(f"{repo} has a card of its own, which stays")
    if MANIFEST in known:  # Else files of an earlier bundle would look like recipes of this one.
        listed = read_json_object(known[MANIFEST], error=SolarError, fix="remove it from the repository").get("files")
        old = {one.path for one in there.files} & set(listed if isinstance(listed, dict) else ())
    title = f"Share the recipe of {built.bundle.manifest.name}"
    found = upload(repo, folder, files, title, private=private, parent_commit=parent, delete=old - files)
    kind = {True: "private", False: "public", None: "existing"}[found.private]
    click.echo(f"{found.url} ({kind}), commit {found.commit}")
