"""`solar report`: measures the base, the upscaled model and every trained stage, and writes the report."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from solar_plugins.data.row_encoder import EncodedAnswer, EncodedPair
from solar_plugins.errors import ArgsError, SolarError
from solar_plugins.evaluation import held_out as held_out_data
from solar_plugins.evaluation.measure import Task, measure_model, token_windows
from solar_plugins.evaluation.models import hardware, load_tokenizer
from solar_plugins.extras import require
from solar_plugins.pipeline import is_pipeline, read_pipeline, report_stages
from solar_plugins.recipe import Recipe, read_recipe
from solar_plugins.report.content import Conditions, MeasuredSet, Report, to_json
from solar_plugins.report.page import render_page, show_report
from solar_plugins.report.stages import Stage, check_tokenizer, find_stages
from solar_plugins.storage.atomic import write_errors_explained, write_file
from solar_plugins.upscaling.base_model import BaseCheckpoint, find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.provenance import recorded_plan
from solar_plugins.upscaling.strategies import plan_of
from solar_plugins.versions import package_versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from solar_plugins.report.stages import Windows

HELD_OUT_TOKENS = {"cpu": 8_192, "cuda": 65_536}
"""How many tokens are predicted: the standard error of a difference is about 0.01 and 0.003 nats per token."""
MAX_NEW_TOKENS = 48
VERSIONS = ("solar_plugins", "axolotl", "transformers", "torch", "Python")


def write_report(
    recipe_path: Path, later: Sequence[Path] = (), *, held_out: Path | None, prompts: Sequence[str], output: Path
) -> Report:
    """Measure trained models, write the report as HTML and its raw metrics as JSON next to it, and print it.

    All arguments are checked before the first model is loaded. Paths in the recipe are relative to the current
    directory, as in Axolotl.

    Args:
        recipe_path: A recipe with a ``solar:`` block that has been trained, or a pipeline file that names all stages.
        later: The stages after the recipe, in order: for each its Axolotl recipe, or the folder of a merged model.
        held_out: A ``.jsonl`` file of texts; by default the first of the recipe's ``test_datasets``.
        prompts: What the models continue or, if a later stage names held-out instructions, answer. By default the
            first of these instructions, else the first words of the first held-out texts.
        output: The HTML file.

    Raises:
        SolarError: A recipe, the texts, a model or the output cannot be used.
    """
    require("solar report")
    _check_output(output)
    if is_pipeline(recipe_path):
        if later:
            raise ArgsError(
                f"{recipe_path} is a pipeline, which names its stages, but {later[0]} is given too; omit it"
            )
        recipe_path, *later = report_stages(read_pipeline(recipe_path))
    recipe = read_recipe(recipe_path)
    base, plan = _base_and_plan(recipe)
    stages = find_stages(recipe, plan, later, lambda other: _base_and_plan(other)[1])
    text_path, sequence_tokens = held_out_data.held_out_path(recipe, held_out), recipe.sequence_tokens
    texts = held_out_data.read_texts(text_path)
    asked = held_out_data.checked_prompts(prompts, texts)
    tokenizer = load_tokenizer(base.fetched, trust_remote_code=recipe.trusts_code)
    num_tokens = HELD_OUT_TOKENS["cpu" if hardware().device == "cpu" else "cuda"]
    read = partial(token_windows, texts=texts, sequence_tokens=sequence_tokens, num_tokens=num_tokens)
    if not (windows := read(tokenizer)):
        raise ArgsError(f"{text_path}: no text has two tokens, of which one could be predicted; give longer texts")
    tokenizers, answers, pairs = _chat_rows(stages, tokenizer, read) if later else ({}, None, None)
    to_continue = asked
    if answers:
        questions = held_out_data.ask(asked) if prompts else held_out_data.first_questions(answers.examples)
        asked = tuple(question.shown for question in questions)
        to_continue = tuple(question.prompt for question in questions) or asked
    task = Task(
        windows,
        to_continue,
        tokenizers[answers.stage] if answers else tokenizer,
        MAX_NEW_TOKENS,
        answers=[answer.tokens for answer in answers.examples] if answers else (),
        pairs=pairs.examples if pairs else (),
        trust_remote_code=recipe.trusts_code,
    )
    directories = {"base": base.fetched, "upscaled": _upscaled(recipe)}
    for stage in stages:
        if stage.untrained and stage.recipe:
            directories[stage.untrained] = _upscaled(stage.recipe)
        directories[stage.name] = stage.directory
    found = package_versions()
    report = Report(
        base_name=base.public_name,
        plan=plan,
        models=tuple(measure_model(name, path, task) for name, path in directories.items()),
        stages=stages,
        prompts=asked,
        conditions=Conditions(
            held_out=str(text_path),
            num_texts=len(texts),
            sequence_tokens=sequence_tokens,
            max_new_tokens=MAX_NEW_TOKENS,
            hardware=hardware(),
            versions={name.lower(): found[name] for name in VERSIONS if name in found},
            date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            answers=MeasuredSet(answers.stage, answers.sets, len(answers.examples)) if answers else None,
            pairs=MeasuredSet(pairs.stage, pairs.sets, len(pairs.examples)) if pairs else None,
        ),
        html=output,
    )
    metrics = json.dumps(to_json(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for path, text in ((report.json, metrics), (report.html, render_page(report))):
        with write_errors_explained(path, "report", "give another output", SolarError):
            # A file name may hold bytes that are not UTF-8; they must not cost the report.
            write_file(path, text.encode(errors="backslashreplace"))
    show_report(report)
    return report


def _check_output(output: Path) -> None:
    if output.suffix != ".html":
        raise ArgsError(f"output: {output} does not end in .html; the report is a page, such as report.html")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgsError(f"output: {output.parent} cannot be created ({error.strerror}); give another folder") from None
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise ArgsError(f"output: {output} cannot be written; give a file in a folder that you may write to")


def _upscaled(recipe: Recipe) -> Path:
    """The upscaled checkpoint of a recipe; it is written if it is not in the cache."""
    assert recipe.solar is not None
    return ensure_checkpoint(*_base_and_plan(recipe), recipe.solar.cache_dir)


def _base_and_plan(recipe: Recipe) -> tuple[BaseCheckpoint, LayerPlan]:
    """The base that a recipe upscales, with the donors of its plan, and the plan."""
    if recipe.solar is None or not recipe.upscales:
        raise ArgsError(
            f"{recipe.path}: has no solar: block with init, so there is no base to compare with; give the recipe that "
            "upscales, and later stages after it"
        )
    base = find_base(*recipe.base, trust_remote_code=recipe.trusts_code, trusted_keys=recipe.trusted_keys)
    if (plan := recorded_plan(base.config)) is not None:
        raise ArgsError(
            f"base_model: {base.name} was upscaled already ({plan}); the report compares with the base before that: "
            "name that base"
        )
    init = recipe.solar.init
    return base.with_donors(plan_of(init, base.num_layers), init)


def _chat_rows(
    stages: Sequence[Stage], base: PreTrainedTokenizerBase, read: Windows
) -> tuple[
    held_out_data.Tokenizers,
    held_out_data.HeldOutRows[EncodedAnswer] | None,
    held_out_data.HeldOutRows[EncodedPair] | None,
]:
    """The stages' tokenizers, and the held-out responses and pairs that stages name, in tokens that the base has."""
    trusted = stages[0].recipe is not None and stages[0].recipe.trusts_code
    tokenizers = {stage.name: load_tokenizer(stage.directory, trust_remote_code=trusted) for stage in stages}
    for stage in stages:
        check_tokenizer(stage, base, tokenizers[stage.name], read)
    answers = held_out_data.held_out_answers(stages, tokenizers)
    pairs = held_out_data.held_out_pairs(stages, tokenizers)
    if answers:
        held_out_data.require_known_tokens(answers.stage, [answer.tokens for answer in answers.examples], base)
    if pairs:
        both = [answer.tokens for pair in pairs.examples for answer in (pair.chosen, pair.rejected)]
        held_out_data.require_known_tokens(pairs.stage, both, base)
    return tokenizers, answers, pairs
