"""The YAML files in a path that a user named: recipes, merges, mixtures, pipelines, also those of a bundle."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from solar_plugins.errors import ArgsError, SolarError
from solar_plugins.pipeline import Stage, read_pipeline
from solar_plugins.recipe import read_yaml
from solar_plugins.sharing.bundle import Bundle, is_bundle, read_bundle, with_values
from solar_plugins.sharing.findings import Finding
from solar_plugins.storage.untrusted import leads_out, parse_yaml, read_json_object, read_text, require_file

type FileKind = Literal["recipe", "merge", "mixture", "pipeline", "evaluation", "maths"]

MAX_FILES, MAX_NEIGHBORS = 500, 200
YAML_FILES = (".yml", ".yaml")
ORIGIN = "ORIGIN.json"
"""What `solar recipes fetch` writes next to the files: where they come from."""
KINDS_IN_WORDS = (
    "recipe (base_model), merge (merge_method), mixture (output, sets), solar maths recipe (seeds, endpoint) or "
    "pipeline (stages)"
)


@dataclass(frozen=True, slots=True)
class Source:
    """A YAML file, or a stage of a pipeline, whose recipe may have overrides.

    Args:
        path: The file.
        name: Its path relative to the given folder, with the stage where that matters.
        kind: What it is.
        content: Its keys, with the stage's overrides; in a bundle with variables as ``${NAME}``.
        text: Its text.
        overrides: Keys of the recipe with other values.
        stage: The stage of a pipeline that it is.
        earlier: What the stages before it write.
        later: What the stages after it write.
        bundle: The bundle that it is in.
    """

    path: Path
    name: str
    kind: FileKind
    content: Mapping[str, Any]
    text: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    stage: str | None = None
    earlier: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    bundle: Bundle | None = None

    @property
    def opened(self) -> Mapping[str, Any]:
        """The content, in a bundle with the examples of its variables."""
        if self.bundle is None:
            return self.content
        examples = {name: one.example for name, one in self.bundle.manifest.variables.items()}
        opened: Mapping[str, Any] = with_values(self.content, examples)
        return opened


def kind_of(content: Any) -> FileKind | None:
    """What a YAML file is, from its keys; None if it is nothing that can be checked.

    >>> kind_of({"base_model": "a/b", "merge_method": "slerp"}), kind_of({"base_model": "a/b"}), kind_of([1])
    ('merge', 'recipe', None)
    """
    if not isinstance(content, Mapping):
        return None
    if isinstance(content.get("stages"), list):
        return "pipeline"
    if "merge_method" in content:
        return "merge"
    if "sets" in content and "base_model" not in content:
        return "mixture"
    if "base_model" in content:
        return "recipe"
    if "seeds" in content and "endpoint" in content:
        return "maths"
    if any(str(key).startswith("lm_eval_") for key in content):
        return "evaluation"
    return "recipe" if "datasets" in content and "output_dir" in content else None


def stages_of(content: Any) -> tuple[str, ...] | None:
    """What a YAML file does, from its keys; None for a file that is neither recipe, merge, mixture nor pipeline.

    Example:
        >>> stages_of({"base_model": "org/a", "rl": "dpo", "adapter": "lora"}), stages_of({"site_name": "Docs"})
        (('DPO', 'LoRA'), None)
    """
    kind = kind_of(content)
    if kind == "merge":
        stacks = content.get("merge_method") == "passthrough" and "slices" in content
        return ("upscale", "merge") if stacks else ("merge",)
    if kind != "recipe" or "lm_eval_tasks" in content:
        return ("evaluation",) if kind == "recipe" else (kind,) if kind else None
    adapter = {"lora": ("LoRA",), "qlora": ("QLoRA",)}.get(str(content.get("adapter")), ())
    solar = content.get("solar") if isinstance(content.get("solar"), Mapping) else {}
    upscale = ("upscale",) if "init" in solar else ()
    if content.get("rl"):
        training = "sDPO" if str(solar.get("dpo")).startswith("sdpo") else str(content["rl"]).upper()
    else:
        sets = content.get("datasets")
        kinds = {str(one.get("type")) for one in sets if isinstance(one, Mapping)} if isinstance(sets, list) else set()
        plain_text = kinds and kinds <= {"completion", "pretrain"}
        training = "pretrain" if content.get("pretraining_dataset") or plain_text else "SFT"
    return (*upscale, training, *adapter)


class DataPlace(NamedTuple):
    """A dataset of a recipe."""

    key: str
    """Such as ``datasets[0]``."""
    path: str
    """Empty if it has none."""
    entry: Mapping[str, Any]


def datasets_of(content: Mapping[str, Any]) -> Iterator[DataPlace]:
    """The datasets of an Axolotl recipe, in order."""
    for key in ("datasets", "test_datasets", "pretraining_dataset"):
        entries = content.get(key)
        for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            fields = {"path": entry} if isinstance(entry, str) else entry
            if isinstance(fields, Mapping):
                path = fields.get("path")
                yield DataPlace(f"{key}[{number}]", path if isinstance(path, str) else "", fields)


def layer_range(source: Any) -> tuple[int, int] | None:
    """The ``layer_range`` of a source of one of mergekit's slices; None if it has none."""
    ends = source.get("layer_range") if isinstance(source, Mapping) else None
    if isinstance(ends, list) and len(ends) == 2 and all(type(end) is int for end in ends):
        return ends[0], ends[1]
    return None


def deepspeed_of(source: Source) -> tuple[str, Path | None] | None:
    """The DeepSpeed file that a recipe names, and where it is; None if it names none.

    Relative paths are seen from the working directory, or else from a folder above the recipe.
    """
    name = source.content.get("deepspeed") if source.kind == "recipe" else None
    if not isinstance(name, str) or not name or name.lstrip().startswith("{"):
        return None
    if source.bundle is not None:  # Only its own files were checked.
        inside = name.removeprefix("${BUNDLE}/")
        return name, source.bundle.folder / inside if inside in source.bundle.manifest.files else None
    places = (folder / name for folder in (Path(), *source.path.absolute().parents))
    try:
        return name, next((place for place in places if place.is_file()), None)
    except (OSError, ValueError):
        return name, None


def recipes_in(stage: Stage) -> list[Path]:
    """The recipes that a command stage names in its command or inputs, such as that of `solar maths`."""
    words = [word.rpartition("=")[2] for word in (*stage.command, *stage.inputs)] if stage.kind == "command" else []
    found = dict.fromkeys(Path(word) for word in words if word.endswith(YAML_FILES))
    return [path for path in found if path.is_file() and kind_of(read_yaml(path)) not in (None, "pipeline")]


def origin_of(folder: Path) -> str:
    """Where the files in a folder were fetched from, such as ``org/model at 0123456789ab``; empty if unknown."""
    path = folder / ORIGIN
    if not path.is_file() or leads_out(path, folder):
        return ""
    try:
        content = read_json_object(path, error=ArgsError)
    except (SolarError, OSError):
        return ""
    source, commit = content.get("source"), content.get("commit")
    at = f" at {commit[:12]}" if isinstance(commit, str) else ""
    return f"{source}{at}" if isinstance(source, str) else ""


def read_sources(path: Path, findings: list[Finding]) -> list[Source]:
    """The files to look at, pipelines followed by their stages. Files that cannot be read are added to ``findings``.

    Raises:
        ArgsError: The path does not exist, or holds nothing of the kind.
    """
    if path.is_dir() and is_bundle(path):
        try:
            return list(_bundle_sources(read_bundle(path)))
        except ArgsError as error:
            findings.append(Finding("error", path.name, "", str(error), "fetch it again, or ask its author", "file"))
            return []
    found = list(_file_sources(path, findings))
    if not found and not findings:
        raise ArgsError(f"{path}: contains no {KINDS_IN_WORDS}; give such a YAML file, or a folder with some")
    stages = [stage for source in found if source.kind == "pipeline" for stage in _stages(source, found, findings)]
    return [*found, *stages]


def _bundle_sources(bundle: Bundle) -> Iterator[Source]:
    stages = bundle.manifest.stages
    files = {stage.file: stage for stage in stages if stage.file and not stage.overrides}
    for name, content in bundle.contents.items():
        kind = kind_of(content)
        if kind is None:
            continue
        path = bundle.folder / name
        source = Source(path, name, kind, content, path.read_text(encoding="utf-8"), bundle=bundle)
        stage = files.get(name)
        yield replace(source, stage=stage.name if stage else None)
    for stage in stages:
        if stage.file and stage.overrides and stage.file in bundle.contents:
            content = {**bundle.contents[stage.file], **stage.overrides}
            path = bundle.folder / stage.file
            name = f"{stage.file} (stage {stage.name})"
            if kind := kind_of(content):
                yield Source(path, name, kind, content, "", dict(stage.overrides), stage.name, bundle=bundle)


def _file_sources(path: Path, findings: list[Finding]) -> Iterator[Source]:
    if path.is_dir():
        files, folder = list(islice(_yaml_files(path), MAX_FILES + 1)), path
    elif path.exists():
        files, folder = [path], path.parent
    else:
        raise ArgsError(f"{path}: does not exist; give a recipe, merge, mixture or pipeline, or a folder of them")
    if len(files) > MAX_FILES:
        raise ArgsError(f"{path}: more than {MAX_FILES} YAML files; give a smaller folder")
    for file in files:
        name = file.relative_to(folder).as_posix()
        if path.is_dir() and leads_out(file, folder):
            text, fix = "a link out of the folder, which was not opened", "put the file itself there"
            findings.append(Finding("warning", name, "", text, fix, "file"))
            continue
        try:
            contents = _contents(file)
        except (SolarError, OSError) as error:
            findings.append(Finding("error", name, "", str(error), "fix the file, or remove it", "file"))
            continue
        kinds = [kind_of(content) for content, _ in contents]
        if not any(kinds) and not path.is_dir():
            raise ArgsError(f"{path}: is not a {KINDS_IN_WORDS}; give such a file")
        for number, ((content, text), kind) in enumerate(zip(contents, kinds, strict=True), 1):
            if kind is not None:
                yield Source(file, f"{name} (document {number})" if len(contents) > 1 else name, kind, content, text)


def _contents(file: Path) -> list[tuple[Any, str]]:
    """The YAML documents of a file with their texts; mergekit-multi reads several."""
    require_file(file, error=ArgsError, fix="give a YAML file")
    text = read_text(file)
    parts = [part for part in re.split(r"^---\s*$", text, flags=re.MULTILINE) if part.strip()]
    documents = parts if len(parts) > 1 and "merge_method" in text else [text]
    return [(parse_yaml(part, str(file)), part) for part in documents]


def _yaml_files(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(where, name)
            if file.suffix in YAML_FILES and not name.startswith(".") and file.is_file():
                yield file


def _stages(pipeline: Source, found: Sequence[Source], findings: list[Finding]) -> Iterator[Source]:
    """The stages with a file, unless that file is looked at anyway and the stage changes nothing in it."""
    try:
        stages = read_pipeline(pipeline.path).stages
    except SolarError as error:
        text = str(error).removeprefix(f"{pipeline.path}: ")
        findings.append(Finding("error", pipeline.name, text.split(":", 1)[0], text, "", "pipeline"))
        return
    known = {source.path.resolve() for source in found}
    of_stages = {stage.file.resolve() for stage in stages if stage.file}
    for number, stage in enumerate(stages):
        try:
            # Of a folder every recipe is looked at anyway; commands name theirs from the working directory.
            named = recipes_in(stage) if len(found) == 1 else []
            named = [path for path in named if path.resolve() not in of_stages]
            files = [(path, read_yaml(path)) for path in named]
        except SolarError as error:
            findings.append(Finding("error", f"{pipeline.name}: stage {stage.name}", "command", str(error), "", "file"))
            continue
        files += [(stage.file, stage.content)] if stage.file else []
        for file, content in files:
            kind = kind_of(content)
            if kind is None or (file.resolve() in known and not stage.overrides):
                continue
            name = f"{pipeline.name}: stage {stage.name}" + (f" ({file.name})" if file != files[0][0] else "")
            around = _outputs(stages[:number]), _outputs(stages[number + 1 :])
            stage_name = stage.name if file == files[0][0] else None
            yield Source(file, name, kind, content, read_text(file), stage.overrides, stage_name, *around)


def _outputs(stages: Sequence[Stage]) -> tuple[str, ...]:
    return tuple(output for stage in stages for output in stage.outputs)


def normal(path: str) -> str:
    """A local path without ``./``, ``..`` and a last slash; ``/merged`` stands for what merge-lora makes of a run."""
    return os.path.normpath(os.path.expanduser(path)).removesuffix("/merged")


def written_by(sources: Sequence[Source], path: Path) -> dict[str, str]:
    """What recipes write, with the name of the file: those that are looked at, and their neighbors."""
    found = dict[str, str]()
    neighbors = list[Source]()
    if path.is_file():
        unread = list[Finding]()
        here = path.resolve().parent
        files = [*here.glob("*.y*ml"), *here.glob("*/*.y*ml"), *here.parent.glob("*.y*ml")]
        for file in islice(dict.fromkeys(sorted(files)), MAX_NEIGHBORS):
            try:
                neighbors += _file_sources(file, unread)
            except SolarError:
                continue
    for source in (*sources, *neighbors):
        for output in _written(source):
            found.setdefault(normal(output), source.name)
    return found


def _written(source: Source) -> Iterator[str]:
    if source.kind == "pipeline":
        stages = source.content["stages"]
        for stage in stages if isinstance(stages, list) else ():
            if isinstance(stage, Mapping):
                outputs = stage.get("outputs")
                overrides = stage.get("overrides")
                inner = overrides.get("output_dir") if isinstance(overrides, Mapping) else None
                yield from filter(_is_text, [stage.get("output"), inner])
                yield from filter(_is_text, outputs if isinstance(outputs, list) else [])
        return
    output = source.content.get("output_dir" if source.kind == "recipe" else "output")
    if source.kind in ("recipe", "mixture", "maths") and isinstance(output, str) and output:
        yield output


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
