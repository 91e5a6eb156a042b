"""Keys and command-line options that Axolotl would silently ignore: misspelled keys, and options for ``solar:``.

Axolotl drops every key that no schema knows. Two programs read its command line. ``python -m axolotl.cli.train`` and
its siblings (Fire) write any option to the recipe. The front end ``axolotl train`` (click) knows only Axolotl's own
keys; it passes other options to the launcher, which rejects them, and drops them where it launches nothing
(``--launcher python``, Ray).
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import click
from pydantic import BaseModel

from solar_plugins.errors import ArgsError
from solar_plugins.solar_block import command_line_spelling
from solar_plugins.text import close_match

MIN_SIMILARITY = 0.85
"""difflib ratio from which an unknown key counts as misspelled: ``sequence_length`` for ``sequence_len`` has 0.89; a
user's own key rarely comes so close."""

SET_BY_COMMANDS = frozenset({"axolotl_config_path", "inference"})
"""Keys that no schema has: Axolotl's commands write them to the recipe."""

OPTION = re.compile(r"(?:-+(?=solar[._-])|(?=solar(?:\.|__)[\w.]+=))(?P<name>[\w.-]+)")
"""An option for ``solar:`` in any spelling, or in Hydra's form, which Fire rejects only after the training."""


def refuse_misspelled_keys(recipe: Mapping[str, Any], schema: type[BaseModel]) -> None:
    """Reject a key that no schema knows if it is close to a key that a schema knows.

    Any other unknown key is allowed: plugins read their own keys from the raw recipe, and people keep YAML anchors
    there.

    Args:
        recipe: The keys as Axolotl is about to validate them.
        schema: Axolotl's, merged with those of all plugins (``merge_input_args`` in axolotl/integrations/config.py).

    Raises:
        ArgsError: There is one. The run would use that key's default.
    """
    for path, key, known in unknown_keys(recipe, schema):
        close = close_match(key, known, MIN_SIMILARITY)
        if close:
            raise ArgsError(
                f"{path}{key}: unknown key, which Axolotl would ignore; did you mean {path}{close}? Fix its "
                "spelling, or remove it"
            )


def unknown_keys(
    keys: Mapping[str, Any], schema: type[BaseModel], path: str = ""
) -> Iterator[tuple[str, str, list[str]]]:
    """The keys that a schema does not know: the path of the map, the key, and the keys that are known there."""
    fields = schema.model_fields
    aliases = {str(name) for field in fields.values() for name in (field.alias, field.validation_alias) if name}
    known = [*fields, *aliases]
    for key, value in keys.items():
        name = str(key)
        if name not in known and name not in SET_BY_COMMANDS and name != "solar":
            yield path, name, known
        inner = _model_in(fields[name].annotation) if name in fields else None
        if inner is not None and isinstance(value, Mapping):
            yield from unknown_keys(value, inner, f"{path}{name}.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model of ``Model`` or ``Model | None``; None for anything else, such as a union of models."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    models = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    rest = [part for part in parts if part not in models and part is not type(None)]
    return models[0] if len(models) == 1 and not rest else None


def with_overrides(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with the command line's keys of the ``solar:`` block in place.

    >>> with_overrides({"solar": {"init": {"strategy": "dus"}, "init__drop_layers": 6}})
    {'solar': {'init': {'strategy': 'dus', 'drop_layers': 6}}}
    """
    block = recipe.get("solar")
    return {**recipe, "solar": _expanded(block)} if isinstance(block, Mapping) else dict(recipe)


def _expanded(block: Mapping[str, Any]) -> dict[str, Any]:
    """Axolotl splits an option only at the first double underscore (``load_cfg`` in axolotl/cli/config.py)."""
    found = {key: plain(value) for key, value in block.items() if "__" not in str(key)}
    for key, value in block.items():
        if "__" in str(key):
            outer, inner = str(key).split("__", 1)
            nested = found.get(outer)
            found[outer] = _expanded({**(nested if isinstance(nested, Mapping) else {}), inner: value})
    return found


def plain(value: Any) -> Any:
    """A copy with plain maps and lists. Axolotl's own mapping has every attribute: for pydantic it would be a model."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def refuse_lost_options(arguments: Sequence[str]) -> None:
    """Reject an option for the ``solar:`` block that Axolotl does not write to the recipe.

    Args:
        arguments: Those of this process, `sys.argv`.

    Raises:
        ArgsError: There is one. The run would ignore it.
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
    """Fire keeps all arguments after the last bare ``--`` to itself, and reads a dot as part of a key's name."""
    cut = len(arguments) - 1 - arguments[::-1].index("--") if "--" in arguments else len(arguments)
    return [text for text in arguments[:cut] if not re.match(r"-+solar(?:__|--)", text)] + list(arguments[cut:])


def _refuse_first(arguments: Sequence[str], text: str) -> None:
    for argument in arguments:
        if found := OPTION.match(argument):
            spelling = command_line_spelling(found["name"]) + argument[found.end() :]
            raise ArgsError(f"{argument}: {text.format(spelling=spelling)}")
