"""`solar recipes new-pack`: the files of a pip-installable package of recipes."""

from __future__ import annotations

import json
import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from solar_plugins.errors import ArgsError, SolarError
from solar_plugins.plugins.recipe_packs import recipe_directory, recipe_packs
from solar_plugins.sharing.gallery import GALLERY_FILE, read_gallery_file
from solar_plugins.storage.atomic import write_errors_explained, write_file

NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_][A-Za-z0-9]+)*")
MAX_NAME = 60
SAMPLE, SAMPLE_BASE = "solar_dus_qlora.yml", "mistralai/Mistral-7B-v0.1"
"""The built-in recipe that the sample is made of."""

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1.0"
description = "Recipes for solar_plugins"
readme = "README.md"
requires-python = ">=3.12"
# license = "Apache-2.0"    # see the README
dependencies = ["solar_plugins"]

[project.optional-dependencies]
dev = ["pytest"]

[project.entry-points.solar_plugins]
recipes = "{module}"

[tool.setuptools]
packages = ["{module}"]
package-data = {{ {module} = ["recipes/**"] }}
"""

MODULE = '''\
"""Recipes for solar_plugins. `solar recipes list` finds them through the entry point in pyproject.toml."""

from pathlib import Path

from solar_plugins.api import RecipePack, hookimpl


@hookimpl
def register_recipes() -> list[RecipePack]:
    """The recipes of this package."""
    return [RecipePack("{name}", Path(__file__).parent / "recipes")]
'''

SAMPLE_HEAD = """\
# A sample: upscale Mistral 7B to 48 layers, then continue pretraining with QLoRA on one GPU of 24 GB.
#
# needs:   1 x 24 GB GPU
# run:     accelerate launch -m axolotl.cli.train recipes/{name}/sample_qlora.yml

"""

TEST = '''\
"""Every recipe passes `solar recipes check`, and gallery.json names only recipes that exist."""

import json
from pathlib import Path

import {module}
import pytest
from solar_plugins.api import check_recipes

FOLDER = Path({module}.__file__).parent / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_recipe_has_no_errors(path):
    errors = [f"{{one.key}}: {{one.text}} -> {{one.fix}}" for one in check_recipes(path) if one.level == "error"]
    assert errors == []


def test_the_gallery_names_recipes_of_this_pack():
    named = json.loads((FOLDER / "gallery.json").read_text(encoding="utf-8"))["recipes"]
    assert RECIPES
    assert set(named) <= {{path.relative_to(FOLDER).as_posix() for path in RECIPES}}
'''

README = """\
# {name}

Recipes for [Axolotl](https://github.com/axolotl-ai-cloud/axolotl) with `solar_plugins`.

```bash
pip install -e '.[dev]'     # users: pip install {name}
solar recipes list          # names these recipes next to the built-in ones
solar recipes copy          # copies them to ./recipes/{name}
solar recipes gallery       # a page of all installed recipes
pytest                      # checks every recipe
```

`{module}/recipes/` holds the recipes; replace the sample with yours. The first line of a recipe is its summary.
`gallery.json` states what was run of each recipe, where, when and with what result, the GPUs that it is for, and the
`config.json` of bases, so that layers and memory are known without the Hub. State only what you ran.

## License

Not chosen yet. Add a `LICENSE` file and `license = "..."` in `pyproject.toml` for the recipes. It does not cover the
models: a model is covered by the licenses of its base and of its datasets, so name them here.
"""

GITIGNORE = "__pycache__/\n*.egg-info/\nbuild/\ndist/\n.venv/\n"


def new_pack(name: str, directory: Path | None = None) -> list[Path]:
    """Write the files of a package of recipes, and return their paths.

    Args:
        name: Of the package and of the pack: letters, digits, and single ``-`` or ``_`` between them.
        directory: Where; default: a new directory of this name in the working directory.

    Raises:
        ArgsError: The name is impossible or taken, or the directory exists and is not empty.
        SolarError: A file cannot be written.
    """
    module = _module_of(name)
    top = directory if directory is not None else Path(name)
    if top.exists() and (not top.is_dir() or any(top.iterdir())):
        what = "is not empty" if top.is_dir() else "is a file"
        raise ArgsError(
            f"{top}: {what}; expected a new or empty directory. Give another one: new-pack {name} DIRECTORY"
        )
    sample = (recipe_directory() / SAMPLE).read_text(encoding="utf-8")
    base = dict(read_gallery_file(recipe_directory()).bases[SAMPLE_BASE])
    stated = {"status": "validated", "command": "pytest", "note": "not run yet; state here what you ran"}
    gallery = {
        "format": 1,
        "bases": {SAMPLE_BASE: base},
        "gpus": {"sample_qlora.yml": "1x24GB"},
        "recipes": {"sample_qlora.yml": stated},
    }
    texts = {
        "pyproject.toml": PYPROJECT,
        "README.md": README,
        ".gitignore": GITIGNORE,
        f"{module}/__init__.py": MODULE,
        "tests/test_recipes.py": TEST,
    }
    contents = {path: text.format(name=name, module=module) for path, text in texts.items()}
    contents[f"{module}/recipes/sample_qlora.yml"] = _sample(sample, name)
    contents[f"{module}/recipes/{GALLERY_FILE}"] = json.dumps(gallery, indent=2) + "\n"
    with write_errors_explained(top, "package", "give a directory that you may write to", SolarError):
        for path, text in contents.items():
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            write_file(top / path, text.encode())
    return [top / path for path in contents]


def _sample(text: str, name: str) -> str:
    """The built-in recipe with a head and outputs of its own."""
    body = text[text.index("# --- model") :].replace(SAMPLE.removesuffix(".yml"), f"{name}_sample")
    body = re.sub(r"  # (?:paper|ours).*$", "", body, flags=re.MULTILINE)
    return SAMPLE_HEAD.format(name=name) + body


def _module_of(name: str) -> str:
    """The importable name of a package.

    Raises:
        ArgsError: It is none, or taken.
    """
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ArgsError(
            f"{name!r:.80} cannot be the name of a package; expected a letter, then letters, digits, and single - or _ "
            f"between them, at most {MAX_NAME} characters, such as my-recipes"
        )
    module = name.lower().replace("-", "_")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names:
        raise ArgsError(f"{name}: {module} is a module of Python itself; give another one, such as {name}-recipes")
    taken = next((pack for pack in recipe_packs() if pack.lower().replace("-", "_") == module), None)
    if taken is not None or find_spec(module) is not None:
        what = f"the recipe pack {taken}" if taken else f"the package {module}"
        raise ArgsError(f"{name}: {what} is installed already; give another name, or uninstall it")
    return module
