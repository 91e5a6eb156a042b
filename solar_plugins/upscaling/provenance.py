"""The record in an upscaled model's config.json: its base and its plan. Pure.

The record survives training, LoRA merging and upload. It shows whether a recipe's base is that recipe's own result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from solar_plugins.errors import ArgsError, CheckpointError, SolarError
from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import Donor, LayerPlan
from solar_plugins.upscaling.strategies import plan_of

PROVENANCE_KEY = "solar_plugins"
"""The config key of the record."""


def provenance(
    base_name: str, base_revision: str | None, plan: LayerPlan, trusted_keys: Sequence[str] = ()
) -> dict[str, Any]:
    """The record, as a config key.

    Args:
        base_name: Public name of the base.
        base_revision: The commit of a hub model.
        plan: The plan it was upscaled by.
        trusted_keys: Config keys that the user declared not to describe individual layers.
    """
    record = {"base_model": base_name, "base_revision": base_revision, "plan": plan.to_dict()}
    return {PROVENANCE_KEY: record | ({"trusted_config_keys": list(trusted_keys)} if trusted_keys else {})}


def recorded_trust(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The ``trust_config_keys`` with which this model was upscaled."""
    record = config.get(PROVENANCE_KEY)
    keys = record.get("trusted_config_keys") if isinstance(record, Mapping) else None
    return tuple(key for key in keys if isinstance(key, str)) if isinstance(keys, list) else ()


class Record(NamedTuple):
    """The record of an upscaled model."""

    base_name: Any
    """A text, unless someone has edited it."""
    base_revision: Any
    plan: LayerPlan


def read_record(config: Mapping[str, Any]) -> Record | None:
    """The record in a model's config; None without one.

    Raises:
        CheckpointError: It cannot be read.
    """
    record = config.get(PROVENANCE_KEY)
    if record is None:
        return None
    try:
        return Record(record.get("base_model"), record.get("base_revision"), LayerPlan.from_dict(record["plan"]))
    except (SolarError, KeyError, TypeError, AttributeError) as error:
        raise unreadable_record(error) from None


def unreadable_record(error: Exception) -> CheckpointError:
    """The message for a record that cannot be read."""
    why = " ".join(str(error).split())[:200]
    return CheckpointError(f"config.json: the record {PROVENANCE_KEY!r} cannot be read ({why}); restore or remove it")


def recorded_plan(config: Mapping[str, Any]) -> LayerPlan | None:
    """The plan that a model was upscaled by, from the record in its config; None without a record.

    Raises:
        CheckpointError: The record cannot be read.
    """
    record = read_record(config)
    return None if record is None else record.plan


def plan_of_model(decoder: Decoder, name: str) -> LayerPlan | None:
    """As `recorded_plan`, for a model that is used as it is; its depth must match the plan.

    Args:
        decoder: The model's decoder.
        name: The model's name in an error.

    Raises:
        ArgsError: Its depth differs from the record, as after a merge or pruning that kept the record.
        CheckpointError: As `recorded_plan`.
    """
    plan = recorded_plan(decoder.config)
    if plan is not None and decoder.num_layers != len(plan):
        raise ArgsError(
            f"base_model: {name} has {decoder.num_layers} layers, but its recorded plan is {plan}; restore its "
            f"config.json, or, if another tool has changed the layers, remove {PROVENANCE_KEY!r} from it"
        )
    return plan


class RequestedPlan(NamedTuple):
    """The plan of a recipe's ``solar.init``, for its base."""

    plan: LayerPlan
    already_grown: bool
    """Whether the base was already upscaled by this plan, so that it is used as it is."""


def requested_plan(decoder: Decoder, name: str, init: InitArgs) -> RequestedPlan:
    """The plan of ``solar.init`` for a base, and whether the base was already upscaled by it.

    With ``axolotl inference recipe.yml --base-model=./trained``, for example, the base is the recipe's own result and
    must not be upscaled again.

    Args:
        decoder: The decoder of the recipe's ``base_model``.
        name: The model's name in an error.
        init: ``solar.init`` of the recipe.

    Raises:
        ArgsError: The plan is impossible; or the base was upscaled by another plan, so the recipe is ambiguous; or its
            depth differs from its record.
        CheckpointError: The base's record cannot be read.
    """
    record = read_record(decoder.config)
    if record is None:
        return RequestedPlan(plan_of(init, decoder.num_layers), already_grown=False)
    plan = record.plan
    asked = plan_of(init, plan.base_layers)
    is_same = asked == plan
    if asked.donors:
        from solar_plugins.upscaling.donors import is_recorded  # Imported late: few plans have donors.

        is_same = is_recorded(asked, plan, Donor(str(record.base_name), record.base_revision))
    if not is_same:
        raise ArgsError(
            f"base_model: {name} was already upscaled ({plan}), but solar.init asks for another plan. To train it as "
            "it is, remove the solar: block; to upscale it again, run `solar upscale` and set base_model to the "
            "result, without a solar: block"
        )
    plan_of_model(decoder, name)
    return RequestedPlan(plan, already_grown=True)
