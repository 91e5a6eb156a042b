"""Makes ``type: solar_plugins.<formatter>`` importable, for those of Axolotl's commands that ask no plugin for data.

``axolotl evaluate`` is one. For SFT Axolotl imports the module of that name and calls its ``load``; for preference
training it calls the function of that name on the package (``axolotl/prompt_strategies/__init__.py`` and ``base.py``).
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any, NoReturn

from solar_plugins.axolotl_adapter.recipe_checks import FormattedSet
from solar_plugins.errors import DataError, PluginError
from solar_plugins.recipe import TYPE_PREFIX

PACKAGE = "solar_plugins"


class _BoundFormatter(ModuleType):
    """A module that exists in memory alone."""


def bind(found: FormattedSet) -> None:
    """Let Axolotl find the formatter of a set under the name that the recipe gives it.

    Raises:
        PluginError: Something else in this package has the name.
    """
    name = found.formatter.name
    full_name = TYPE_PREFIX + name
    package = sys.modules[PACKAGE]
    bound = isinstance(sys.modules.get(full_name), _BoundFormatter)
    if not bound and (hasattr(package, name) or importlib.util.find_spec(full_name) is not None):
        raise PluginError(
            f"{found.key}[{found.number}].type: the formatter {name!r} has a name that {PACKAGE} needs for itself; the "
            "package that registers it has to choose another"
        )
    module = _BoundFormatter(full_name)
    module.load = _load_strategy  # type: ignore[attr-defined]
    sys.modules[full_name] = module
    setattr(package, name, _refuse_preference_set)


def _load_strategy(tokenizer: Any, cfg: Any, ds_cfg: Any) -> Any:
    """What Axolotl calls for SFT: an object whose ``wrap_dataset`` gives token ids and labels."""
    from axolotl.prompt_tokenizers import DatasetWrappingStrategy

    from solar_plugins.axolotl_adapter.datasets import read_in_memory

    class RowsOfFormatter(DatasetWrappingStrategy):  # type: ignore[misc]  # Axolotl ships no types
        def wrap_dataset(
            self, dataset: Any, process_count: int | None = None, keep_in_memory: bool | None = False, **_: Any
        ) -> Any:
            return read_in_memory(dataset, tokenizer, cfg, ds_cfg, process_count)

    return RowsOfFormatter()


def _refuse_preference_set(cfg: Any, **_: Any) -> NoReturn:
    raise DataError(
        "datasets: this command of Axolotl's does not ask plugins for data, so the preference sets of solar_plugins "
        "cannot be read here; evaluate during training, with test_datasets and eval_steps"
    )
