"""The report on a trained recipe, or on a chain of them: base, upscaled model and what was trained from it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import solar_plugins
from solar_plugins.errors import ArgsError, SolarError
from solar_plugins.evaluation.held_out import (
    HeldOutAnswers,
    HeldOutPairs,
    ask,
    held_out_answers,
    held_out_pairs,
    require_known_tokens,
)
from solar_plugins.evaluation.held_out_texts import checked_prompts, held_out_path, read_texts
from solar_plugins.evaluation.measure import Task, measure_model, token_windows
from solar_plugins.evaluation.models import hardware, load_tokenizer
from solar_plugins.extras import require
from solar_plugins.recipe import Recipe, read_recipe
from solar_plugins.report.content import Conditions, MeasuredSet, Report
from solar_plugins.report.figures import to_json
from solar_plugins.report.page import render_page
from solar_plugins.report.stages import Stage, check_tokenizer, find_stages
from solar_plugins.report.terminal import show_report
from solar_plugins.solar_block import SolarArgs
from solar_plugins.storage.atomic import write_errors_explained, write_file
from solar_plugins.upscaling.base_model import BaseCheckpoint, find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.provenance import recorded_plan
from solar_plugins.upscaling.strategies import plan_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELD_OUT_TOKENS_CPU, HELD_OUT_TOKENS_GPU = 8_192, 65_536
"""How many tokens are predicted. Differences between models on so many are known to about 0.01 and 0.003 nats."""
MAX_NEW_TOKENS = 48


def write_report(
    recipe_path: Path, later: Sequence[Path] = (), *, held_out: Path | None, prompts: Sequence[str], output: Path
) -> Report:
    """Measure what was trained, write the report as HTML with its raw figures as JSON beside it, and print it.

    Whatever is wrong with the arguments is found before the first model is loaded. Paths in the recipe are taken from
    the current directory, as Axolotl does.

    Args:
        recipe_path: A recipe with a ``solar:`` block that has been trained.
        later: The stages after it, in order: of each its Axolotl recipe, or the folder of a merged model.
        held_out: A ``.jsonl`` file of texts; by default the first of the recipe's ``test_datasets``.
        prompts: What the models go on with or, where a later stage names held-out instructions, are asked. By default
            the first of these instructions, else the first words of the first held-out texts.
        output: The HTML file. The figures go to the same name with ``.json``.

    Raises:
        SolarError: A recipe, the texts, a model or the output cannot be used.
    """
    require("solar report")
    _check_output(output)
    recipe = read_recipe(recipe_path)
    solar, base = _required_block(recipe), _required_base(recipe)
    base, plan = base.with_donors(plan_of(solar.init, base.num_layers), solar.init)
    stages = find_stages(recipe, plan, later)
    text_path, sequence_tokens = held_out_path(recipe, held_out), recipe.sequence_tokens
    texts = read_texts(text_path)
    asked = checked_prompts(prompts, texts)
    tokenizer = load_tokenizer(base.fetched, trust_remote_code=recipe.trusts_code)
    read = partial(token_windows, texts=texts, sequence_tokens=sequence_tokens, num_tokens=_held_out_tokens())
    if not (windows := read(tokenizer)):
        raise ArgsError(f"{text_path}: the texts have no two tokens to predict one from the other; give longer ones")
    answers, pairs = _chat_sets(stages, tokenizer, read) if later else (None, None)
    task = Task(
        windows,
        asked,
        tokenizer,
        MAX_NEW_TOKENS,
        pairs=pairs.pairs if pairs else (),
        trust_remote_code=recipe.trusts_code,
    )
    if answers:
        questions = ask(asked) if prompts else answers.questions
        asked = tuple(question.shown for question in questions)
        rendered = tuple(question.prompt for question in questions)
        task = replace(task, prompts=rendered, tokenizer=answers.tokenizer, answers=answers.answers)
    upscaled = ensure_checkpoint(base, plan, solar.cache_dir)
    directories = {"base": base.fetched, "upscaled": upscaled} | {stage.name: stage.directory for stage in stages}
    report = Report(
        base_name=base.public_name,
        plan=plan,
        models=tuple(measure_model(name, path, task) for name, path in directories.items()),
        stages=stages,
        prompts=asked,
        conditions=replace(
            _conditions(text_path, len(texts), sequence_tokens),
            answers=MeasuredSet(answers.stage, answers.sets, len(answers.answers)) if answers else None,
            pairs=MeasuredSet(pairs.stage, pairs.sets, len(pairs.pairs)) if pairs else None,
        ),
        html=output,
    )
    _write(report.json, json.dumps(to_json(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    _write(report.html, render_page(report))
    show_report(report)
    return report


def _chat_sets(
    stages: Sequence[Stage],
    reference: PreTrainedTokenizerBase,
    read: Callable[[PreTrainedTokenizerBase], list[list[int]]],
) -> tuple[HeldOutAnswers | None, HeldOutPairs | None]:
    """What later stages name of held-out answers and pairs, in tokens that every model knows."""
    trusted = stages[0].recipe is not None and stages[0].recipe.trusts_code
    tokenizers = {stage.name: load_tokenizer(stage.directory, trust_remote_code=trusted) for stage in stages}
    for stage in stages:
        check_tokenizer(stage, reference, tokenizers[stage.name], read)
    answers, pairs = held_out_answers(stages, tokenizers), held_out_pairs(stages, tokenizers)
    if answers:
        require_known_tokens(answers.stage, answers.answers, reference)
    if pairs:
        both = [answer.tokens for pair in pairs.pairs for answer in (pair.chosen, pair.rejected)]
        require_known_tokens(pairs.stage, both, reference)
    return answers, pairs


def _held_out_tokens() -> int:
    return HELD_OUT_TOKENS_CPU if hardware().device == "cpu" else HELD_OUT_TOKENS_GPU


def _check_output(output: Path) -> None:
    if output.suffix != ".html":
        raise ArgsError(f"output: {output} does not end in .html; the report is a page, such as report.html")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgsError(f"output: {output.parent} cannot be made ({error.strerror}); give another folder") from None
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise ArgsError(
            f"output: {output} cannot be written; give the name of a file in a folder that you may write to"
        )


def _required_block(recipe: Recipe) -> SolarArgs:
    if recipe.solar is None or not recipe.upscales:
        raise ArgsError(
            f"{recipe.path}: has no solar: block with init, so there is no base to compare with; give the recipe that "
            "upscales, and later stages after it"
        )
    return recipe.solar


def _required_base(recipe: Recipe) -> BaseCheckpoint:
    name = recipe.base.name
    base = find_base(*recipe.base, trust_remote_code=recipe.trusts_code, trusted_keys=recipe.trusted_keys)
    if (plan := recorded_plan(base.config)) is not None:
        raise ArgsError(
            f"base_model: {name} was upscaled already ({plan}); the report compares with the base before that: name it"
        )
    return base


def _conditions(text_path: Path, num_texts: int, sequence_tokens: int) -> Conditions:
    return Conditions(
        held_out=str(text_path),
        num_texts=num_texts,
        sequence_tokens=sequence_tokens,
        max_new_tokens=MAX_NEW_TOKENS,
        hardware=hardware(),
        versions=_versions(),
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _versions() -> dict[str, str]:
    versions = {"solar_plugins": solar_plugins.__version__}
    for package in ("axolotl", "transformers", "torch"):
        with suppress(PackageNotFoundError):  # Measuring needs no Axolotl.
            versions[package] = version(package)
    return versions | {"python": platform.python_version()}


def _write(path: Path, text: str) -> None:
    with write_errors_explained(path, "report", "give another output", SolarError):
        # A file name need not be UTF-8; its odd bytes must not cost the report.
        write_file(path, text.encode(errors="backslashreplace"))
