"""Our record in an upscaled model's config.json: what it was made from, and by which plan. Pure.

The record survives training, LoRA merging and upload, so it tells whether a recipe's base came out of that very recipe.
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
"""Where the record stands in the config."""


def provenance(
    base_name: str, base_revision: str | None, plan: LayerPlan, trusted_keys: Sequence[str] = ()
) -> dict[str, Any]:
    """Our record in the config, which says where the model comes from.

    Args:
        base_name: Of the base, fit for publication.
        base_revision: Of a hub model.
        plan: By which it was upscaled.
        trusted_keys: Config keys for which the user vouched.
    """
    record = {"base_model": base_name, "base_revision": base_revision, "plan": plan.to_dict()}
    return {PROVENANCE_KEY: record | ({"trusted_config_keys": list(trusted_keys)} if trusted_keys else {})}


def recorded_trust(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The config keys for which the user vouched when this model was upscaled."""
    record = config.get(PROVENANCE_KEY)
    keys = record.get("trusted_config_keys") if isinstance(record, Mapping) else None
    return tuple(key for key in keys if isinstance(key, str)) if isinstance(keys, list) else ()


def recorded_plan(config: Mapping[str, Any]) -> LayerPlan | None:
    """The plan by which this model was upscaled before, from our record in its config, or None.

    Raises:
        CheckpointError: There is a record, but it cannot be read.
    """
    record = config.get(PROVENANCE_KEY)
    if record is None:
        return None
    try:
        return LayerPlan.from_dict(record["plan"])
    except (SolarError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"config.json: the record {PROVENANCE_KEY!r} cannot be read ({error}); restore or remove it"
        ) from None


def plan_of_model(decoder: Decoder, name: str) -> LayerPlan | None:
    """As `recorded_plan`, of a model that is used as it is; its layers must be those of the plan.

    Args:
        decoder: Of the model.
        name: What to call it in an error.

    Raises:
        ArgsError: It has another depth than its record, as after a merge or pruning that kept the record.
        CheckpointError: As `recorded_plan`.
    """
    plan = recorded_plan(decoder.config)
    if plan is not None and decoder.num_layers != len(plan):
        raise ArgsError(
            f"base_model: {name} has {decoder.num_layers} layers, but its own record says {plan}; restore its "
            f"config.json, or remove {PROVENANCE_KEY!r} from it if another tool changed the layers since"
        )
    return plan


def _is_recorded(asked: LayerPlan, plan: LayerPlan, config: Mapping[str, Any]) -> bool:
    from solar_plugins.upscaling.donors import is_recorded  # Late: few plans have donors.

    record = config[PROVENANCE_KEY]
    return is_recorded(asked, plan, Donor(str(record.get("base_model")), record.get("base_revision")))


class Growth(NamedTuple):
    """What a recipe's ``solar.init`` means for its base."""

    plan: LayerPlan
    already_grown: bool
    """Whether the base came out of this very plan, so that it is used as it is."""


def requested_plan(decoder: Decoder, name: str, init: InitArgs) -> Growth:
    """What ``solar.init`` means for a base: how it is upscaled, or that the recipe has upscaled it already.

    With ``axolotl inference recipe.yml --base-model=./trained`` the base is the recipe's own result; to grow that once
    more is not what is meant.

    Args:
        decoder: Of the recipe's ``base_model``.
        name: What to call that model in an error.
        init: ``solar.init`` of the recipe.

    Raises:
        ArgsError: The plan is impossible. Or the base was upscaled by another plan, so that nobody can say what the
            recipe means; or it has not the depth that its record says.
        CheckpointError: The record of its upscaling cannot be read.
    """
    plan = recorded_plan(decoder.config)
    if plan is None:
        return Growth(plan_of(init, decoder.num_layers), already_grown=False)
    asked = plan_of(init, plan.base_layers)
    if not (_is_recorded(asked, plan, decoder.config) if asked.donors else asked == plan):
        raise ArgsError(
            f"base_model: {name} was upscaled already ({plan}), and solar.init asks for another plan. To train "
            "it as it is, remove the solar: block; to upscale it once more, run `solar upscale` and name its result "
            "as base_model, without a solar: block"
        )
    plan_of_model(decoder, name)
    return Growth(plan, already_grown=True)
