"""The ``solar:`` block of a recipe: its schema, and the messages for invalid values in any schema of this package."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from solar_plugins.errors import ArgsError
from solar_plugins.plugins.manager import names
from solar_plugins.text import close_match


class InitArgs(BaseModel):
    """``solar.init``: the name of a strategy, the arguments of that strategy, and how copies are initialized."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)

    strategy: str = Field(description="a registered upscaling strategy, such as dus")
    trust_config_keys: list[str] | None = Field(
        None,
        description="keys of the base's config.json to trust: you have checked that they do not describe individual "
        "layers, or that their values also fit the deeper model",
    )

    duplicates: Any = Field(
        None,
        description="how to initialize the second and later copies of a base layer: a registered initializer, such as "
        "identity, or a map with its arguments: {initializer: scaled, factor: 0.5}; default: the strategy decides",
    )

    @property
    def trusted_keys(self) -> tuple[str, ...]:
        """``trust_config_keys``; empty if the recipe has none."""
        return tuple(self.trust_config_keys or ())


class DataArgs(BaseModel):
    """``solar.data``: how to read datasets of ``type: solar_plugins.<formatter>``, and what to do with bad rows."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    bad_rows: Literal["drop", "stop"] = Field(
        default="drop", description="drop bad rows, or stop at the first dataset that has one"
    )
    max_bad_share: float = Field(
        default=0.02, ge=0, le=1, description="stop if the share of bad rows in a dataset is larger"
    )
    examples_per: Literal["answer", "conversation"] = Field(
        default="answer",
        description=(
            "answer: one example for each assistant turn, with all earlier turns as its prompt; conversation: one "
            "example for each conversation, whose loss covers all assistant turns, with EOS after the last one only"
        ),
    )


def refuse_bool(value: object) -> object:
    """Refuse true and false where a number is expected: pydantic would turn YAML's ``yes`` into 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


NoTruthValue = BeforeValidator(refuse_bool)


class TrainArgs(BaseModel):
    """``solar.train``: which parameters are trained, depending on the layer plan."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    layers: Literal["all", "new", "seam"] = Field(
        description="the decoder layers to train: all; new: second and later copies of a base layer, identity layers, "
        "layers of donors; seam: the layers around each seam"
    )
    around: Annotated[int, NoTruthValue, Field(ge=1)] | None = Field(
        None, description="with layers: seam, the number of layers to train on each side of each seam"
    )
    embeddings: bool | None = Field(None, description="train the embeddings; default: only with layers: all")
    norms: bool | None = Field(
        None, description="train the norms outside the trained layers; default: only with layers: all"
    )
    lm_head: bool | None = Field(None, description="train the head; default: only with layers: all")
    lr_scale: dict[Literal["old"], Annotated[float, NoTruthValue, Field(gt=0, lt=math.inf)]] | None = Field(
        None, min_length=1, description="{old: 0.1}: train the base's own parameters at 0.1 times the learning rate"
    )

    @model_validator(mode="after")
    def _around_belongs_to_seam(self) -> Self:
        if (self.around is None) == (self.layers == "seam"):
            raise ValueError("layers: seam needs around, such as around: 2, and no other value of layers takes it")
        return self


class SolarArgs(BaseModel):
    """The ``solar:`` block."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True, defer_build=True)

    init_args: InitArgs | None = Field(
        None, alias="init", description="how to upscale the base; without it the base is not changed"
    )
    dpo: str | None = Field(None, min_length=1, description="named settings for preference training, such as sdpo")
    train: TrainArgs | None = Field(None, description="which parameters to train; default: Axolotl's own keys decide")
    data: DataArgs | None = Field(None, description="how to read datasets, and what to do with bad rows")
    cache_dir: str | None = Field(
        None,
        min_length=1,
        description="directory for upscaled checkpoints; default: $HF_HOME/solar_plugins, next to the hub cache",
    )
    copies: bool | None = Field(
        None,
        alias="copy",
        description="copy all weights, even where the file system could share blocks with the base; default: false",
    )

    @property
    def init(self) -> InitArgs:
        """``solar.init``, for callers that require it.

        Raises:
            ArgsError: The block does not have it.
        """
        if self.init_args is None:
            raise ArgsError("solar.init: missing; the recipe does not upscale its base")
        return self.init_args

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        if self.init_args is None and self.train is None and self.dpo is None and self.data is None:
            raise ValueError("expected at least one of the keys init, train, dpo, data")
        return self


KEYS = tuple(sorted(field.alias or name for name, field in SolarArgs.model_fields.items()))
PARTS: Mapping[str, type[BaseModel]] = {"train": TrainArgs, "data": DataArgs}

PART_OF_BLOCK = re.compile(rf"solar[_-](?:{'|'.join(KEYS)})(?![a-z])")
"""A top-level recipe key that was meant for the block; Axolotl turns ``--solar-init-drop-layers`` into one."""


def parse_solar_block(recipe: Mapping[str, Any]) -> SolarArgs | None:
    """Validate the ``solar:`` block of a recipe. None if it has no block.

    Args:
        recipe: All keys of the recipe.

    Raises:
        ArgsError: The block is empty, has an unknown or missing key or a value of the wrong type; or a key of the
            recipe looks like a misspelled ``solar:`` or a part of it, which Axolotl would silently ignore.
    """
    _refuse_misspelt(recipe)
    if "solar" not in recipe:
        return None
    block = recipe["solar"]
    if not isinstance(block, Mapping):
        raise ArgsError(
            f"solar: {block!r:.200} is not a map; expected for example\n"
            "  solar:\n    init: {strategy: dus, drop_layers: 8}"
        )
    try:
        return SolarArgs.model_validate(block)
    except ValidationError as error:
        parts = {key: part.model_fields for key, part in PARTS.items()}
        raise ArgsError(invalid(error, "solar.", KEYS, parts)) from None


def command_line_spelling(key: str) -> str:
    """The Axolotl command-line option that sets a key of the block.

    >>> command_line_spelling("solar.init.drop_layers"), command_line_spelling("solar_init_drop_layers")
    ('--solar__init__drop_layers', '--solar__init__drop_layers')
    """
    name = re.sub(r"^solar_+", "solar__", key.replace(".", "__").replace("-", "_"))
    return "--" + re.sub(rf"^(solar__(?:{'|'.join(KEYS)}))_+", r"\1__", name)


def _refuse_misspelt(recipe: Mapping[str, Any]) -> None:
    """Refuse top-level keys that were meant for the block. Keys of other packages are left alone."""
    has_block, lists_us = "solar" in recipe, "solar_plugins.SolarPlugin" in str(recipe.get("plugins"))
    for key in map(str, recipe):
        if key.startswith(("solar__", "solar.")) or ((has_block or lists_us) and PART_OF_BLOCK.match(key)):
            raise ArgsError(
                f"{key}: unknown key, which Axolotl would silently ignore. In a recipe or a sweep, write the entire "
                f"`solar:` block; on the command line, write {command_line_spelling(key)}"
            )
        if has_block or not lists_us:
            continue
        if key.lower().startswith("solar") or close_match(key, ["solar"], 0.8):
            raise ArgsError(f"{key}: unknown key, which Axolotl would silently ignore; did you mean `solar:`?")


def invalid(
    error: ValidationError,
    where: str = "",
    known: Iterable[str] = (),
    parts: Mapping[str, Iterable[str]] = MappingProxyType({}),
    *,
    nested: bool = True,
) -> str:
    """The message for values that a pydantic model rejects: a line for each key, with the value and what is expected.

    Args:
        error: Pydantic's.
        where: Prefix of each key, such as ``solar.``.
        known: The keys of the model.
        parts: The keys of the models inside it, by key.
        nested: False names top-level keys only, and merges the errors that a key of several types has.
    """
    lines: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False):
        keys = detail["loc"] if nested else detail["loc"][:1]
        path = (where + ".".join(map(str, keys))).rstrip(".")
        if detail["type"] == "extra_forbidden":
            names_there = sorted(parts.get(str(keys[0]), known) if keys[1:] else known)
            close = close_match(str(keys[-1]), names_there)
            hint = f"did you mean {close}?" if close else f"known: {', '.join(names_there) or 'none'}"
            lines[f"{path}: unknown key; {hint}"] = []
        elif detail["type"] == "missing":
            strategies = path == "solar.init.strategy"
            choices = f"; expected one of {', '.join(names('register_init_strategies'))}" if strategies else ""
            lines[f"{path}: missing{choices}"] = []
        else:
            before = lines.setdefault(f"{path}: {detail['input']!r:.200} is not allowed; ", [])
            expected = _expected(detail["msg"])
            before.append(expected.removeprefix("expected ") if before else expected)
    return "\n".join(line + " or ".join(dict.fromkeys(expected)) for line, expected in lines.items())


def _expected(message: str) -> str:
    """Pydantic's message, starting with what was expected."""
    message = re.sub(r"^\w+ should (?:be|have) ", "expected ", message.removeprefix("Value error, "))
    message = re.sub(r", (?:unable to|got a number with) .*| or instance of \w+$", "", message)
    message = re.sub(r"^expected (?=less|greater)", "expected a value ", message)
    return message.replace("a valid dictionary", "a map of keys")
