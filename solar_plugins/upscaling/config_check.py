"""What transformers' own config class makes of a deeper config: a check that shares no rule with the writer.

The writer and `solar verify`'s comparison with it follow the same table; a fault there would be in both. Here the depth
and every list with an entry a layer are those that the config class has after loading, properties included.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.unknown_keys import LISTS, PREDICTION, SPECIAL_TOKEN
from solar_plugins.upscaling.layer_plan import LayerPlan

LAYER_NUMBERS = re.compile(r"layer|_ind(?:ex|ices)$|_idxs?$")
"""Names of lists that hold layer numbers."""


def check_by_transformers(
    sources: Sequence[Path], upscaled: Path, model_type: str, plan: LayerPlan, trusted_keys: Collection[str] = ()
) -> str:
    """Load the configs with transformers' class for their model type and compare layer by layer.

    Args:
        sources: The folder with the base's config.json, and those of the plan's donors.
        upscaled: The folder with the upscaled model's config.json.
        model_type: Of all.
        plan: By which it was upscaled.
        trusted_keys: Config keys for which the user vouched; they stay as they are.

    Returns:
        One sentence: what transformers reads, or why it was not asked. The checkpoint's own code is never run.

    Raises:
        CheckpointError: transformers reads another depth, or another value for some layer, than the plan says.
    """
    if find_spec("transformers") is None:
        return "how transformers reads config.json was not checked: it is not installed"
    from transformers import __version__ as version
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return (
            f"how config.json is read was not checked: transformers {version} does not know model_type {model_type!r}, "
            "and the checkpoint's own code is not run"
        )
    config_class = CONFIG_MAPPING[model_type]
    try:
        before, *donors = (_as_loaded(config_class, source) for source in sources)
    except Exception as error:  # whatever a config class raises for a config that it does not like
        return (
            f"how config.json is read was not checked: transformers {version} cannot read the base's ({error!r:.200})"
        )
    try:
        after = _as_loaded(config_class, upscaled)
    except Exception as error:
        raise CheckpointError(
            f"config.json: transformers {version} reads the base's config, but not this one: {error!r:.500}"
        ) from None
    _require_depth(before, after, plan, version)
    judged = {key: value for key, value in before.items() if key not in trusted_keys and not PREDICTION.match(key)}
    followed = [
        key
        for key, value in judged.items()
        if _follows(key, [value, *(donor.get(key) for donor in donors)], after.get(key), plan, version)
    ]
    return f"transformers {version} reads {' and '.join([f'{len(plan)} layers', *sorted(followed)])} as the plan says"


def _as_loaded(config_class: Any, directory: Path) -> dict[str, Any]:
    """Every attribute of the decoder's config after loading, properties of its class included."""
    loaded = config_class.from_pretrained(directory).get_text_config(decoder=True)
    own = (vars(part) for part in type(loaded).__mro__ if part.__module__.startswith("transformers.models."))
    properties = {name for part in own for name, value in part.items() if isinstance(value, property)}
    names = {name for name in {*vars(loaded), *properties} if not name.startswith("_")}
    return {name: _value(loaded, name) for name in sorted({*names, "num_hidden_layers"})}


def _value(loaded: Any, name: str) -> Any:
    try:
        return getattr(loaded, name)
    except Exception:  # Some types refuse to give one value for a property that layers have each for itself.
        return None


def _require_depth(before: Mapping[str, Any], after: Mapping[str, Any], plan: LayerPlan, version: str) -> None:
    # Some types count two for each layer, so the proportion has to be right.
    was, now = before["num_hidden_layers"], after["num_hidden_layers"]
    if was % plan.base_layers or now != was // plan.base_layers * len(plan):
        raise CheckpointError(
            f"config.json: transformers {version} reads a depth of {now} from it, and of {was} from the base's; the "
            f"plan is {plan}. Some key says the depth under another name: make all of them agree, and upscale again"
        )


def _follows(key: str, values: Sequence[Any], after: Any, plan: LayerPlan, version: str) -> bool:
    """Whether a value has an entry a layer, and is as the plan says.

    Args:
        key: Of the value.
        values: Of the base and the plan's donors.
        after: Of the upscaled model.
        plan: The plan.
        version: Of transformers.
    """
    before = values[0]
    if (
        key in LISTS
        or SPECIAL_TOKEN.search(key)
        or not isinstance(before, list | tuple | str)
        or isinstance(after, int | float)
    ):
        return False
    numbers = not isinstance(before, str) and all(type(n) is int and 0 <= n < plan.base_layers for n in before)
    depths = (plan.base_layers, *(donor.num_layers for donor in plan.donors))
    each = all(isinstance(one, list | tuple | str) and len(one) == n for one, n in zip(values, depths, strict=True))
    by_layer = [values[layer.model][layer.source] for layer in plan.layers] if each else None
    by_number = (
        [new for new, layer in enumerate(plan.layers) if layer.source in values[layer.model]] if numbers else None
    )
    if isinstance(before, str) and (by_layer is None or before == after):
        return False
    is_numbered = bool(numbers and before and LAYER_NUMBERS.search(key))
    if by_layer is None and not is_numbered:
        return False
    found = list(after or ())
    if found not in (by_layer, by_number if is_numbered else None):
        raise CheckpointError(
            f"config.json: transformers {version} reads {key} as {_short(found)}, but by the plan {plan} and the "
            f"base's {_short(before)} it is {_short(by_layer or by_number)}; upscale again, with a version of this "
            "package that knows the key"
        )
    return True


def _short(values: Sequence[Any] | None) -> str:
    return f"{list(values or ())!r:.300}"
