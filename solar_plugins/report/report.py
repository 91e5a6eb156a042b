"""The report on a trained recipe: the base, the up-scaled model before training and after it, side by side."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import solar_plugins
from solar_plugins.args import SolarArgs, parse_solar_block
from solar_plugins.errors import ArgsError, SolarError
from solar_plugins.recipes import base_of, read_recipe
from solar_plugins.report import inputs
from solar_plugins.report.content import Conditions, Report, to_json
from solar_plugins.report.loss_curve import read_loss_curve
from solar_plugins.report.measure import hardware, load_tokenizer, measure_model, token_windows
from solar_plugins.report.page import render_page, require_jinja
from solar_plugins.report.picture import require_matplotlib
from solar_plugins.report.terminal import show_report
from solar_plugins.upscaling.base_model import BaseCheckpoint, find_base, grown_plan
from solar_plugins.upscaling.checkpoint import ensure_checkpoint

HELD_OUT_TOKENS_CPU, HELD_OUT_TOKENS_GPU = 8_192, 65_536
"""How many tokens are predicted. Differences between models on so many are known to about 0.01 and 0.003 nats."""
MAX_NEW_TOKENS = 48


def write_report(recipe_path: Path, *, held_out: Path | None, prompts: Sequence[str], output: Path) -> Report:
    """Measure a trained recipe, write the report as HTML with its raw figures as JSON beside it, and print it.

    Whatever is wrong with the arguments is found before the first model is loaded. Paths in the recipe are taken from
    the current directory, as Axolotl does.

    Args:
        recipe_path: A recipe with a ``solar:`` block that has been trained.
        held_out: A ``.jsonl`` file of texts; by default the first of the recipe's ``test_datasets``.
        prompts: What the models go on with; by default the first words of the first held-out texts.
        output: The HTML file. The figures go to the same name with ``.json``.

    Raises:
        SolarError: The recipe, the texts, a model or the output cannot be used.
    """
    require_matplotlib()
    require_jinja()
    _check_output(output)
    recipe = read_recipe(recipe_path)
    solar, base = _required_block(recipe, recipe_path), _required_base(recipe)
    plan, output_dir = solar.init.plan_for(base.num_layers), inputs.output_directory(recipe)
    trained = inputs.trained_directory(output_dir, recipe_path, plan)
    curve = read_loss_curve(output_dir)
    text_path, sequence_tokens = inputs.held_out_path(recipe, held_out), inputs.sequence_tokens(recipe)
    texts = inputs.read_texts(text_path)
    asked = inputs.checked_prompts(prompts, texts)
    tokenizer = load_tokenizer(base.fetched)
    windows = token_windows(tokenizer, texts, sequence_tokens, _held_out_tokens())
    if not windows:
        raise ArgsError(f"{text_path}: the texts have no two tokens to predict one from the other; give longer ones")
    upscaled = ensure_checkpoint(base, plan, solar.cache_dir)
    directories = {"base": base.fetched, "up-scaled": upscaled, "trained": trained}
    models = [
        measure_model(name, path, tokenizer, windows, asked, MAX_NEW_TOKENS) for name, path in directories.items()
    ]
    report = Report(
        base_name=base.public_name,
        plan=plan,
        base=models[0],
        upscaled=models[1],
        trained=models[2],
        prompts=asked,
        curve=curve,
        conditions=_conditions(text_path, len(texts), sequence_tokens),
        recipe_path=recipe_path,
        recipe_text=recipe_path.read_text(encoding="utf-8"),
        html=output,
    )
    _write(report.json, json.dumps(to_json(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    _write(report.html, render_page(report))
    show_report(report)
    return report


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


def _required_block(recipe: Mapping[str, Any], recipe_path: Path) -> SolarArgs:
    solar = parse_solar_block(recipe)
    if solar is None:
        raise ArgsError(
            f"{recipe_path}: has no solar: block, so there is no base to compare with; give the recipe that up-scales"
        )
    return solar


def _required_base(recipe: Mapping[str, Any]) -> BaseCheckpoint:
    name, revision = base_of(recipe)
    base = find_base(name, revision)
    if (plan := grown_plan(base.config)) is not None:
        raise ArgsError(
            f"base_model: {name} was up-scaled already ({plan}); the report compares with the base before that: name it"
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
        versions[package] = version(package)
    return versions | {"python": platform.python_version()}


def _write(path: Path, text: str) -> None:
    """Write beside the final name and rename: a report is there whole, or the one before it still is."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise SolarError(
            f"{path}: the report cannot be written ({error.strerror}); make room, or give another output"
        ) from None
