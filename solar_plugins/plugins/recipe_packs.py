"""Recipe packs: list and copy the recipes that are installed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from solar_plugins.errors import ArgsError, PluginError
from solar_plugins.plugins.manager import registered
from solar_plugins.plugins.markers import hookimpl
from solar_plugins.text import close_match


@dataclass(frozen=True, slots=True)
class RecipePack:
    """A directory of recipes.

    Args:
        name: Unique; recipes are listed as ``<name>/<path in the directory>``.
        directory: The directory.
    """

    name: str
    directory: Path

    def __post_init__(self) -> None:
        if not isinstance(self.directory, Path):
            raise PluginError(f"recipe pack {self.name}: directory is {self.directory!r:.100}, expected a pathlib.Path")


def recipe_directory() -> Path:
    """The built-in recipes: ``solar_plugins/_recipes`` in an installed wheel, ``recipes/`` in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


@hookimpl
def register_recipes() -> list[RecipePack]:
    """The built-in recipes."""
    return [RecipePack("solar_plugins", recipe_directory())]


def recipe_packs() -> dict[str, RecipePack]:
    """All registered recipe packs by name."""
    return registered("register_recipes", RecipePack)


def recipe_files(directory: Path) -> Iterator[Path]:
    """All recipes below ``directory``, sorted by path."""
    yield from sorted(path for path in directory.rglob("*.yml") if path.is_file())


def recipe_summary(path: Path) -> str:
    """The first sentence of a recipe's head comment."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def recipe_needs(path: Path) -> str:
    """The requirements in a recipe's head comment, up to the first bracket or semicolon: ``8 x 80 GB GPU``."""
    needs = re.search(r"^# needs: +([^;(\n]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return needs[1].strip() if needs else ""


def find_recipe(packs: Mapping[str, RecipePack], name: str) -> tuple[RecipePack, Path]:
    """The recipe with a name: as `solar recipes list` prints it, or its last parts if only one recipe has them.

    Raises:
        ArgsError: No recipe has this name, or several have it.
    """
    every = {
        f"{pack}/{path.relative_to(one.directory).as_posix()}": (one, path)
        for pack, one in packs.items()
        for path in recipe_files(one.directory)
    }
    exact = [full for full in every if full == name or full.partition("/")[2] == name]
    found = exact or [full for full in every if full.endswith(f"/{name}")]
    if len(found) != 1:
        close = close_match(name, [*(path.name for _, path in every.values()), *every])
        hint = f"give one of {', '.join(found)}" if found else f"did you mean {close}?" if close else "see the list"
        raise ArgsError(f"{name}: {len(found) or 'no'} recipes have this name; {hint} (solar recipes list)")
    return every[found[0]]


def files_of_recipe(pack: RecipePack, recipe: Path) -> list[Path]:
    """A recipe with the files of its pack that it needs.

    These are the stages of a pipeline, the recipes of its `solar maths`, DeepSpeed files, and scripts with the modules
    next to them. Of the recipes that a head comment names as the stages before and after, none is needed.
    """
    found, waiting = list[Path](), [recipe]
    while waiting:
        path = waiting.pop(0)
        if path in found:
            continue
        found.append(path)
        if path.suffix == ".py":
            waiting += sorted(path.parent.glob("*.py"))
        if path.suffix == ".yml":
            text = path.read_text(encoding="utf-8")
            named = re.findall(r"(?<![\w./])recipes/([\w./-]+\.(?:json|py))\b", text)
            named += re.findall(r"^[^#\n]*\bsolar maths recipes/([\w./-]+\.yml)", text, re.MULTILINE)
            needed = [
                *(path.parent / name for name in _stage_files(text, path)),
                *(pack.directory / name for name in named),
            ]
            waiting += [
                one for one in needed if one.is_file() and one.resolve().is_relative_to(pack.directory.resolve())
            ]
    return found


def _stage_files(text: str, path: Path) -> Iterator[str]:
    """The files that a pipeline names, relative to it; nothing for another file."""
    from solar_plugins.storage.untrusted import parse_yaml

    content = parse_yaml(text, str(path))
    stages = content.get("stages") if isinstance(content, Mapping) else None
    for stage in stages if isinstance(stages, list) else ():
        for kind in ("recipe", "merge", "mixture") if isinstance(stage, Mapping) else ():
            if isinstance(stage.get(kind), str):
                yield stage[kind]


def copy_recipes(packs: Mapping[str, RecipePack], target: Path, names: Sequence[str] = ()) -> list[Path]:
    """Copy the files of all packs to ``target``, or some recipes with what they need, and return the new paths.

    Built-in recipes go to its top level, other packs to subdirectories. Where built-in recipes refer to each other, as
    in ``deepspeed: recipes/deepspeed/zero3_bf16.json``, the copies say ``target`` instead of ``recipes``.

    Args:
        packs: By name.
        target: A directory, new or not.
        names: Of recipes, as for `find_recipe`; empty: everything.

    Raises:
        ArgsError: The target is not a directory, a name is unknown, or a file exists with other content. Nothing is
            copied then.
    """
    # Imported late: `solar plan` imports this module and must start fast.
    from solar_plugins.storage.atomic import write_file

    if target.exists() and not target.is_dir():
        raise ArgsError(f"{target}: is a file, not a directory; give the name of a directory for the recipes")
    if names:
        chosen = [find_recipe(packs, name) for name in names]
        sources = [(pack, source) for pack, recipe in chosen for source in files_of_recipe(pack, recipe)]
    else:
        sources = [
            (pack, source)
            for pack in packs.values()
            for source in sorted(pack.directory.rglob("*"))
            if source.is_file() and "__pycache__" not in source.parts
        ]
    moves = [
        (source, target / ("" if pack.name == "solar_plugins" else pack.name) / source.relative_to(pack.directory))
        for pack, source in sources
    ]
    contents = {copy: _content(source, target) for source, copy in moves}
    for copy, content in contents.items():
        if copy.exists() and copy.read_bytes() != content:
            raise ArgsError(
                f"{copy}: exists with other content; nothing was copied. Move it away, or choose another directory"
            )
    for copy, content in contents.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_file(copy, content)  # The next copy would refuse a partial recipe as one with other content.
    return list(contents)


def _content(source: Path, target: Path) -> bytes:
    content = source.read_bytes()
    if source.suffix not in (".yml", ".md") or not source.is_relative_to(recipe_directory()):
        return content
    return re.sub(rb"(?<![\w./])recipes/(?=\w)", lambda _: os.fsencode(target) + b"/", content)
