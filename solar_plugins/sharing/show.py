"""`solar recipes show`: what a recipe does, needs and costs, in half a screen, from its keys. No comment is read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from pydantic import ValidationError

from solar_plugins.data.mixture_args import MixtureArgs
from solar_plugins.errors import ArgsError, CheckpointError, SolarError
from solar_plugins.maths.recipe import MathsArgs, invalid_maths
from solar_plugins.memory.memory_report import MemoryReport, memory_of_recipe
from solar_plugins.memory.training_setup import SHARDING_NAMES
from solar_plugins.pipeline import read_pipeline
from solar_plugins.recipe import PAIR_METHODS, Recipe, parse_recipe
from solar_plugins.sharing.findings import Finding
from solar_plugins.sharing.foreign_code import foreign_code
from solar_plugins.sharing.gpus import Gpus, parse_gpus
from solar_plugins.sharing.references import references
from solar_plugins.sharing.sources import Source, datasets_of, layer_range, read_sources, stages_of
from solar_plugins.solar_block import invalid
from solar_plugins.text import format_bytes, printable, span
from solar_plugins.upscaling.strategies import strategy_arguments

WIDTH, MAX_LINES, LABEL = 100, 24, 11
MAX_COUNTED_BYTES = 500_000_000
"""Larger files of rows are not counted."""
GPU_COUNTS = (1, 8)
"""The numbers of GPUs that a recipe is estimated for, unless some are named."""

type Facts = Iterator[tuple[str, str]]
"""A label, and what is said of it; empty facts are left out."""


def show(path: Path, *, gpus: Sequence[str] = (), base: str | None = None) -> str:
    """What a file does, or each file of a folder.

    Args:
        path: A recipe, merge, mixture, pipeline, bundle or folder.
        gpus: GPUs to estimate the memory for, such as ``8xH100``. Default: one, and eight where memory is sharded.
        base: A config.json, folder or hub id in place of the base at the start of the chain.

    Raises:
        SolarError: The file cannot be read.
    """
    unread = list[Finding]()
    sources = read_sources(path, unread)
    for one in unread:
        raise ArgsError(f"{path}: {one.file}: {one.text}")
    parsed = tuple(map(parse_gpus, gpus))
    first = next((source for source in sources if source.kind == "pipeline"), sources[0])
    if len(sources) == 1 or first.kind == "pipeline":
        return "\n".join(_half_a_screen(first, sources, parsed, base))
    lines = [f"{path}: {len(sources)} files"]
    lines += [_cut(f"  {source.name:<40} {_title(source)}") for source in sources[: MAX_LINES - 2]]
    more = len(sources) - MAX_LINES + 2
    return "\n".join([*lines, f"  and {more} more"] if more > 0 else lines)


def _half_a_screen(source: Source, sources: Sequence[Source], gpus: Sequence[Gpus], base: str | None) -> list[str]:
    if source.kind == "pipeline":
        return _pipeline_lines(source, sources)
    all_facts = {"recipe": _recipe, "merge": _merge, "mixture": _mixture, "evaluation": _evaluation, "maths": _maths}
    facts = all_facts[source.kind]
    try:
        found = [(label, text) for label, text in facts(source, gpus, base) if text]
    except ValidationError as error:
        if source.kind == "maths":
            raise ArgsError(invalid_maths(error, f"{source.path}: ")) from None
        raise ArgsError(invalid(error, f"{source.path}: ", MixtureArgs.model_fields)) from None
    found.append(("code", _code([source])))
    lines = [_cut(f"{source.name}: {_title(source)}")]
    for label, text in found:
        rows = wrap(printable(text), WIDTH - LABEL - 1, max_lines=2, placeholder=" ...") or [""]
        lines += [f"{name:<{LABEL}} {row}" for name, row in zip((label, ""), rows, strict=False)]
    return lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES - 1], f"{'':<{LABEL}} ..."]


def _title(source: Source) -> str:
    content = source.content
    if source.kind == "pipeline":
        return f"a pipeline of {len(content['stages'])} stages"
    if source.kind == "merge":
        return f"a merge by mergekit, {content['merge_method']!s:.40}"
    if source.kind == "mixture":
        sets = content["sets"]
        return f"a mixture of {len(sets) if isinstance(sets, Mapping) else 0} datasets"
    if source.kind == "maths":
        return "mathematics data from a served model"
    stages = stages_of(content) or ()
    if source.kind == "evaluation" or "evaluation" in stages:
        return "an evaluation by lm_eval"
    (training,) = (stage for stage in stages if stage not in ("upscale", "LoRA", "QLoRA"))
    known = {"pretrain": "continued pretraining", "SFT": "SFT"}
    adapter = "".join(f" with {stage}" for stage in stages if stage in ("LoRA", "QLoRA"))
    upscales = "upscales its base, then " if "upscale" in stages else ""
    return f"{upscales}{known.get(training, f'preference training ({training})')}{adapter}"


# --- recipes


def _recipe(source: Source, gpus: Sequence[Gpus], base: str | None) -> Facts:
    recipe = parse_recipe(source.content, source.path, source.text)
    content = {**source.content, **recipe.filled_in}
    report = _estimate(source, recipe, 1, base)
    yield "base", _base(recipe, report)
    yield from _plan(recipe, report)
    yield "trains", _trains(recipe)
    yield from _data(source)
    yield "tokens", _tokens(recipe, content)
    yield "length", _length(recipe, content)
    yield "optimizer", _optimizer(recipe, content)
    yield "precision", _precision(recipe)
    yield "memory", _memory(source, recipe, report, gpus, base)
    yield "disk", _disk(recipe, content, report)
    yield "seed", str(content["seed"]) if content.get("seed") is not None else "none: every run differs"
    yield "writes", recipe.output_dir


def _estimate(source: Source, recipe: Recipe, number: int, base: str | None) -> MemoryReport | str:
    """The memory on a number of GPUs, or why it is not known."""
    if "${" in str(recipe.base_model) and base is None:
        return "the base is a variable of the bundle; give --base"
    try:
        return memory_of_recipe(source.path, base, number, None, source.overrides)
    except CheckpointError as error:
        if "no recipe in" in str(error) or "cannot be downloaded" in str(error):
            return "the base's config.json is not here; give --base CONFIG_JSON, or be online"
        return " ".join(str(error).split())
    except (SolarError, OSError) as error:
        return " ".join(str(error).split())


def _base(recipe: Recipe, report: MemoryReport | str) -> str:
    name, revision = recipe.base
    at = f" at {revision[:12]}" if revision else ""
    if isinstance(report, str):
        return f"{name}{at}"
    before = report.found.stages[:-1]
    origin = f", from {' -> '.join(before)}" if before[0] != name and len(before) > 1 else ""
    model = report.found.model
    layers = report.found.plan.base_layers if recipe.upscales and report.found.plan else model.num_layers
    size = "" if recipe.upscales else f", {_count(model.parameters)} parameters"
    return f"{name}{at}: {layers} layers{size}{origin}"


def _plan(recipe: Recipe, report: MemoryReport | str) -> Facts:
    if recipe.solar is None or not recipe.upscales:
        return
    init = recipe.solar.init
    try:
        arguments = ", ".join(f"{key}: {value}" for key, value in strategy_arguments(init).items())
    except (SolarError, ValueError):
        arguments = ""
    yield "strategy", f"{init.strategy}{f' ({arguments})' if arguments else ''}"
    if isinstance(report, MemoryReport) and report.found.plan:
        yield "plan", f"{report.found.plan}, {_count(report.found.model.parameters)} parameters"


def _trains(recipe: Recipe) -> str:
    if recipe.adapter:
        targets = recipe.lora_target_modules
        named = ", ".join(targets) if isinstance(targets, list) else targets
        where = "all linear layers" if recipe.lora_target_linear else named or "the default modules"
        bits = " on 4-bit weights" if recipe.load_in_4bit else " on 8-bit weights" if recipe.load_in_8bit else ""
        return f"an adapter of rank {recipe.lora_r} in {where}{bits}"
    if recipe.solar is not None and recipe.solar.train is not None:
        train = recipe.solar.train
        more = [name for name in ("embeddings", "norms", "lm_head") if getattr(train, name)]
        around = f" ({train.around} on each side)" if train.around else ""
        old = f"; old parameters at {train.lr_scale['old']:g} of the rate" if train.lr_scale else ""
        return f"layers: {train.layers}{around}{''.join(f', {name}' for name in more)}{old}"
    if recipe.unfrozen_parameters:
        return f"only {', '.join(recipe.unfrozen_parameters)}"
    return "all parameters"


def _data(source: Source) -> Facts:
    places = list(datasets_of(source.content))
    for key, label in (("datasets", "data"), ("pretraining_dataset", "data"), ("test_datasets", "held out")):
        listed = [place for place in places if place.key.startswith(f"{key}[")]
        for number, place in enumerate(listed[:3]):
            yield ("" if number else label), _dataset(place.entry)
        if listed[3:]:
            yield "", f"and {len(listed) - 3} more"


def _dataset(entry: Mapping[str, Any]) -> str:
    kind = entry.get("type")
    parts = [str(entry[key]) for key in ("name", "split") if entry.get(key)]
    parts += ["a format of its own"] if isinstance(kind, Mapping) else [f"type {kind}"] if kind else []
    parts += [f"revision {str(entry['revision'])[:12]}"] if entry.get("revision") else []
    size = _size(str(entry.get("path")))
    return f"{entry.get('path')}{f' ({", ".join(parts)})' if parts else ''}{f': {size}' if size else ''}"


def _size(name: str) -> str:
    path = Path(os.path.expanduser(name))
    try:
        size = format_bytes(path.stat().st_size) if path.is_file() else ""
    except (OSError, ValueError):
        return ""
    rows = _rows(name)
    return size if rows is None else f"{rows:,} rows, {size}"


def _rows(name: str) -> int | None:
    """The rows of a JSON Lines file that is here and not too large; None for all else."""
    path = Path(os.path.expanduser(name))
    try:
        if path.suffix != ".jsonl" or not path.is_file() or path.stat().st_size > MAX_COUNTED_BYTES:
            return None
        with path.open("rb") as file:
            return sum(bool(line.strip()) for line in file)
    except (OSError, ValueError):
        return None


def _number(value: Any) -> float | None:
    """A finite number, also one that YAML reads as text, such as 1e-5."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _per_step(recipe: Recipe, content: Mapping[str, Any]) -> int:
    """Sequences of each GPU in an optimizer step."""
    return (recipe.micro_batch_size or 1) * int(_number(content.get("gradient_accumulation_steps")) or 1)


def _tokens(recipe: Recipe, content: Mapping[str, Any]) -> str:
    sequences = _per_step(recipe, content)
    unit = "pairs" if recipe.rl in PAIR_METHODS and recipe.rl != "kto" else "sequences"
    packed = "packed" if recipe.sample_packing else "at most"
    tokens = sequences * recipe.sequence_len * (2 if unit == "pairs" else 1)
    return f"per step and GPU {sequences} {unit} x {recipe.sequence_len:,} {packed} = {tokens:,}"


def _length(recipe: Recipe, content: Mapping[str, Any]) -> str:
    steps = _number(content.get("max_steps"))
    if steps and steps > 0:
        tokens = steps * _per_step(recipe, content) * recipe.sequence_len
        return f"{steps:,.0f} steps: {_count(tokens)} tokens per GPU"
    epochs = _number(content.get("num_epochs")) or 1.0
    counts = [_rows(str(entry.get("path"))) for _, entry in recipe.entries("datasets")]
    if not counts or None in counts:
        return f"{epochs:g} epochs; the number of rows is not known here"
    rows = sum(filter(None, counts))
    if recipe.sample_packing:
        return f"{epochs:g} epochs over {rows:,} rows, packed"
    most = math.ceil(rows * epochs / _per_step(recipe, content))
    return f"{epochs:g} epochs over {rows:,} rows: {most:,} steps on one GPU, before rows are dropped"


def _optimizer(recipe: Recipe, content: Mapping[str, Any]) -> str:
    rate = _number(content.get("learning_rate"))
    parts = [str(recipe.optimizer), f"learning rate {rate:g}" if rate is not None else ""]
    parts.append(str(recipe.lr_scheduler))
    for key, text in (("warmup_steps", "{} warmup steps"), ("warmup_ratio", "warmup ratio {}")):
        if content.get(key):
            parts.append(text.format(content[key]))
    if content.get("weight_decay"):
        parts.append(f"weight decay {content['weight_decay']}")
    if beta := content.get("rl_beta") or content.get("dpo_beta"):
        parts.append(f"beta {beta}")
    return ", ".join(filter(None, parts))


def _precision(recipe: Recipe) -> str:
    parts = [str(recipe.weight_precision)]
    if recipe.fsdp_config:
        parts.append("FSDP2")
    if recipe.deepspeed:
        parts.append(f"DeepSpeed ({recipe.deepspeed})" if isinstance(recipe.deepspeed, str) else "DeepSpeed")
    if recipe.gradient_checkpointing:
        parts.append("gradient checkpointing")
    if recipe.attn_implementation:
        parts.append(recipe.attn_implementation)
    return ", ".join(parts)


def _memory(source: Source, recipe: Recipe, one: MemoryReport | str, gpus: Sequence[Gpus], base: str | None) -> str:
    if isinstance(one, str):
        return f"unknown: {one}"
    sharded = one.setup.sharding != "none"
    counts = [(gpu.number, gpu.text) for gpu in gpus] or [(n, "") for n in (GPU_COUNTS if sharded else GPU_COUNTS[:1])]
    texts = []
    for number, name in counts:
        found = one if number == 1 else _estimate(source, recipe, number, base)
        if isinstance(found, MemoryReport):
            where = "one GPU" if number == 1 else f"each of {number} GPUs"
            texts.append(f"{format_bytes(found.peak_bytes)} of {where}{f' ({name})' if name else ''}")
    how = SHARDING_NAMES[one.setup.sharding] if sharded else "nothing sharded"
    return f"{'; '.join(texts)} (estimated, {how})"


def _disk(recipe: Recipe, content: Mapping[str, Any], report: MemoryReport | str) -> str:
    """Bytes that the run writes: the upscaled base, the model, and each checkpoint with its optimizer."""
    if isinstance(report, str):
        return ""
    width = 4 if recipe.weight_precision == "fp32" else 2
    weights = report.found.model.parameters * width
    state = {part.name: part.num_bytes for part in report.parts}
    optimizer = state.get("optimizer states", 0) + state.get("master weights", 0)
    parts = [f"{format_bytes(weights)} upscaled base"] if recipe.upscales and not report.found.already_grown else []
    if recipe.adapter:
        parts.append("a small adapter")
        return ", ".join(parts)
    parts.append(f"{format_bytes(weights)} result")
    each = weights + (0 if content.get("save_only_model") else optimizer)
    limit = content.get("save_total_limit")
    if content.get("save_strategy") != "no":
        parts.append(f"{format_bytes(each)} per checkpoint{f', at most {limit} kept' if limit else ', all kept'}")
    return ", ".join(parts)


# --- merges, mixtures, evaluations, pipelines


def _merge(source: Source, gpus: Sequence[Gpus], base: str | None) -> Facts:
    content = source.content
    models = references(source)
    for number, one in enumerate(models[:8]):
        yield ("" if number else "models"), f"{one.name}{f' at {one.revision[:12]}' if one.revision else ''}"
    if models[8:]:
        yield "", f"and {len(models) - 8} more"
    slices = content.get("slices")
    if isinstance(slices, list):
        yield "layers", " + ".join(_slice(part) for part in slices)
    yield "base", str(content["base_model"]) if content.get("base_model") else ""
    parameters = content.get("parameters")
    if isinstance(parameters, Mapping):
        yield "parameters", ", ".join(f"{key}: {value}" for key, value in parameters.items())
    yield "dtype", str(content.get("dtype") or content.get("out_dtype") or "as the models")
    yield "needs", "no GPU; disk for the models and the result"


def _slice(part: Any) -> str:
    sources = part.get("sources") if isinstance(part, Mapping) else None
    ranges = filter(None, map(layer_range, sources if isinstance(sources, list) else ()))
    return " and ".join(f"[{span(*one)}]" for one in ranges)


def _mixture(source: Source, gpus: Sequence[Gpus], base: str | None) -> Facts:
    args = MixtureArgs.model_validate(source.content)
    for number, (name, one) in enumerate(list(args.sets.items())[:10]):
        rows = f"at most {one.rows:,} rows, seed {one.seed}" if one.rows else "all rows"
        size = ", ".join(filter(None, map(_size, one.path)))
        yield ("" if number else "data"), f"{name}: {', '.join(one.path)} ({rows}){f': {size}' if size else ''}"
    if args.decontaminate:
        against = args.decontaminate.against
        yield "drops", f"rows that share {args.decontaminate.ngram} words with {len(against)} benchmark files"
    yield "needs", "no GPU"
    yield "writes", args.output


def _maths(source: Source, gpus: Sequence[Gpus], base: str | None) -> Facts:
    args = MathsArgs.model_validate(source.opened)
    at = f" at {args.seeds.revision}" if args.seeds.revision else ""
    rows = f"at most {args.seeds.rows:,} rows" if args.seeds.rows else "all rows"
    yield "problems", f"{', '.join(args.seeds.path)}{at} ({rows}, license {args.seeds.license})"
    yield "model", f"{args.endpoint.model} at {', '.join(args.endpoint.base_url)}"
    yield "makes", ", ".join(f"{kind} x {one.samples}" for kind, one in args.kinds.items())
    yield "needs", "an endpoint" + (f", the key in {args.endpoint.key_variable}" if args.endpoint.key_variable else "")
    limits = args.limits.model_dump(exclude_none=True)
    yield "limits", ", ".join(f"{value:,} {name}" for name, value in limits.items())
    yield "seed", str(args.seed)
    yield "writes", args.output


def _evaluation(source: Source, gpus: Sequence[Gpus], base: str | None) -> Facts:
    content = source.content
    yield "model", str(content.get("lm_eval_model") or "")
    tasks = content.get("lm_eval_tasks")
    yield "tasks", ", ".join(map(str, tasks)) if isinstance(tasks, list) else ""
    yield "batch", str(content.get("lm_eval_batch_size") or "")
    yield "writes", str(content.get("output_dir") or "")


def _pipeline_lines(source: Source, sources: Sequence[Source]) -> list[str]:
    if source.bundle is not None:
        named = [(stage.name, stage.kind, stage.file or "", "") for stage in source.bundle.manifest.stages]
    else:
        pipeline = read_pipeline(source.path)
        named = [
            (stage.name, stage.kind, str(stage.content.get("base_model") or ""), ", ".join(stage.outputs))
            for stage in pipeline.stages
        ]
    by_stage = {one.stage: one for one in sources if one.stage}
    lines = [_cut(f"{source.name}: {_title(source)}")]
    for name, kind, start, outputs in named[: MAX_LINES - 6]:
        title = _title(by_stage[name]) if name in by_stage else f"a {kind}"
        way = f"{start} -> {outputs}" if start and outputs else outputs or start
        lines.append(_cut(f"  {name:<16} {title}{f': {way}' if way else ''}"))
    if len(named) > MAX_LINES - 6:
        lines.append(f"  and {len(named) - MAX_LINES + 6} more")
    lines.append(_cut(f"{'launch':<{LABEL}} {source.content.get('launch') or 'accelerate launch'}"))
    lines.append(_cut(f"{'code':<{LABEL}} {_code(sources)}"))
    lines.append(_cut(f"one stage   solar recipes show {source.path.parent}/FILE"))
    return lines


def _code(sources: Sequence[Source]) -> str:
    found = [f"{code.key} {code.what}" for source in sources for code in foreign_code(source) if code.certain]
    return "; ".join(dict.fromkeys(found)) or "runs no third-party code"


def _count(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def _cut(line: str) -> str:
    line = printable(line)
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."
