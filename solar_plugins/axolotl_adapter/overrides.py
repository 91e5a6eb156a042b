"""Keys of the ``solar:`` block on Axolotl's command line: put where they belong, or refused where Axolotl loses them.

Two programs read that command line. ``python -m axolotl.cli.train`` and its siblings (Fire) write any option to the
recipe. The front end ``axolotl train`` (click) knows Axolotl's own keys only; it hands other options to the launcher,
which refuses them, and drops them where it launches nothing (``--launcher python``, Ray).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from solar_plugins.errors import ArgsError
from solar_plugins.solar_block import command_line_spelling

OPTION = re.compile(r"(?:-+(?=solar[._-])|(?=solar(?:\.|__)[\w.]+=))(?P<name>[\w.-]+)")
"""An option for the block in any spelling, or Hydra's form of one, which Fire finds wrong only after the training."""


def with_overrides(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with the command line's keys of the ``solar:`` block in place.

    >>> with_overrides({"solar": {"init": {"strategy": "dus"}, "init__drop_layers": 6}})
    {'solar': {'init': {'strategy': 'dus', 'drop_layers': 6}}}
    """
    block = recipe.get("solar")
    return {**recipe, "solar": _expanded(block)} if isinstance(block, Mapping) else dict(recipe)


def _expanded(block: Mapping[str, Any]) -> dict[str, Any]:
    """Axolotl splits an option at the first double underscore only (``load_cfg`` in axolotl/cli/config.py)."""
    plain = {key: _plain(value) for key, value in block.items() if "__" not in str(key)}
    for key, value in block.items():
        if "__" in str(key):
            outer, inner = str(key).split("__", 1)
            nested = plain.get(outer)
            plain[outer] = _expanded({**(nested if isinstance(nested, Mapping) else {}), inner: value})
    return plain


def _plain(value: Any) -> Any:
    """Axolotl's own kind of map has every attribute, and pydantic takes it for a model by one of them."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def refuse_lost_options(arguments: Sequence[str]) -> None:
    """Refuse an option for the ``solar:`` block that Axolotl does not write to the recipe.

    Args:
        arguments: Those of this process, `sys.argv`.

    Raises:
        ArgsError: There is one. The recipe's own plan would be trained.
    """
    context = click.get_current_context(silent=True)
    if context is not None and _is_axolotls(context):
        module = f"axolotl.cli.{str(context.info_name).replace('-', '_')}"
        _refuse_first(
            context.args,
            f"`{context.command_path}` ignores options for the solar: block; run `python -m {module} RECIPE "
            f"{{spelling}}` (or `accelerate launch -m {module} ...`), or change the recipe",
        )
    elif Path(*arguments[:1]).parent.parts[-2:] == ("axolotl", "cli"):
        _refuse_first(_lost_by_fire(arguments[1:]), "Axolotl ignores this; write {spelling}, before any bare --")


def _is_axolotls(context: click.Context) -> bool:
    return type(context.find_root().command).__module__.startswith("axolotl.")


def _lost_by_fire(arguments: Sequence[str]) -> list[str]:
    """Fire keeps what stands behind the last bare ``--`` to itself, and reads a dot as a part of a key's name."""
    cut = len(arguments) - 1 - arguments[::-1].index("--") if "--" in arguments else len(arguments)
    return [text for text in arguments[:cut] if not re.match(r"-+solar(?:__|--)", text)] + list(arguments[cut:])


def _refuse_first(arguments: Sequence[str], text: str) -> None:
    for argument in arguments:
        if found := OPTION.match(argument):
            spelling = command_line_spelling(found["name"]) + argument[found.end() :]
            raise ArgsError(f"{argument}: {text.format(spelling=spelling)}")
