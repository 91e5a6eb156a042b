"""Check an upscaled config.json with transformers' own config class, independently of the writer.

The writer and `solar verify` use the same architecture table, so an error in the table would be in both. Here the depth
and every per-layer list are those of the loaded config object, including its properties.
"""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.unknown_keys import LISTS, PREDICTION, SPECIAL_TOKEN
from solar_plugins.upscaling.layer_plan import LayerPlan

LAYER_NUMBERS = re.compile(r"layer|_ind(?:ex|ices)$|_idxs?$")
"""Names of lists that hold layer numbers."""

NOT_NEEDED = ("torch", "scipy", "sklearn")
"""Packages that transformers imports if it finds them. That takes two thirds of its time; config classes do not need
them."""
CHILD = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); pickle.load(sys.stdin.buffer)()"
"""The other process; its input is written by `config_check`."""


@contextmanager
def config_check(
    sources: Sequence[Path], upscaled: Path, model_type: str, plan: LayerPlan, trusted_keys: Collection[str] = ()
) -> Iterator[Callable[[], str]]:
    """`check_by_transformers` while the caller does something else; yields a function that waits for the result.

    It runs in a process of its own, which does not import `NOT_NEEDED`. If transformers is already loaded here, or that
    process fails, it runs here.
    """
    here = partial(check_by_transformers, sources, upscaled, model_type, plan, trusted_keys)
    if "transformers" in sys.modules or find_spec("transformers") is None:
        yield here
        return
    # -P: the current directory, perhaps a checkpoint from a stranger, must not provide modules.
    command = [sys.executable, "-P", "-c", CHILD]
    with TemporaryFile() as request, TemporaryFile() as answer:
        request.write(pickle.dumps(sys.path) + pickle.dumps(partial(_answer, here)))
        request.seek(0)
        try:
            child = subprocess.Popen(command, stdin=request, stdout=answer, stderr=subprocess.DEVNULL)
        except OSError:
            yield here
            return
        with child:

            def result() -> str:
                if child.wait():
                    return here()
                answer.seek(0)
                found: str | CheckpointError = pickle.load(answer)
                if isinstance(found, CheckpointError):
                    raise found
                return found

            try:
                yield result
            finally:
                child.kill()


def _answer(check: Callable[[], str]) -> None:
    """Run the check in a process of its own, and write its result or its error to standard output."""
    import_less()
    with os.fdopen(os.dup(1), "wb") as output:
        os.dup2(2, 1)  # Nothing else may write there.
        try:
            found: str | CheckpointError = check()
        except CheckpointError as error:
            found = error
        pickle.dump(found, output)


def import_less() -> None:
    """Make the import of transformers quick, in a process that only reads configs."""
    sys.modules.update(dict.fromkeys(NOT_NEEDED))  # type: ignore[arg-type]  # None: ImportError
    # It reads the file lists of all installed packages; transformers also tries a package's own name.
    importlib.metadata.packages_distributions = dict


def check_by_transformers(
    sources: Sequence[Path], upscaled: Path, model_type: str, plan: LayerPlan, trusted_keys: Collection[str] = ()
) -> str:
    """Load the configs with transformers' class for their model type, and compare them layer by layer.

    Args:
        sources: The directories with the config.json of the base and of each donor.
        upscaled: The directory with the upscaled model's config.json.
        model_type: The model type of all of them.
        plan: The plan it was upscaled by.
        trusted_keys: Config keys that the user declared not to describe individual layers; they are not compared.

    Returns:
        A sentence with what transformers reads, or why that was not checked. Custom code is never run.

    Raises:
        CheckpointError: transformers reads another depth than the plan's, or another value for a layer.
    """
    if find_spec("transformers") is None:
        return "config.json was not checked with transformers, which is not installed"
    from transformers import __version__ as version
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return (
            f"config.json was not checked with transformers: version {version} does not support model_type "
            f"{model_type!r}, and the checkpoint's custom code is not run"
        )
    config_class = CONFIG_MAPPING[model_type]
    try:
        before, *donors = (_as_loaded(config_class, source) for source in sources)
    except Exception as error:  # Config classes raise all kinds of exceptions for invalid configs.
        return (
            f"config.json was not checked with transformers: version {version} cannot read the base's ({error!r:.200})"
        )
    try:
        after = _as_loaded(config_class, upscaled)
    except Exception as error:
        raise CheckpointError(
            f"config.json: transformers {version} can read the base's config, but not this one: {error!r:.500}. "
            "Upscale again; if that does not help, it is a bug of solar_plugins"
        ) from None
    _require_depth(before, after, plan, version)
    judged = {key: value for key, value in before.items() if key not in trusted_keys and not PREDICTION.match(key)}
    followed = [
        key
        for key, value in judged.items()
        if _follows(key, [value, *(donor.get(key) for donor in donors)], after.get(key), plan, version)
    ]
    checked = " and ".join([f"{len(plan)} layers", *sorted(followed)])
    return f"transformers {version} reads {checked} in agreement with the plan"


def _as_loaded(config_class: Any, directory: Path) -> dict[str, Any]:
    """All attributes of the loaded config of the decoder, including the properties of its class."""
    loaded = config_class.from_pretrained(directory).get_text_config(decoder=True)
    own = (vars(part) for part in type(loaded).__mro__ if part.__module__.startswith("transformers.models."))
    properties = {name for part in own for name, value in part.items() if isinstance(value, property)}
    names = {name for name in {*vars(loaded), *properties} if not name.startswith("_")}
    return {name: _value(loaded, name) for name in sorted({*names, "num_hidden_layers"})}


def _value(loaded: Any, name: str) -> Any:
    try:
        return getattr(loaded, name)
    except Exception:  # Some classes raise for properties that differ by layer.
        return None


def _require_depth(before: Mapping[str, Any], after: Mapping[str, Any], plan: LayerPlan, version: str) -> None:
    # Some types count each layer twice, so compare the ratio.
    was, now = before["num_hidden_layers"], after["num_hidden_layers"]
    if was % plan.base_layers or now != was // plan.base_layers * len(plan):
        raise CheckpointError(
            f"config.json: transformers {version} reads a depth of {now}, and {was} for the base; the plan is {plan}. "
            "Another key also sets the depth: make all such keys of the base agree, and upscale again"
        )


def _follows(key: str, values: Sequence[Any], after: Any, plan: LayerPlan, version: str) -> bool:
    """Whether a value has one entry per layer; such a value must follow the plan.

    Args:
        key: Its config key.
        values: The values of the base and of each donor.
        after: The value of the upscaled model.
        plan: The plan.
        version: The version of transformers.
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
            f"config.json: transformers {version} reads {key} as {_short(found)}; expected "
            f"{_short(by_layer or by_number)}, from the base's {_short(before)} and the plan {plan}. Upscale again, "
            "with a version of solar_plugins that supports this key"
        )
    return True


def _short(values: Sequence[Any] | None) -> str:
    return f"{list(values or ())!r:.300}"
