"""Recipes: find them, read them, copy them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from solar_plugins.errors import ArgsError, PluginError
from solar_plugins.plugins.manager import registered
from solar_plugins.plugins.markers import hookimpl


@dataclass(frozen=True, slots=True)
class RecipePack:
    """A directory of recipes.

    Args:
        name: Unique; recipes are listed as ``<name>/<path in the directory>``.
        directory: Where they lie.
    """

    name: str
    directory: Path

    def __post_init__(self) -> None:
        if not isinstance(self.directory, Path):
            raise PluginError(f"recipe pack {self.name}: directory is {self.directory!r:.100}, expected a pathlib.Path")


def recipe_directory() -> Path:
    """Our own recipes: ``solar_plugins/_recipes`` in an installed wheel, ``recipes/`` in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


@hookimpl
def register_recipes() -> list[RecipePack]:
    """The built-in recipes."""
    return [RecipePack("solar_plugins", recipe_directory())]


def recipe_packs() -> dict[str, RecipePack]:
    """Every registered directory of recipes by name."""
    return registered("register_recipes", RecipePack)


def recipe_files(directory: Path) -> Iterator[Path]:
    """Every recipe below ``directory``, in order of its path."""
    yield from sorted(path for path in directory.rglob("*.yml") if path.is_file())


def recipe_summary(path: Path) -> str:
    """The first sentence of a recipe's head comment."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def recipe_needs(path: Path) -> str:
    """What the head of a recipe says that it needs, up to the first bracket or semicolon: ``8 x 80 GB GPU``."""
    needs = re.search(r"^# needs: +([^;(\n]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return needs[1].strip() if needs else ""


def copy_recipes(packs: Mapping[str, RecipePack], target: Path) -> list[Path]:
    """Copy every pack's files to ``target`` and return the new paths.

    Ours go to its top. Where they name each other, as in ``deepspeed: recipes/deepspeed/zero3_bf16.json``, the copies
    name ``target`` in place of ``recipes``.

    Raises:
        ArgsError: The target is no folder or is called as a recipe, or a file is there already with other content;
            nothing is copied then.
    """
    from solar_plugins.storage.files import (
        write_file,
    )  # Here, because `solar plan` imports this module and must start fast.

    if target.suffix in (".yml", ".yaml"):
        raise ArgsError(
            f"{target}: names a recipe, but all recipes are copied, because they name each other; give the name of a "
            "folder, such as recipes"
        )
    if target.exists() and not target.is_dir():
        raise ArgsError(f"{target}: is a file, not a folder; give the name of a folder for the recipes")
    moves = [
        (source, target / (Path() if name == "solar_plugins" else Path(name)) / source.relative_to(pack.directory))
        for name, pack in packs.items()
        for source in sorted(pack.directory.rglob("*"))
        if source.is_file() and "__pycache__" not in source.parts
    ]
    contents = {copy: _content(source, target) for source, copy in moves}
    for copy, content in contents.items():
        if copy.exists() and copy.read_bytes() != content:
            raise ArgsError(
                f"{copy}: exists with other content; nothing was copied. Move it away, or choose another folder"
            )
    for copy, content in contents.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_file(copy, content)  # Half a recipe would be refused as somebody else's by the next copy.
    return list(contents)


def _content(source: Path, target: Path) -> bytes:
    content = source.read_bytes()
    if source.suffix not in (".yml", ".md") or not source.is_relative_to(recipe_directory()):
        return content
    return re.sub(rb"(?<![\w./])recipes/(?=\w)", lambda _: os.fsencode(target) + b"/", content)
