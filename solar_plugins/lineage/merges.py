"""The lineage of what mergekit merged, from its recipe and from the models that the recipe names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.errors import ArgsError, CheckpointError, SolarError
from solar_plugins.lineage.cards import license_warning, save
from solar_plugins.lineage.public import public_name, recipe_text
from solar_plugins.lineage.record import (
    LINEAGE_FILE,
    Lineage,
    Source,
    Stage,
    find_model,
    merged,
    read,
    versions_of_stage,
    with_license,
)
from solar_plugins.storage.cards import CARD, read_card
from solar_plugins.storage.untrusted import parse_yaml, read_json_object, read_text
from solar_plugins.upscaling.base_model import CONFIG
from solar_plugins.upscaling.decoder import Decoder

MERGE_FILE = "mergekit_config.yml"
"""The recipe, as mergekit writes it next to the merged model."""
MODEL_KEYS = ("model", "base_model")
MAX_MERGE_BYTES = 1_000_000
REFERENCE = re.compile(r"(?P<model>[^+@]+)(?:@(?P<revision>[^+@]+))?(?:\+(?P<lora>[^@]+)(?:@(?P<lora_revision>.+))?)?")
"""How mergekit writes a model: ``path@revision+lora`` (mergekit/common.py, ``ModelReference``)."""


class Described(NamedTuple):
    """A card that was written."""

    path: Path
    warnings: list[str]


def describe(folder: Path) -> Described:
    """Write the lineage and the card of a merged model; of any other model that has a lineage, its card again.

    Args:
        folder: The model's. Local models of a merge are looked for from the working directory, as mergekit does it.

    Raises:
        SolarError: The folder has neither a merge nor a lineage, or one of them cannot be read.
        OSError: A file cannot be read or written.
    """
    warnings: list[str] = []
    has_lineage = (folder / LINEAGE_FILE).is_file()
    found = read(folder) if has_lineage or not (folder / MERGE_FILE).is_file() else None
    if (folder / MERGE_FILE).is_file() and (found is None or (found.stages and found.stages[-1].kind == "merge")):
        found = lineage_of_merge(folder, warnings)
    if found is None:
        raise ArgsError(
            f"{folder}: has no {MERGE_FILE}, no {LINEAGE_FILE}, and no record of solar_plugins in its config.json; "
            "give the folder of a merged model, or of one that was upscaled"
        )
    save(folder, found, old_card=read_card(folder))
    return Described(folder / CARD, warnings + list(filter(None, [license_warning(found)])))


def lineage_of_merge(folder: Path, warnings: list[str]) -> Lineage:
    """The lineage of a model that mergekit wrote.

    Args:
        folder: The merged model, with `MERGE_FILE`.
        warnings: Gets a message for each model that cannot be found.

    Raises:
        SolarError: The recipe, or the lineage of a model, cannot be read.
        OSError: A file cannot be read.
    """
    path = folder / MERGE_FILE
    if path.stat().st_size > MAX_MERGE_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size:,} bytes, expected a merge recipe; restore the file")
    content = parse_yaml(read_text(path), str(path))
    if not isinstance(content, Mapping):
        raise ArgsError(f"{path}: holds a {type(content).__name__}, expected a merge recipe; restore the file")
    lineages, sources = [], []
    for name, revision in dict.fromkeys((name, revision) for _, name, revision in models_of(content)):
        source, lineage = _model(name, revision, warnings)
        sources.append(source)
        lineages.append(lineage)
    found = merged(lineages)
    if found.plan is not None and not _keeps_layers(content, folder, len(found.layer_plan or ())):
        found = found.model_copy(update={"plan": None})
    result = Source(name=public_name(str(folder)))
    stage = Stage(
        kind="merge",
        result=result,
        sources=tuple(dict.fromkeys(sources)),
        recipe=recipe_text(content),
        versions=versions_of_stage("mergekit", "torch", "transformers"),
    )
    return found.then(stage)


def models_of(
    content: Any, keys: Collection[str] = MODEL_KEYS, where: str = ""
) -> Iterator[tuple[str, str, str | None]]:
    """Every model that a merge names: its key in dotted form, its name and its revision.

    Args:
        content: The merge recipe, or a part of it.
        keys: The keys that name models.
        where: The key of the part.
    """
    if isinstance(content, list):
        for number, part in enumerate(content):
            yield from models_of(part, keys, f"{where}[{number}]")
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        place = f"{where}.{key}" if where else str(key)
        if key in keys:
            yield from ((place, *model) for model in _named(value))
        else:
            yield from models_of(value, keys, place)


def _named(value: Any) -> Iterator[tuple[str, str | None]]:
    """The models of a key: ``path@revision+lora``, a map ``{model: {path: ...}, lora: ...}``, or its inner map."""
    if isinstance(value, str) and (found := REFERENCE.fullmatch(value)):
        yield found["model"], found["revision"]
        if found["lora"]:
            yield found["lora"], found["lora_revision"]
    elif isinstance(value, Mapping):
        for part in (value.get("model", value), value.get("lora")):
            if isinstance(part, Mapping) and isinstance(part.get("path"), str):
                yield part["path"], part["revision"] if isinstance(part.get("revision"), str) else None
            elif isinstance(part, str):
                yield part, None


def _model(name: str, revision: str | None, warnings: list[str]) -> tuple[Source, Lineage]:
    try:
        found = find_model(name, revision)
    except CheckpointError as error:
        warnings.append(f"{name}: the stages of this model are not known: {error}")
        source = Source(name=public_name(name))
        return source, Lineage(bases=(source,), earlier_unknown=True, unlicensed=(source.short,))
    if found.folder is None:
        warnings.append(
            f"{name}: not a directory seen from {Path.cwd()}, so the stages of this model are not known; run the "
            "command in the directory where mergekit ran"
        )
        source = found.source
        return source, Lineage(bases=(source,), earlier_unknown=True, unlicensed=(source.short,))
    if found.lineage is None:
        source = found.source
        return source, with_license(Lineage(bases=(source,)), found.folder, source.short)
    named = found.source.on_hub or found.lineage.earlier_unknown
    return found.source if named else found.lineage.result or found.source, found.lineage


def _keeps_layers(content: Mapping[str, Any], folder: Path, number: int) -> bool:
    """Whether each layer was merged from the layers at its own place, so that the models' plan is also the result's."""
    place = 0
    try:
        for part in content.get("slices") or ():
            (start, end), *others = [tuple(source["layer_range"]) for source in part["sources"]]
            if start != place or any(other != (start, end) for other in others):
                return False
            place = end
        has_all = place == number or not content.get("slices")
        return has_all and Decoder.of(read_json_object(folder / CONFIG)).num_layers == number
    except (SolarError, OSError, KeyError, TypeError, ValueError):
        return False
