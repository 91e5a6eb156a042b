"""The card of a bundle: what the run was, what came out, and how to repeat it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solar_plugins.sharing.bundle import BundleStage, Dataset, Metric, StagePlan, Variable
from solar_plugins.storage.cards import code, details, plain
from solar_plugins.text import printable

MARK = "<!-- the card of a solar_plugins bundle -->"
"""In every card of a bundle, so that `share` replaces its own card and nobody else's."""
TAGS = ("solar_plugins", "recipe", "axolotl")
UPSCALED_TAG = "depth-up-scaling"
SHORT_HASH = 12
KINDS = {"recipe": "training", "merge": "merge", "mixture": "data", "command": "command"}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A result of an evaluation harness."""

    task: str
    metric: str
    filtered: str
    value: float
    shots: int | None
    examples: int | None

    @property
    def metric_of_stage(self) -> Metric:
        """The same for ``metrics.json``."""
        how = f"lm_eval, {self.shots} shots, {self.examples} examples"
        return Metric(name=f"{self.task} {self.metric} ({self.filtered})", value=self.value, how=how)


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says.

    Args:
        title: The name of the run.
        repo: Where the bundle is shared.
        front: Metadata of the trained model's own card: base, license, datasets, languages.
        stages: In order.
        variables: Of the recipes.
        plans: By stage.
        data: By stage.
        metrics: By stage.
        versions: By stage.
        evaluations: Results of lm_eval.
        pictures: Their paths, with what they show.
        texts: The recipe files, by path.
        notes: What is missing.
        compared_steps: By stage: how many steps have rows and losses to compare with.
    """

    title: str
    repo: str
    front: Mapping[str, Any]
    stages: Sequence[BundleStage]
    variables: Mapping[str, Variable]
    plans: Mapping[str, StagePlan]
    data: Mapping[str, Sequence[Dataset]]
    metrics: Mapping[str, Sequence[Metric]]
    versions: Mapping[str, Mapping[str, str]]
    evaluations: Sequence[Evaluation]
    pictures: Mapping[str, str]
    texts: Mapping[str, str]
    notes: Sequence[str]
    compared_steps: Mapping[str, int]


def bundle_card(facts: CardFacts) -> str:
    """The card, with the metadata that the Hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    tags = [*TAGS, *([UPSCALED_TAG] if facts.plans else [])]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=one.task,
            dataset_name=one.task,
            metric_type=one.metric,
            metric_value=one.value,
            metric_name=f"{one.metric} ({one.filtered})",
            dataset_args={"num_few_shot": one.shots} if one.shots is not None else None,
        )
        for one in facts.evaluations
    ]
    fields = {key: facts.front[key] for key in sorted(facts.front) if facts.front[key] is not None}
    more: dict[str, Any] = {"model_name": facts.title, "eval_results": results} if results else {}
    front = ModelCardData(**fields, tags=tags, **more).to_yaml()
    return f"---\n{front.strip()}\n---\n{MARK}\n\n" + "\n".join(_body(facts)).strip() + "\n"


def _body(facts: CardFacts) -> Iterator[str]:
    yield f"# {plain(facts.title)}"
    yield ""
    yield _summary(facts)
    for path, meaning in facts.pictures.items():
        yield f"\n![{plain(meaning)}]({path})"
    yield from _results(facts)
    yield from _how_to_repeat(facts)
    yield from _stages(facts)
    yield from _data(facts)
    if facts.versions:
        yield "\n## Versions\n"
        for versions, stages in _grouped(facts.versions):
            which = "" if len(facts.versions) == len(stages) else f" ({', '.join(stages)})"
            yield f"{', '.join(f'{name} {version}' for name, version in versions.items())}{which}\n"
    if facts.notes:
        yield "\n## What is not known\n"
        yield from (f"* {plain(note)}" for note in facts.notes)
    yield "\n## Recipes\n"
    for path, text in facts.texts.items():
        yield details(path, "yaml", text)


def _summary(facts: CardFacts) -> str:
    trained = [stage for stage in facts.stages if stage.kind == "recipe"]
    bases = facts.front.get("base_model") or next((stage.base for stage in trained if stage.base), None)
    base = bases[0] if isinstance(bases, list) and bases else bases
    named = _hub_link(str(base)) if base and "$" not in str(base) else "a local model"
    words = [f"The recipes of a finished run that starts from {named}"]
    if facts.plans:
        first = next(iter(facts.plans.values()))
        words.append(f"upscales it in depth ({code(first.text)})")
    number = len(trained)
    words.append(f"and trains it in {number} stage{'' if number == 1 else 's'}")
    text = ", ".join(words[:-1]) + " " + words[-1]
    return (
        f"{text}. Everything that decides the result is here: recipes, plan, data fingerprints, package versions, "
        "losses. Made with `solar_plugins` and "
        "[Axolotl](https://github.com/axolotl-ai-cloud/axolotl)."
    )


def _results(facts: CardFacts) -> Iterator[str]:
    metrics = [(stage, metric) for stage, found in facts.metrics.items() for metric in found]
    if metrics:
        yield "\n## Results\n"
        yield "| stage | metric | value | step | how it was measured |\n|---|---|---:|---:|---|"
        for stage, metric in metrics:
            step = "" if metric.step is None else metric.step
            yield f"| {stage} | {metric.name} | {metric.value:.5g} | {step} | {plain(metric.how)} |"
    if facts.evaluations:
        yield "\n| task | metric | value | few-shot | examples |\n|---|---|---:|---:|---:|"
        for one in facts.evaluations:
            shots, examples = ("" if value is None else value for value in (one.shots, one.examples))
            yield f"| {plain(one.task)} | {plain(one.metric)} | {one.value:.4f} | {shots} | {examples} |"


def _how_to_repeat(facts: CardFacts) -> Iterator[str]:
    inputs = {name: one for name, one in facts.variables.items() if one.kind == "input"}
    folder = facts.repo.rpartition("/")[2]
    yield "\n## Repeat it\n"
    yield "```bash\npip install 'solar_plugins[axolotl]'"
    yield f"solar recipes fetch {facts.repo} --output {folder}"
    yield f"solar recipes check {folder}"
    options = "".join(f" \\\n    --set {name}={printable(one.example)}" for name, one in inputs.items())
    yield f"solar recipes reproduce {folder} --steps 5{options}\n```\n"
    compared = ", ".join(f"{count} of stage {stage}" for stage, count in facts.compared_steps.items() if count)
    yield (
        "`reproduce` first lists what differs on your machine. Then it trains the first steps with the schedule of the "
        "entire run, and compares the rows of each batch and the loss of each step."
        + (f" Recorded steps: {compared}." if compared else "")
        + " Without `--steps` it repeats the entire run."
    )
    if inputs:
        yield "\n| variable | what it is |\n|---|---|"
        yield from (f"| `{name}` | {plain(one.meaning)} |" for name, one in inputs.items())


def _stages(facts: CardFacts) -> Iterator[str]:
    yield "\n## Stages\n"
    yield "| stage | kind | base | steps | trained on | time |\n|---|---|---|---:|---|---:|"
    for stage in facts.stages:
        base = "" if stage.base is None else code(stage.base)
        base += f" at `{stage.base_commit[:SHORT_HASH]}`" if stage.base_commit else ""
        device = f"{stage.processes} x {stage.device}, {stage.precision}" if stage.device else ""
        steps, time = (stage.steps or ""), ("" if stage.seconds is None else f"{stage.seconds / 60:.1f} min")
        yield f"| {stage.name} | {KINDS[stage.kind]} | {base} | {steps} | {plain(device)} | {time} |"
    for name, plan in facts.plans.items():
        yield f"\nLayer plan of {name}: {code(plan.text)}"


def _data(facts: CardFacts) -> Iterator[str]:
    rows = [(stage, one) for stage, found in facts.data.items() for one in found]
    if not rows:
        return
    yield "\n## Data\n"
    yield "| stage | dataset | rows | kept | dropped | hash of the rows |\n|---|---|---:|---:|---|---|"
    for stage, one in rows:
        local = one.variable is not None or one.sha256 is not None
        name = code(one.name) if local else _hub_link(one.name, "datasets/")
        name += f" at `{one.revision[:SHORT_HASH]}`" if one.revision else ""
        dropped = "; ".join(f"{count} {plain(reason)}" for reason, count in one.dropped.items())
        number, kept = ("" if value is None else value for value in (one.rows, one.rows_kept))
        found = f"`{one.sha256[:SHORT_HASH]}`" if one.sha256 else ""
        yield f"| {stage} {one.key} | {name} | {number} | {kept} | {dropped} | {found} |"


def _grouped(versions: Mapping[str, Mapping[str, str]]) -> list[tuple[Mapping[str, str], list[str]]]:
    groups: list[tuple[Mapping[str, str], list[str]]] = []
    for stage, found in versions.items():
        same = next((stages for other, stages in groups if other == found), None)
        if same is None:
            groups.append((found, [stage]))
        else:
            same.append(stage)
    return groups


def _hub_link(name: str, kind: str = "") -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})" if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else plain(name)
