"""Tiny models, a tokenizer and a report to draw, made here: no network, no files from elsewhere."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from trained_models import *  # noqa: F403  fixtures

from solar_plugins.evaluation.loss import Loss
from solar_plugins.evaluation.measure import MeasuredModel, PairLogProbs
from solar_plugins.evaluation.models import Hardware
from solar_plugins.recipe import parse_recipe
from solar_plugins.report.content import Conditions, MeasuredSet, Report
from solar_plugins.report.stages import Stage
from solar_plugins.report.training_log import LogPoint, Series, TrainingLog
from solar_plugins.upscaling.layer_plan import LayerPlan


@pytest.fixture
def report():
    """A synthetic report. Its texts try to break out of HTML and of the terminal."""
    prompts = ("The <b>wall</b> & the", "[red]1, 2,[/red]")

    def model(name, num_layers, nats, continuations):
        loss = Loss(tuple(100 * (nats + wobble) for wobble in (-0.1, 0.0, 0.1)), (100, 100, 100))
        return MeasuredModel(name, num_layers, num_layers * 1_000_000, loss, continuations, 2.5)

    return Report(
        base_name="lab/tiny-<base>",
        plan=LayerPlan.from_sources(12, [*range(8), *range(4, 12)]),
        models=(
            model("base", 12, 2.5, ("<script>alert(1)</script>", "4, 8")),
            model("upscaled", 16, 3.25, ("\x1b[31mthe the", "")),
            model("trained", 16, 2.625, ("garden & gate", "4,\n8, [bold]16")),
        ),
        stages=(
            Stage(
                name="trained",
                directory=Path("runs/tiny"),
                recipe=parse_recipe(
                    {"base_model": "lab/tiny"}, Path("recipes/tiny.yml"), "base_model: lab/tiny  # <i>not a tag</i>\n"
                ),
                log=TrainingLog(
                    loss=Series(
                        train=tuple(LogPoint(step, 2.6 + math.exp(-step / 10)) for step in range(1, 41)),
                        held_out=(LogPoint(0, 3.5), LogPoint(40, 2.7)),
                    ),
                    last_step=40,
                    planned_steps=40,
                    num_not_finite=0,
                ),
            ),
        ),
        prompts=prompts,
        conditions=Conditions(
            held_out="data/held_out.jsonl",
            num_texts=1234,
            sequence_tokens=101,
            max_new_tokens=48,
            hardware=Hardware("cpu", "float32"),
            versions={"solar_plugins": "0.1.0"},
            date="2026-01-02 03:04 UTC",
        ),
        html=Path("out/report.html"),
    )


@pytest.fixture
def chain_report(report):
    """A synthetic report on a chain of stages."""

    def model(name, text, answers, preferred):
        losses = [
            Loss(tuple(100 * (nats + wobble) for wobble in (-0.1, 0, 0.1)), (100,) * 3) for nats in (text, answers)
        ]
        pairs = PairLogProbs((-9.0,) * 6, (-10.0,) * preferred + (-8.0,) * (6 - preferred))
        said = (f"{name} says & <i>so</i>", "")
        return MeasuredModel(name, 12 if name == "base" else 16, 16_000_000, losses[0], said, 2.0, losses[1], pairs)

    def stage(name, recipe, losses, rewards=()):
        log = TrainingLog(
            loss=Series(tuple(LogPoint(step, loss) for step, loss in enumerate(losses, 1)), (LogPoint(4, losses[-1]),)),
            last_step=4,
            planned_steps=4,
            num_not_finite=0,
            margins=Series(tuple(LogPoint(step, reward) for step, reward in enumerate(rewards, 1)), ()),
            accuracies=Series(tuple(LogPoint(step, float(reward > 0)) for step, reward in enumerate(rewards, 1)), ()),
        )
        path = Path(f"recipes/solar_{name}.yml")
        return Stage(name, Path(f"runs/{name}"), parse_recipe(recipe, path, f"# {name} <i>recipe</i>\n"), log)

    answers = MeasuredSet("sft", ("test_datasets[0] (a.jsonl) as alpaca: 5 rows read, 3 kept, 2 dropped",), 3)
    pairs = MeasuredSet("dpo", ("test_datasets[0] (p.jsonl) as orca_dpo_pairs: 6 rows read, 6 kept, 0 dropped",), 6)
    return replace(
        report,
        models=(
            model("base", 2.5, 3.0, 3),
            model("upscaled", 3.25, 3.5, 3),
            model("dus", 2.625, 2.75, 3),
            model("sft", 2.65, 2.0, 3),
            model("dpo", 2.66, 2.0, 6),
            model("average", 2.655, 2.0, 4),
        ),
        stages=(
            stage("dus", {}, (3.25, 3.0, 2.75, 2.625)),
            stage("sft", {"datasets": [{"type": "solar_plugins.alpaca"}]}, (2.75, 2.5, 2.25, 2.0)),
            replace(
                stage("dpo", {"rl": "dpo"}, (math.log(2), 0.6875, 0.7, 0.65), (0.0, 0.0125, -0.0125, 0.0375)),
                began_with="sft",
            ),
            Stage("average", Path("runs/average")),
        ),
        conditions=replace(report.conditions, answers=answers, pairs=pairs),
    )


@pytest.fixture
def plain_report(chain_report):
    """The chain without held-out responses, pairs and logs."""
    return replace(
        chain_report,
        models=tuple(replace(model, answers=None, pairs=None) for model in chain_report.models),
        conditions=replace(chain_report.conditions, answers=None, pairs=None),
        stages=tuple(replace(stage, log=None) for stage in chain_report.stages),
    )


@pytest.fixture
def broken_report(chain_report):
    """The chain with a last model whose results on responses and pairs are not finite."""
    *others, last = chain_report.models
    answers, pairs = Loss((math.nan,) * 3, (100,) * 3), PairLogProbs((math.nan,) * 6, (-1.0,) * 6)
    return replace(chain_report, models=(*others, replace(last, answers=answers, pairs=pairs)))


@pytest.fixture
def with_stage():
    """Changes one stage of a report."""

    def changed(report, place, **changes):
        stages = list(report.stages)
        stages[place] = replace(stages[place], **changes)
        return replace(report, stages=tuple(stages))

    return changed
