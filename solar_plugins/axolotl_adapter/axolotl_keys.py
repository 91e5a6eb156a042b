"""Misspelt keys of Axolotl in a recipe: Axolotl drops every key that no schema has, without a word."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from solar_plugins.errors import ArgsError
from solar_plugins.text import close_match

MIN_SIMILARITY = 0.85
"""Of difflib. ``sequence_length`` is a misspelt ``sequence_len`` (0.89); a key of somebody's own is rarely so close."""

SET_BY_COMMANDS = frozenset({"axolotl_config_path", "inference"})
"""Keys that no schema has: Axolotl's commands write them to the recipe."""


def refuse_misspelt_keys(recipe: Mapping[str, Any], schema: type[BaseModel]) -> None:
    """Refuse a key that no schema knows and that is close to one that a schema knows.

    Any other unknown key is left alone: plugins read their own keys from the raw recipe, and people keep YAML
    anchors there.

    Args:
        recipe: The keys as Axolotl is about to validate them.
        schema: Axolotl's, merged with those of all plugins (``merge_input_args`` in axolotl/integrations/config.py).

    Raises:
        ArgsError: There is one. The run would go on with that key's default.
    """
    for path, key, known in _unknown_keys(recipe, schema):
        close = close_match(key, known, MIN_SIMILARITY)
        if close:
            raise ArgsError(
                f"{path}{key}: unknown key, which Axolotl would ignore; did you mean {path}{close}? Fix its "
                "spelling, or remove it"
            )


def _unknown_keys(
    keys: Mapping[str, Any], schema: type[BaseModel], path: str = ""
) -> Iterator[tuple[str, str, list[str]]]:
    fields = schema.model_fields
    aliases = {str(name) for field in fields.values() for name in (field.alias, field.validation_alias) if name}
    known = [*fields, *aliases]
    for key, value in keys.items():
        name = str(key)
        if name not in known and name not in SET_BY_COMMANDS and name != "solar":
            yield path, name, known
        inner = _model_in(fields[name].annotation) if name in fields else None
        if inner is not None and isinstance(value, Mapping):
            yield from _unknown_keys(value, inner, f"{path}{name}.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The one model of ``Model`` or ``Model | None``; None where there is no model, or a choice."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    models = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    rest = [part for part in parts if part not in models and part is not type(None)]
    return models[0] if len(models) == 1 and not rest else None
