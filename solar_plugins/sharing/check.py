"""`solar recipes check`: everything that can be known about recipes without running them.

Nothing that a recipe names is imported or executed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from solar_plugins.errors import ArgsError, SolarError
from solar_plugins.recipe import parse_recipe
from solar_plugins.sharing.findings import Finding, as_json, as_text, counted, has_errors
from solar_plugins.sharing.secrets import in_file
from solar_plugins.storage.untrusted import parse_yaml, read_text

__all__ = ["Finding", "as_json", "as_text", "check", "counted", "has_errors"]

type FileKind = Literal["recipe", "merge", "mixture", "pipeline", "evaluation"]

MAX_FILES, MAX_BYTES = 500, 1_000_000
BUNDLE = "solar_bundle.json"


@dataclass(frozen=True, slots=True)
class Source:
    """A YAML file to check.

    Args:
        path: The file.
        name: Its path relative to the checked folder.
        kind: What it is.
        content: Its keys.
        text: Its text.
    """

    path: Path
    name: str
    kind: FileKind
    content: Mapping[str, Any]
    text: str


def kind_of(content: Any) -> FileKind | None:
    """What a YAML file is, from its keys; None if it is nothing that can be checked."""
    if not isinstance(content, Mapping):
        return None
    if isinstance(content.get("stages"), list):
        return "pipeline"
    if "merge_method" in content or ("slices" in content and "plugins" not in content):
        return "merge"
    if "sets" in content and "output" in content:
        return "mixture"
    if "base_model" in content:
        return "recipe"
    if any(str(key).startswith("lm_eval_") for key in content):
        return "evaluation"
    return "recipe" if "datasets" in content and "output_dir" in content else None


def check(path: Path, *, gpus: Sequence[str] | None = None, offline: bool | None = None) -> list[Finding]:
    """Check a recipe, merge, mixture or pipeline, a bundle, or every such file in a folder.

    Args:
        path: The file or folder.
        gpus: GPUs that the training must fit, such as ``H100``, ``8xA100`` or ``24`` (GB).
        offline: Ask the hub nothing. Default: as ``HF_HUB_OFFLINE``.

    Returns:
        The findings, by file. Errors mean that the check failed.

    Raises:
        ArgsError: The path does not exist, or a file holds nothing that can be checked.
    """
    findings = list[Finding]()
    sources = list(_sources(path, findings))
    if not sources and not findings:
        raise ArgsError(
            f"{path}: holds no recipe, merge, mixture or pipeline; expected a YAML file, or a folder with some"
        )
    for source in sources:
        findings += _private_findings(source)
        if source.kind == "recipe":
            findings += _block_findings(source)
    return findings


def _sources(path: Path, findings: list[Finding]) -> Iterator[Source]:
    if path.is_file():
        files, folder = [path], path.parent
    elif path.is_dir():
        files, folder = [*_yaml_files(path)], path
    else:
        raise ArgsError(f"{path}: does not exist; give a recipe, a pipeline, or a folder of them")
    if len(files) > MAX_FILES:
        raise ArgsError(f"{path}: {len(files):,} YAML files, expected at most {MAX_FILES}; give a smaller folder")
    for file in files:
        name = str(file.relative_to(folder))
        try:
            if file.stat().st_size > MAX_BYTES:
                raise ArgsError(f"{file.stat().st_size:,} bytes, expected at most {MAX_BYTES:,} in a recipe")
            text = read_text(file)
            content = parse_yaml(text, name)
        except SolarError as error:
            findings.append(Finding("error", name, "", str(error), "fix the file, or remove it", "file"))
            continue
        kind = kind_of(content)
        if kind is not None:
            yield Source(file, name, kind, content, text)
        elif path.is_file():
            raise ArgsError(
                f"{path}: is no recipe (base_model), merge (merge_method), mixture (sets) or pipeline (stages)"
            )


def _yaml_files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.suffix in (".yml", ".yaml") and file.is_file() and not hidden:
            yield file


def _private_findings(source: Source) -> Iterator[Finding]:
    for one in in_file(source.text, source.content):
        if one.kind == "secret":
            fix = "remove it, and revoke it if the file was ever shared; log in with `hf auth login`, or set a variable"
            yield Finding("error", source.name, one.where, f"{one.what} in the file", fix, "secrets")
        elif one.kind == "path":
            text = f"{one.what} exists on this machine only"
            yield Finding("warning", source.name, one.where, text, "use a relative path or a hub id", "paths")
        else:
            yield Finding("warning", source.name, one.where, f"has {one.what}", "remove it before sharing", "paths")


def _block_findings(source: Source) -> Iterator[Finding]:
    try:
        parse_recipe(source.content, source.path, source.text)
    except SolarError as error:
        for line in str(error).split("\n"):
            key = line.split(":", 1)[0]
            yield Finding("error", source.name, key, line, "fix the key", "keys")
