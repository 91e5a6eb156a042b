"""The models and datasets that a recipe, merge, mixture or evaluation names, and how each can be pinned."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from solar_plugins.lineage.merges import MODEL_KEYS, models_of
from solar_plugins.recipe import REVISION_KEYS
from solar_plugins.sharing.hub_session import Kind
from solar_plugins.sharing.sources import DataPlace, Source, datasets_of

HUB_ID = re.compile(r"[\w][\w.-]{0,95}(?:/[\w][\w.-]{0,95})?")
DATA_SUFFIX = re.compile(r"\.(?:jsonl?|parquet|csv|tsv|txt|arrow|ya?ml|gz|zst|xz|lz4|zip|tar|py|gguf|safetensors|bin)$")
REMOTE = re.compile(r"^[a-z][a-z0-9+.-]*://")


class Reference(NamedTuple):
    """A model or dataset that a file names."""

    key: str
    name: str
    revision: str | None
    kind: Kind
    pin: str | None
    """The key that pins its revision; None if no key does."""

    @property
    def is_remote(self) -> bool:
        """Whether it is a URL, such as ``s3://bucket/file``."""
        return bool(REMOTE.match(self.name)) and not self.name.startswith("file://")

    @property
    def looks_local(self) -> bool:
        """Whether it can only be a local path, because no hub id has that form.

        >>> [Reference("k", name, None, "dataset", None).looks_local for name in ("a/b", "a/b.jsonl", "./a", "a/b/c")]
        [False, True, True, True]
        """
        return not self.is_remote and (
            not HUB_ID.fullmatch(self.name)
            or bool(DATA_SUFFIX.search(self.name))
            or self.name.startswith((".", "/", "~"))
        )


def references(source: Source) -> list[Reference]:
    """The models and datasets that a file names, in order; each once."""
    found = {
        "recipe": _of_recipe,
        "merge": _of_merge,
        "mixture": _of_mixture,
        "maths": _of_maths,
        "evaluation": _of_evaluation,
    }
    finder = found.get(source.kind)
    by_name: dict[tuple[str, str | None], Reference] = {}
    for one in finder(source.content) if finder else ():
        by_name.setdefault((one.name, one.revision), one)
    return list(by_name.values())


def _of_recipe(content: Mapping[str, Any]) -> Iterator[Reference]:
    revision = next((str(content[key]) for key in REVISION_KEYS if content.get(key)), None)
    base = content.get("base_model")
    if isinstance(base, str) and base:
        yield Reference("base_model", base, revision, "model", REVISION_KEYS[0])
    # Axolotl passes the base's revision on to these too (`load_tokenizer`, `load_model_config`).
    for key in ("tokenizer_config", "base_model_config", "processor_config"):
        name = content.get(key)
        if isinstance(name, str) and name and name != base:
            yield Reference(key, name, None, "model", None)
    if isinstance(lora := content.get("lora_model_dir"), str) and lora:
        yield Reference("lora_model_dir", lora, None, "model", None)
    yield from _slices_of_other_models(content)
    for place in datasets_of(content):
        yield from _of_dataset(place)


def _slices_of_other_models(content: Mapping[str, Any]) -> Iterator[Reference]:
    solar = content.get("solar")
    init = solar.get("init") if isinstance(solar, Mapping) else None
    slices = init.get("slices") if isinstance(init, Mapping) else None
    for number, part in enumerate(slices if isinstance(slices, list) else ()):
        if isinstance(part, Mapping) and isinstance(part.get("model"), str):
            revision = part.get("revision")
            key = f"solar.init.slices[{number}]"
            yield Reference(f"{key}.model", part["model"], str(revision) if revision else None, "model", "revision")


def _of_dataset(place: DataPlace) -> Iterator[Reference]:
    if place.path in LOADERS:  # Then `data_files` has the paths.
        files = place.entry.get("data_files")
        for file in [files] if isinstance(files, str) else files if isinstance(files, list) else []:
            yield Reference(f"{place.key}.data_files", str(file), None, "dataset", None)
    elif place.path and place.entry.get("type") != "_synthetic":
        revision = place.entry.get("revision")
        pin = None if place.key.startswith("pretraining_dataset") else f"{place.key}.revision"
        yield Reference(f"{place.key}.path", place.path, str(revision) if revision and pin else None, "dataset", pin)


LOADERS = ("json", "csv", "parquet", "text", "arrow")
"""Names that `datasets` has for kinds of files."""


def _of_merge(content: Mapping[str, Any]) -> Iterator[Reference]:
    for key, name, revision in models_of(content, (*MODEL_KEYS, "tokenizer_source", "source")):
        if name not in ("union", "base"):
            yield Reference(key, name, revision, "model", f"{key}: {name}@REVISION")


def _of_maths(content: Mapping[str, Any]) -> Iterator[Reference]:
    seeds = content.get("seeds")
    if not isinstance(seeds, Mapping) or not seeds.get("files"):
        yield from _files("seeds.path", seeds)
    elif isinstance(path := seeds.get("path"), str):
        revision = seeds.get("revision")
        yield Reference("seeds.path", path, str(revision) if revision else None, "dataset", "revision")


def _of_mixture(content: Mapping[str, Any]) -> Iterator[Reference]:
    sets = content.get("sets")
    for name, one in sets.items() if isinstance(sets, Mapping) else ():
        yield from _files(f"sets.{name}.path", one)
    against = content.get("decontaminate")
    files = against.get("against") if isinstance(against, Mapping) else None
    for number, one in enumerate(files if isinstance(files, list) else ()):
        yield from _files(f"decontaminate.against[{number}].path", one)


def _files(key: str, entry: Any) -> Iterator[Reference]:
    paths = entry.get("path") if isinstance(entry, Mapping) else None
    for path in [paths] if isinstance(paths, str) else paths if isinstance(paths, list) else []:
        if isinstance(path, str):
            # `solar mix` reads files only.
            yield Reference(key, path if "/" in path else f"./{path}", None, "dataset", None)


def _of_evaluation(content: Mapping[str, Any]) -> Iterator[Reference]:
    name = content.get("lm_eval_model")
    if isinstance(name, str) and name:
        yield Reference("lm_eval_model", name, None, "model", None)
