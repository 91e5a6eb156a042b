"""Recipes by meaning: defaults filled in, deprecated names replaced, numbers as numbers; and how two of them differ.

With Axolotl and mergekit installed, their schemas fill in the defaults; without them only what the files say is
compared.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from solar_plugins.data.mixture_args import MixtureArgs
from solar_plugins.errors import ArgsError, PluginError, SolarError
from solar_plugins.maths.recipe import MathsArgs
from solar_plugins.pipeline import PipelineArgs
from solar_plugins.recipe import parse_recipe
from solar_plugins.sharing.findings import Finding
from solar_plugins.sharing.schemas import Answers, ask_schemas
from solar_plugins.sharing.sources import Source, deepspeed_of, read_sources
from solar_plugins.solar_block import DataArgs
from solar_plugins.storage.untrusted import read_json_object
from solar_plugins.text import printable
from solar_plugins.upscaling.strategies import strategy_arguments

NO_EFFECT = re.compile(
    r"^(?:output_dir|logging_.*|wandb_.*|use_wandb|mlflow_.*|use_mlflow|comet_.*|use_comet|trackio_.*|use_trackio"
    r"|swanlab_.*|use_swanlab|use_tensorboard|tensorboard_.*|hub_.*|push_.*|save_.*|saves_per_epoch|report_to"
    r"|dataset_prepared_path|dataset_num_proc|dataset_processes|dataloader_.*|auto_resume_from_checkpoints"
    r"|resume_from_checkpoint|eval_.*|evals_per_epoch|do_causal_lm_eval|do_bench_eval|bench_.*|test_datasets.*"
    r"|generate_samples|num_generation_samples|generation_.*|profiler_.*|include_tokens_per_second|include_tkps"
    r"|ddp_timeout|hf_use_auth_token|strict|debug|experimental_skip_.*|axolotl_config_path|plugins|solar\.cache_dir|store|endpoint\.base_url"
    r"|solar\.dpo|records|gpus|gpu_memory|output|low_cpu_mem_usage|use_ray|ray_.*|resources_per_worker|tokenizer_save_jinja_files"
    r"|include_tokens_.*|log_.*)$"
)
"""Keys that say where a run writes, what it logs, saves and measures. Not its weights."""
EVALUATION_MATTERS = ("load_best_model_at_end", "early_stopping_patience")
"""With one of these the evaluation decides which weights are kept."""
EVALUATION = re.compile(r"^(?:eval_|evals_|test_datasets|save_|saves_)")

DERIVED = re.compile(
    r"^(?:attn_(?:supports|uses|needs)_.*|accelerator_config\..*|lora_\w+_kernel|pad_to_sequence_len)$"
)
"""Keys that Axolotl's validation sets from others."""
RENAMED = {
    **dict.fromkeys(
        [f"{name}_attention" for name in ("flash", "sdp", "xformers", "flex", "eager", "sage")], "attn_implementation"
    ),
    "evaluation_strategy": "eval_strategy",
    "model_revision": "revision_of_model",
    "model_type": "type_of_model",
    "dpo_beta": "rl_beta",
    "noisy_embedding_alpha": "neftune_noise_alpha",
}
"""Deprecated keys that Axolotl's validation replaces (axolotl/utils/schemas)."""
PATH_KEYS = re.compile(r"(?:^|\.)(?:base_model|path|model|output|output_dir|tokenizer_config|lora_model_dir)$")
VARIABLE = re.compile(r"\$\{\w+\}")
MAX_SHOWN = 60


@dataclass(frozen=True)
class Meaning:
    """What one file means.

    Args:
        name: The file, or its stage.
        kind: As `Source.kind`.
        values: The value of each key, in dotted form; lists of maps by what identifies an entry.
        given: The keys that the file sets itself; all others are defaults.
        complete: Whether a schema filled in the defaults.
    """

    name: str
    kind: str
    values: Mapping[str, Any]
    given: frozenset[str] = field(default_factory=frozenset)
    complete: bool = True

    @cached_property
    def entries(self) -> tuple[str, ...]:
        """Its datasets, models and the like, such as ``datasets[a/b]``."""
        return tuple(dict.fromkeys(filter(None, map(_entry_of, self.values))))


class Change(NamedTuple):
    """A key with another meaning."""

    where: str
    """The stage or file; empty if there is one only."""
    key: str
    before: str
    """Empty if the first has no such key."""
    after: str
    matters: bool
    """Whether it can change the trained weights."""


def meanings(*paths: Path) -> list[dict[str, Meaning]]:
    """For each path the meaning of each file in it, by its name; by its stage where the path is one pipeline.

    Raises:
        SolarError: A file cannot be read, or a schema rejects it.
    """
    by_path = [_sources(path) for path in paths]
    sources = [source for some in by_path for source in some]
    recipes = [source for source in sources if source.kind == "recipe"]
    merges = [source for source in sources if source.kind == "merge"]
    answers = ask_schemas([one.content for one in recipes], [one.content for one in merges])
    by_schema = dict(_by_schema(recipes, merges, answers))
    found = list[dict[str, Meaning]]()
    for some in by_path:
        one_pipeline = sum(source.kind == "pipeline" for source in some) == 1
        labels = [_label(source, one_pipeline=one_pipeline) for source in some]
        each = [_meaning(source, by_schema.get(id(source)), label) for source, label in zip(some, labels, strict=True)]
        found.append(dict(zip(labels, each, strict=True)))
    return found


def _sources(path: Path) -> list[Source]:
    if not path.exists() and re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*(?:@[\w.-]+)?", str(path)):
        raise ArgsError(f"{path}: does not exist here; if it is on the Hub, first run solar recipes fetch {path}")
    unread = list[Finding]()
    sources = read_sources(path, unread)
    for one in unread:
        raise ArgsError(f"{path}: {one.file}: {one.text}")
    return sources


def _label(source: Source, *, one_pipeline: bool) -> str:
    if not one_pipeline:
        return source.name
    return "pipeline" if source.kind == "pipeline" else source.stage or source.name


def _by_schema(
    recipes: Sequence[Source], merges: Sequence[Source], answers: Answers
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for source, answer in zip(recipes, answers.recipes or [], strict=False):
        if answer["content"] is None:
            key, text, _ = answer["errors"][0]
            raise ArgsError(f"{source.path}: {key + ': ' if key else ''}{text}\nsolar recipes check {source.path}")
        yield id(source), answer["content"]
    for source, merge in zip(merges, answers.merges or [], strict=False):
        if merge.content is None:
            key, text, _ = merge.errors[0]
            raise ArgsError(f"{source.path}: {key + ': ' if key else ''}{text}\nsolar recipes check {source.path}")
        yield id(source), merge.content


def _meaning(source: Source, by_schema: Mapping[str, Any] | None, label: str) -> Meaning:
    said = dict(source.content)
    content: dict[str, Any] = dict(by_schema if by_schema is not None else said)
    try:
        if source.kind == "recipe":
            content |= _our_block(source)
            if found := _deepspeed(source):
                said["deepspeed"] = content["deepspeed"] = found
        elif source.kind == "mixture":
            content = MixtureArgs.model_validate(source.content).model_dump(exclude_none=True)
        elif source.kind == "maths":
            content = MathsArgs.model_validate(
                {**source.content, "endpoint": source.opened.get("endpoint")}
            ).model_dump(exclude_none=True)
        elif source.kind == "pipeline":
            content = _of_pipeline(source)
    except (SolarError, ValidationError) as error:
        raise ArgsError(f"{source.path}: {error}\nsolar recipes check {source.path}") from None
    complete = by_schema is not None or source.kind in ("mixture", "maths", "pipeline")
    flat = _flat(said)
    given = frozenset(flat) | {new for old, new in RENAMED.items() if old in flat}
    return Meaning(label, source.kind, _flat(content), given, complete)


def _deepspeed(source: Source) -> dict[str, Any] | None:
    """The settings in the DeepSpeed file of a recipe, wherever it is; None without a file."""
    found = deepspeed_of(source)
    return read_json_object(found[1], error=ArgsError) if found and found[1] else None


def _our_block(source: Source) -> dict[str, Any]:
    recipe = parse_recipe(source.content, source.path, source.text)
    if recipe.solar is None:
        return {**recipe.filled_in, "solar": {"data": DataArgs().model_dump()}}
    block = {"data": DataArgs().model_dump(), **recipe.solar.model_dump(exclude_none=True, by_alias=True)}
    if recipe.solar.init_args is not None:
        init = recipe.solar.init_args
        with suppress(PluginError):  # A strategy that is not installed here keeps its arguments as written.
            block["init"] = {**block["init"], **strategy_arguments(init)}
    return {**recipe.filled_in, "solar": block}


def _of_pipeline(source: Source) -> dict[str, Any]:
    args = PipelineArgs.model_validate(source.content)
    # Files of stages are compared by what they mean.
    compared = {"name", "recipe", "merge", "mixture", "overrides", "output"}
    stages = {stage.name: stage.model_dump(exclude_defaults=True, exclude=compared) for stage in args.stages}
    settings = args.model_dump(exclude={"stages"}, exclude_none=True)
    return {**settings, "order of stages": list(stages), "stages": stages}


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys and plain values. Without meaning: null, empty lists and maps."""
    return dict(_flattened(content, ""))


def _flattened(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flattened(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        names = _entry_names(value)
        if len(names) > 1:
            yield f"order of {where}", names
        for name, one in zip(names, value, strict=True):
            yield from _flattened(one, f"{where}[{name}]")
    elif value is not None and value != []:
        yield where, _plain(value, where)


def _entry_names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What identifies an entry of a list: its path or model, with a number where that is not unique."""
    seen: dict[str, int] = {}
    names = []
    for number, entry in enumerate(entries):
        path = entry.get("path") or entry.get("model") or entry.get("name")
        text = _path(path) if isinstance(path, str) else str(number)
        config = entry.get("name")
        text = f"{text}:{config}" if isinstance(config, str) and config != path else text
        seen[text] = seen.get(text, 0) + 1
        names.append(text if seen[text] == 1 else f"{text} #{seen[text]}")
    return names


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, str):
        if re.fullmatch(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", value):
            return float(value.replace("_", ""))
        return _path(value) if PATH_KEYS.search(where) else value
    if isinstance(value, list):
        return [_plain(one, where) for one in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _path(text: str) -> str:
    return text if "://" in text else os.path.normpath(text)


# --- differences


def differences(first: Mapping[str, Meaning], second: Mapping[str, Meaning]) -> list[Change]:
    """What two paths differ in, by meaning. Files are paired by name, a single one with a single one.

    Args:
        first: By name, from `meanings`.
        second: The same.
    """
    if len(first) == len(second) == 1:
        return list(_changes("", *first.values(), *second.values()))
    found = list[Change]()
    for name in dict.fromkeys([*first, *second]):
        if name in first and name in second:
            found += _changes(name, first[name], second[name])
        else:
            one = first.get(name) or second[name]
            texts = (one.kind, "") if name in first else ("", one.kind)
            found.append(Change(name, "", *texts, matters=True))
    return found


def _changes(where: str, first: Meaning, second: Meaning) -> Iterator[Change]:
    if first.kind != second.kind:
        yield Change(where, "", f"a {first.kind}", f"a {second.kind}", matters=True)
        return
    # Where only one side has defaults filled in, a default is no difference.
    only_given = first.complete != second.complete
    keeps_best = any(side.values.get(key) for side in (first, second) for key in EVALUATION_MATTERS)
    yield from _entries(where, first, second)
    for key in dict.fromkeys([*first.values, *second.values]):
        entry = _entry_of(key)
        if entry and (entry in first.entries) != (entry in second.entries):
            continue
        before, after = first.values.get(key), second.values.get(key)
        if _same(before, after) or (key.startswith("order of ") and not _only_order(before, after)):
            continue
        given = key in first.given, key in second.given
        if (only_given and not all(given)) or (DERIVED.match(key) and not any(given)):
            continue
        variable = any(isinstance(one, str) and VARIABLE.fullmatch(one) for one in (before, after))
        matters = not NO_EFFECT.match(key) or (keeps_best and bool(EVALUATION.match(key)))
        yield Change(where, key, _shown(before, key, first), _shown(after, key, second), matters and not variable)


def _entries(where: str, first: Meaning, second: Meaning) -> Iterator[Change]:
    """Datasets, models and the like that only one side has: one line each."""
    for entry in dict.fromkeys([*first.entries, *second.entries]):
        if (entry in first.entries) != (entry in second.entries):
            side = first if entry in first.entries else second
            inner = {
                key.removeprefix(f"{entry}."): value for key, value in side.values.items() if _entry_of(key) == entry
            }
            facts = [
                f"{key} {_shown(value, key, side).removesuffix(' (default)')}"
                for key, value in inner.items()
                if key not in ("path", "model") and f"{entry}.{key}" in side.given
            ]
            name = entry[entry.index("[") + 1 : -1]
            text = name + (f" ({', '.join(facts)})" if facts else "")
            list_key = entry[: entry.index("[")]
            texts = (text, "") if side is first else ("", text)
            yield Change(where, list_key, *texts, not NO_EFFECT.match(list_key))


def _entry_of(key: str) -> str:
    """``datasets[a/b]`` of ``datasets[a/b].type``; empty if the key is in no entry of a list."""
    found = re.match(r"(?:datasets|test_datasets|pretraining_dataset|models|slices)\[.*?\](?=\.)", key)
    return found[0] if found else ""


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, float) and isinstance(after, float):
        return math.isclose(before, after, rel_tol=1e-12) or (math.isnan(before) and math.isnan(after))
    return type(before) is type(after) and bool(before == after)


def _only_order(before: Any, after: Any) -> bool:
    """Whether two lists of names have the same entries; added and removed ones are changes of their own."""
    return isinstance(before, list) and isinstance(after, list) and sorted(before) == sorted(after)


def _shown(value: Any, key: str, meaning: Meaning) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        text = f"{value:.12g}"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = " ".join(printable(text).split())
    text = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    top = key.split(".")[0].split("[")[0]
    is_default = not any(one == key or one.split(".")[0].split("[")[0] == top for one in meaning.given)
    return f"{text} (default)" if is_default and not key.startswith("order of ") else text


def as_json(changes: Sequence[Change]) -> dict[str, Any]:
    """The changes as JSON-ready values."""
    return {"same": not changes, "changes": [change._asdict() for change in changes]}


def as_text(changes: Sequence[Change]) -> str:
    """A line for each change; those that cannot change the trained weights stand last, apart."""
    if not changes:
        return "no difference in meaning"
    lines = list[str]()
    groups = ((True, ""), (False, "without effect on the trained weights:"))
    for matters, title in groups:
        some = [change for change in changes if change.matters is matters]
        if some and title:
            lines += ["", title] if lines else [title]
        width = max((len(_key(change)) for change in some), default=0)
        lines += [f"{_key(change):<{min(width, 50)}}  {_from_to(change)}" for change in some]
    return "\n".join(" ".join(printable(line).split("\n")) for line in lines)


def _key(change: Change) -> str:
    parts = [change.where, change.key]
    return printable(": ".join(part for part in parts if part))


def _from_to(change: Change) -> str:
    if not change.before:
        return f"added: {change.after}"
    return f"{change.before} -> {change.after}" if change.after else f"removed: {change.before}"
