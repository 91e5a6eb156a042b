"""Recipe packs: list and copy the recipes that are installed."""

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


def copy_recipes(packs: Mapping[str, RecipePack], target: Path) -> list[Path]:
    """Copy the files of all packs to ``target`` and return the new paths.

    Built-in recipes go to its top level, other packs to subdirectories. Where built-in recipes refer to each other, as
    in ``deepspeed: recipes/deepspeed/zero3_bf16.json``, the copies say ``target`` instead of ``recipes``.

    Raises:
        ArgsError: The target is not a directory or looks like a recipe, or a file exists with other content. Nothing is
            copied then.
    """
    # Imported late: `solar plan` imports this module and must start fast.
    from solar_plugins.storage.atomic import write_file

    if target.suffix in (".yml", ".yaml"):
        raise ArgsError(
            f"{target}: is the name of a recipe, but all recipes are copied, because they refer to each other; give "
            "the name of a directory, such as recipes"
        )
    if target.exists() and not target.is_dir():
        raise ArgsError(f"{target}: is a file, not a directory; give the name of a directory for the recipes")
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
