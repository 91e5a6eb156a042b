"""A bundle: the folder of a shared run. Its recipes, plan, data fingerprints, versions, metrics, curves and card.

``solar_bundle.json`` lists every other file with its hash, except ``README.md``, which people edit on the Hub and from
which nothing is read. Recipes name the paths of a machine as variables, ``${NAME}``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from solar_plugins.errors import ArgsError
from solar_plugins.solar_block import invalid
from solar_plugins.storage.atomic import sole_writer, write_directory, write_errors_explained
from solar_plugins.storage.untrusted import is_plain_relative_path, parse_yaml, read_json_object, require_file
from solar_plugins.text import close_match

MANIFEST, CARD = "solar_bundle.json", "README.md"
PLANS, DATA, VERSIONS, METRICS, STEPS = "plan.json", "data.json", "versions.json", "metrics.json", "steps.json"
CURVES, PICTURES = "curves.csv", "pictures/"
FORMAT = 1

MAX_FILES = 300
MAX_TEXT_BYTES = 1_000_000
"""Of all files but pictures."""
MAX_PICTURE_BYTES = 5_000_000
"""Of each picture."""

AGAIN = "fetch the bundle again, or ask its author to share it again"

VARIABLE = re.compile(r"\$\{([^}]*)\}")
NAME = r"[A-Z][A-Z0-9_]{0,63}"

type Line = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""One line of text without control characters, which could move the cursor of a terminal."""
type Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
type VariableName = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
type StageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]{0,99}$")]
type Count = Annotated[int, Field(ge=0, le=2**53)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Part):
    """A file of the bundle."""

    sha256: Digest
    bytes: Count


class Variable(_Part):
    """A path or name of the machine that a recipe needs.

    Args:
        meaning: What it is.
        example: A value.
        kind: ``input``: given by the person who reproduces the run. ``output``: a folder that the run writes.
        producer: The stage that writes this input, if one of the bundle's does.
    """

    meaning: Line
    example: Line
    kind: Literal["input", "output"] = "input"
    producer: StageName | None = None


class BundleStage(_Part):
    """A stage of the run.

    Args:
        name: Unique in the bundle.
        kind: As in a pipeline file.
        file: Its recipe, merge or mixture in the bundle; of a command the recipe that it names, if it names one.
        overrides: Keys of the recipe with other values.
        steps: Optimizer steps of the entire run; None if unknown, or no training.
        processes: How many trained it.
        device: What it ran on, such as ``CPU`` or the name of a GPU.
        precision: ``bf16``, ``fp16`` or ``fp32``.
        base: The base of the stage as its recipe names it.
        base_commit: The commit of a hub base.
        base_digest: The hash of a local base's weights and config.
        seconds: How long it took.
    """

    name: StageName
    kind: Literal["recipe", "merge", "mixture", "command"]
    file: Line | None = None
    overrides: dict[Line, Line | int | float | bool] = Field(default_factory=dict)
    steps: Count | None = None
    processes: Count | None = None
    device: Line | None = None
    precision: Line | None = None
    base: Line | None = None
    base_commit: Line | None = None
    base_digest: Digest | None = None
    seconds: float | None = None


class Dataset(_Part):
    """What is known of a dataset of a stage.

    Args:
        key: Where the recipe has it, such as ``datasets[0]``.
        name: A hub id, or the name of a local file.
        revision: Of a hub dataset.
        split: As in the recipe.
        variable: The variable that stands for its local path.
        rows: How many it has.
        sha256: The hash of its rows in order (`data_facts.rows_hash`); None if it was not read.
        formatter: What read it: ``type`` in the recipe.
        rows_kept: Rows with at least one example.
        examples: Examples that were made of them.
        dropped: Rows that were dropped, by reason.
    """

    key: Line
    name: Line
    revision: Line | None = None
    split: Line | None = None
    variable: VariableName | None = None
    rows: Count | None = None
    sha256: Digest | None = None
    formatter: Line | None = None
    rows_kept: Count | None = None
    examples: Count | None = None
    dropped: dict[Line, Count] = Field(default_factory=dict)


class Metric(_Part):
    """A result, with how it was measured."""

    name: Line
    value: float
    step: Count | None = None
    how: Line


class Step(_Part):
    """An optimizer step.

    Args:
        step: Its number, from 1.
        rows: How many rows its batch had, over all processes.
        sha256: The hash of these rows; their order within the batch does not count.
        loss: The mean over all processes; None if it was not finite.
    """

    step: Annotated[int, Field(ge=1, le=2**53)]
    rows: Count
    sha256: Digest
    loss: float | None


class StagePlan(_Part):
    """A layer plan in words, and as `LayerPlan.to_dict` has it."""

    text: Line
    plan: dict[str, Any]


class Manifest(_Part):
    """The content of ``solar_bundle.json``."""

    format: Literal[1]
    name: Line
    pipeline: Line | None = None
    stages: list[BundleStage] = Field(min_length=1, max_length=100)
    variables: dict[VariableName, Variable] = Field(default_factory=dict)
    files: dict[str, FileEntry] = Field(min_length=1, max_length=MAX_FILES)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for path in self.files:
            if not is_plain_relative_path(path) or path in (MANIFEST, CARD):
                raise ValueError(f"files: {path!r:.100} is not the path of a file in a bundle")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: two have the same name: {', '.join(names):.300}")
        for path in filter(None, [self.pipeline, *(stage.file for stage in self.stages)]):
            if path not in self.files:
                raise ValueError(f"files: {path!r:.100} is missing, but a stage names it")
        for text in (text for stage in self.stages for text in texts_in(stage.overrides)):
            unknown = [name for name in VARIABLE.findall(text) if name not in self.variables]
            if unknown:
                raise ValueError(f"stages: overrides: {unknown[0]!r:.60} is not a variable")
        for name, variable in self.variables.items():
            if variable.producer is not None and variable.producer not in names:
                raise ValueError(f"variables.{name}: producer {variable.producer!r} is not a stage")
        return self


class _Stages[Value](_Part):
    stages: dict[StageName, Value] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files were all checked.

    Args:
        folder: Where it is.
        manifest: Stages, variables and files.
        plans: By stage.
        data: The datasets of each stage.
        versions: Of the packages that decide what a run does, by stage.
        metrics: The results of each stage.
        steps: The first steps of each stage, as far as they were recorded.
        contents: Each YAML file, variables not replaced.
    """

    folder: Path
    manifest: Manifest
    plans: Mapping[str, StagePlan]
    data: Mapping[str, list[Dataset]]
    versions: Mapping[str, dict[str, str]]
    metrics: Mapping[str, list[Metric]]
    steps: Mapping[str, list[Step]]
    contents: Mapping[str, Mapping[str, Any]]

    def missing(self, values: Mapping[str, str]) -> dict[str, Variable]:
        """The variables that have no value.

        Raises:
            ArgsError: A value is for a variable that the bundle does not have, or is not one line of text.
        """
        known = self.manifest.variables
        for name, value in values.items():
            if name not in known:
                close = close_match(name, known)
                hint = f"did you mean {close}?" if close else f"its variables: {', '.join(known) or 'none'}"
                raise ArgsError(f"{self.folder}: {name} is not a variable of this bundle; {hint}")
            if not value or not value.isprintable():
                raise ArgsError(f"{name}: {value!r:.100}; expected a path or a hub id")
        return {name: variable for name, variable in known.items() if name not in values}

    def open(self, values: Mapping[str, str], paths: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
        """The content of recipes, merges, mixtures and the pipeline file, with the variables replaced.

        Args:
            values: Of each variable that is used.
            paths: Only these files; default: all.

        Raises:
            ArgsError: Variables have no value: all of them are named. Or as `missing`.
        """
        chosen = {path: content for path, content in self.contents.items() if paths is None or path in paths}
        used = {name for text in texts_in([*chosen.values()]) for name in VARIABLE.findall(text)}
        if missing := {name: one for name, one in self.missing(values).items() if name in used}:
            lines = [f"  {name}: {one.meaning}, such as {one.example}" for name, one in missing.items()]
            options = " ".join(f"--set {name}=..." for name in missing)
            raise ArgsError(f"{self.folder}: these variables need a value:\n" + "\n".join(lines) + f"\nGive {options}")
        return {path: with_values(content, values) for path, content in chosen.items()}


def with_values(value: Any, values: Mapping[str, str]) -> Any:
    """A value of a bundle with its variables replaced."""
    if isinstance(value, str):
        return VARIABLE.sub(lambda found: values[found[1]], value)
    if isinstance(value, Mapping):
        return {key: with_values(part, values) for key, part in value.items()}
    if isinstance(value, list):
        return [with_values(part, values) for part in value]
    return value


def texts_in(value: Any) -> Iterator[str]:
    """Every text in the content of a YAML file."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from texts_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from texts_in(part)


def is_bundle(folder: Path) -> bool:
    """Whether a folder says that it is a bundle; `read_bundle` tells whether it is a good one."""
    return (folder / MANIFEST).is_file()


def read_bundle(folder: Path) -> Bundle:
    """The bundle in a folder. Files that it does not list are never opened.

    Raises:
        ArgsError: It is not a bundle, or one of its files is missing, changed, too large, a link or invalid.
        OSError: A file cannot be read.
    """
    path = folder / MANIFEST
    if not folder.is_dir() or not path.is_file():
        raise ArgsError(f"{folder}: no {MANIFEST}; give the folder of a bundle, as `solar recipes fetch` writes it")
    _refuse_links(folder, MANIFEST)
    _refuse_large(path, MAX_TEXT_BYTES)
    content = read_json_object(path, strict=True, error=ArgsError, fix=AGAIN)
    if content.get("format") != FORMAT:
        raise ArgsError(
            f"{path}: format {content.get('format')!r:.50}, expected {FORMAT}; install the version of solar_plugins "
            "that wrote it"
        )
    manifest = _model(Manifest, content, path)
    texts = {name: _checked(folder, name, entry) for name, entry in manifest.files.items()}
    if sum(len(text) for name, text in texts.items() if not name.startswith(PICTURES)) > MAX_TEXT_BYTES:
        raise ArgsError(f"{folder}: more than {MAX_TEXT_BYTES:,} bytes without pictures; {AGAIN}")

    def stages[Value](name: str, kind: type[_Stages[Value]]) -> dict[str, Value]:
        if name not in texts:
            return {}
        found = read_json_object(folder / name, strict=True, error=ArgsError, fix=AGAIN)
        return _model(kind, found, folder / name).stages

    return Bundle(
        folder=folder,
        manifest=manifest,
        plans=stages(PLANS, _Stages[StagePlan]),
        data=stages(DATA, _Stages[list[Dataset]]),
        versions=stages(VERSIONS, _Stages[dict[Line, Line]]),
        metrics=stages(METRICS, _Stages[list[Metric]]),
        steps=stages(STEPS, _Stages[list[Step]]),
        contents=dict(_yaml_files(folder, manifest, texts)),
    )


def _yaml_files(
    folder: Path, manifest: Manifest, texts: Mapping[str, bytes]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    of_stages = [name for name in (manifest.pipeline, *(stage.file for stage in manifest.stages)) if name]
    for name in dict.fromkeys([*of_stages, *(name for name in sorted(texts) if name.endswith((".yml", ".yaml")))]):
        try:
            text = texts[name].decode()
        except ValueError as error:
            raise ArgsError(f"{folder / name}: not UTF-8 ({error}); {AGAIN}") from None
        content = parse_yaml(text, str(folder / name))
        if not isinstance(content, Mapping):
            raise ArgsError(f"{folder / name}: holds a {type(content).__name__}, expected a map of keys; {AGAIN}")
        for used in (found for one in texts_in(content) for found in VARIABLE.findall(one)):
            if used not in manifest.variables:
                raise ArgsError(f"{folder / name}: ${{{used:.60}}} is not a variable of {MANIFEST}; {AGAIN}")
        yield name, content


def _model[Model: BaseModel](kind: type[Model], content: Mapping[str, Any], path: Path) -> Model:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ArgsError(f"{invalid(error, f'{path}: ', kind.model_fields)}\n{AGAIN}") from None


def _checked(folder: Path, name: str, entry: FileEntry) -> bytes:
    """The bytes of a listed file."""
    _refuse_links(folder, name)
    path = folder / name
    if not path.exists():
        raise ArgsError(f"{path}: missing, but {MANIFEST} lists it; {AGAIN}")
    _refuse_large(path, MAX_PICTURE_BYTES if name.startswith(PICTURES) else MAX_TEXT_BYTES)
    content = path.read_bytes()
    if len(content) != entry.bytes or hashlib.sha256(content).hexdigest() != entry.sha256:
        raise ArgsError(
            f"{path}: was changed: its {len(content):,} bytes do not have the hash that {MANIFEST} lists "
            f"({entry.bytes:,} bytes); {AGAIN}"
        )
    return content


def _refuse_links(folder: Path, name: str) -> None:
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise ArgsError(f"{path}: a link, expected a file of the bundle itself; {AGAIN}")


def _refuse_large(path: Path, limit: int) -> None:
    size = require_file(path, error=ArgsError, fix=AGAIN)
    if size > limit:
        raise ArgsError(f"{path}: {size:,} bytes, expected at most {limit:,}; {AGAIN}")


def as_json(content: Any) -> bytes:
    """The same bytes for the same content: sorted keys, no NaN."""
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return f"{text}\n".encode()


def stages_json(stages: Mapping[str, Any]) -> bytes:
    """A file of `_Stages`: values may be models, or lists of models."""

    def plain(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return value.model_dump(mode="json", exclude_defaults=True)
        return [plain(part) for part in value] if isinstance(value, list) else value

    return as_json({"stages": {name: plain(value) for name, value in stages.items()}})


def write_bundle(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    name: str,
    stages: list[BundleStage],
    variables: Mapping[str, Variable],
    pipeline: str | None = None,
    replace: bool = False,
) -> Bundle:
    """Write a bundle completely or not at all, and read it back. The same arguments give the same bytes.

    Args:
        folder: Where; it must not exist, unless ``replace``.
        files: Every file with its path, the card too.
        name: What is shared.
        stages: In order.
        variables: Of the recipes.
        pipeline: The pipeline file among the files.
        replace: Replace a bundle that is there; nothing but a bundle is ever replaced.

    Raises:
        ArgsError: It would not be a good bundle, or the folder exists.
    """
    listed = {
        path: FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
        for path, content in sorted(files.items())
        if path != CARD
    }
    content = {
        "format": FORMAT,
        "name": name,
        "pipeline": pipeline,
        "stages": [stage.model_dump(mode="json", exclude_defaults=True) for stage in stages],
        "variables": {key: one.model_dump(mode="json") for key, one in variables.items()},
        "files": {path: entry.model_dump() for path, entry in listed.items()},
    }
    if folder.exists() and not (replace and is_bundle(folder)):
        raise ArgsError(f"{folder}: exists; give another --output, or remove it")

    def fill(into: Path) -> None:
        for path, text in files.items():
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            (into / path).write_bytes(text)
        (into / MANIFEST).write_bytes(as_json(content))
        read_bundle(into)

    with (
        write_errors_explained(folder, "bundle", "give another --output", ArgsError),
        sole_writer(folder),
    ):
        write_directory(folder, fill, lambda _: False, replace=True)
    return read_bundle(folder)
