"""The ``solar:`` block of a recipe: its schema, and the one place where its errors become words."""

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
    """``solar.init``: a strategy's name, beside it that strategy's own arguments, and how copies start."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)

    strategy: str = Field(description="a registered initialisation strategy, such as dus")
    trust_config_keys: list[str] | None = Field(
        None,
        description="keys of the base's config for which you vouch that they say nothing about single layers, or that "
        "their value is right for the deeper model as it is",
    )

    duplicates: Any = Field(
        None,
        description="how the second and later occurrences of a base layer start: a registered initializer, such as "
        "identity, or a map with its arguments: {initializer: scaled, factor: 0.5}; default: as the strategy says",
    )

    @property
    def trusted_keys(self) -> tuple[str, ...]:
        """``trust_config_keys``; empty where the recipe has none."""
        return tuple(self.trust_config_keys or ())


class DataArgs(BaseModel):
    """``solar.data``: what to do with rows of ``type: solar_plugins.<formatter>`` that cannot be used."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    bad_rows: Literal["drop", "stop"] = Field(
        default="drop", description="drop bad rows, or stop at the first dataset with one"
    )
    max_bad_share: float = Field(
        default=0.02, ge=0, le=1, description="a dataset with a larger share of bad rows stops the run"
    )
    examples_per: Literal["answer", "conversation"] = Field(
        default="answer",
        description=(
            "an example for each answer of a conversation, whose prompt repeats the turns before it; or one for each "
            "conversation, whose loss covers all its answers, with EOS after the last one only"
        ),
    )


def _no_truth_value(value: object) -> object:
    """YAML's ``yes`` would become 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not a truth value")
    return value


NoTruthValue = BeforeValidator(_no_truth_value)


class TrainArgs(BaseModel):
    """``solar.train``: which parameters are trained, by the plan."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    layers: Literal["all", "new", "seam"] = Field(
        description="all; new: second and later copies of a base layer, identity layers, layers of donors; seam: those "
        "around a seam"
    )
    around: Annotated[int, NoTruthValue, Field(ge=1)] | None = Field(
        None, description="with layers: seam, how many layers on each side of each seam"
    )
    embeddings: bool | None = Field(None, description="the embeddings; default: with layers: all")
    norms: bool | None = Field(None, description="the norms outside of the trained layers; default: with layers: all")
    lm_head: bool | None = Field(None, description="the head; default: with layers: all")
    lr_scale: dict[Literal["old"], Annotated[float, NoTruthValue, Field(gt=0, lt=math.inf)]] | None = Field(
        None, min_length=1, description="{old: 0.1}: what the base had already trains at 0.1 times the learning rate"
    )

    @model_validator(mode="after")
    def _seam_has_a_width(self) -> Self:
        if (self.around is None) == (self.layers == "seam"):
            raise ValueError("around, such as 2 layers on each side of a seam, belongs to layers: seam, which needs it")
        return self


class SolarArgs(BaseModel):
    """The ``solar:`` block."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True, defer_build=True)

    init_args: InitArgs | None = Field(
        None, alias="init", description="how to upscale the base; without it the base is used as it is"
    )
    dpo: str | None = Field(None, min_length=1, description="named settings for preference training")
    train: TrainArgs | None = Field(
        None, description="which parameters are trained; default: as Axolotl's own keys say"
    )
    data: DataArgs | None = Field(None, description="what to do with rows that cannot be used")
    cache_dir: str | None = Field(
        None,
        min_length=1,
        description="where upscaled checkpoints are kept; default: solar_plugins beside the hub cache, under HF_HOME",
    )

    @property
    def init(self) -> InitArgs:
        """How to upscale the base, for those who cannot do without.

        Raises:
            ArgsError: The block does not say.
        """
        if self.init_args is None:
            raise ArgsError("solar.init: missing; the recipe does not upscale its base")
        return self.init_args

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.init_args is None and self.train is None and self.dpo is None and self.data is None:
            raise ValueError("it should have one of the keys init, train, dpo, data")
        return self


KEYS = tuple(sorted(field.alias or name for name, field in SolarArgs.model_fields.items()))
PARTS: Mapping[str, type[BaseModel]] = {"train": TrainArgs, "data": DataArgs}

PART_OF_BLOCK = re.compile(rf"solar[_-](?:{'|'.join(KEYS)})(?![a-z])")
"""A key at the top of a recipe that means one inside the block, as Axolotl reads ``--solar-init-drop-layers``."""


def parse_solar_block(recipe: Mapping[str, Any]) -> SolarArgs | None:
    """The checked ``solar:`` block of a recipe, or None where it has none.

    ``recipe`` is the whole recipe, with all keys of the block in their places.

    Raises:
        ArgsError: The block is empty, has an unknown or missing key or a value of the wrong type, or a key of the
            recipe looks like a misspelt ``solar:`` or a part of it. Axolotl would drop that one in silence.
    """
    _refuse_misspelt(recipe)
    if "solar" not in recipe:
        return None
    block = recipe["solar"]
    if not isinstance(block, Mapping):
        raise ArgsError(
            f"solar: {block!r} is no block; expected for example\n  solar:\n    init: {{strategy: dus, drop_layers: 8}}"
        )
    try:
        return SolarArgs.model_validate(block)
    except ValidationError as error:
        parts = {key: part.model_fields for key, part in PARTS.items()}
        raise ArgsError(render(error, "solar.", KEYS, parts)) from None


def command_line_spelling(key: str) -> str:
    """How an option of Axolotl's command line has to be written that sets a key of the block.

    >>> command_line_spelling("solar.init.drop_layers"), command_line_spelling("solar_init_drop_layers")
    ('--solar__init__drop_layers', '--solar__init__drop_layers')
    """
    name = re.sub(r"^solar_+", "solar__", key.replace(".", "__").replace("-", "_"))
    return "--" + re.sub(rf"^(solar__(?:{'|'.join(KEYS)}))_+", r"\1__", name)


def _refuse_misspelt(recipe: Mapping[str, Any]) -> None:
    """Refuse keys that mean the block or a part of it. What another package's keys mean is not ours to judge."""
    has_block, lists_us = "solar" in recipe, "solar_plugins.SolarPlugin" in str(recipe.get("plugins"))
    for key in map(str, recipe):
        if key.startswith(("solar__", "solar.")) or ((has_block or lists_us) and PART_OF_BLOCK.match(key)):
            raise ArgsError(
                f"{key}: unknown key, which Axolotl would drop in silence. Give the whole `solar:` block in a recipe "
                f"or a sweep, and {command_line_spelling(key)} on a command line"
            )
        if has_block or not lists_us:
            continue
        if key.lower().startswith("solar") or close_match(key, ["solar"], 0.8):
            raise ArgsError(f"{key}: unknown key, which Axolotl would drop in silence; did you mean `solar:`?")


def render(
    error: ValidationError, where: str, known: Iterable[str], parts: Mapping[str, Iterable[str]] = MappingProxyType({})
) -> str:
    """One line for each thing that pydantic found: the key as the user wrote it, what is wrong, what is allowed.

    Args:
        error: Pydantic's.
        where: What stands before a key.
        known: The keys that there are.
        parts: Those inside a key.
    """
    details: list[dict[str, Any]] = [dict(detail) for detail in error.errors(include_url=False)]
    keys_at = [parts.get(str(detail["loc"][0]), known) if detail["loc"][1:] else known for detail in details]
    return "\n".join(_render_one(detail, where, sorted(keys)) for detail, keys in zip(details, keys_at, strict=True))


def _render_one(detail: Mapping[str, Any], where: str, known: list[str]) -> str:
    path = (where + ".".join(str(part) for part in detail["loc"])).rstrip(".")
    if detail["type"] == "extra_forbidden":
        close = close_match(str(detail["loc"][-1]), known)
        hint = f"did you mean {close}?" if close else f"known: {', '.join(known) or 'none'}"
        return f"{path}: unknown key; {hint}"
    if detail["type"] == "missing":
        expected = f"; one of {', '.join(names('register_init_strategies'))}" if path == "solar.init.strategy" else ""
        return f"{path}: missing{expected}"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    return f"{path}: {detail['input']!r:.200} is not allowed; {message}"
