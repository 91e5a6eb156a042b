"""Makes ``type: solar_plugins.<formatter>`` importable, for those of Axolotl's commands that ask no plugin for data.

``axolotl evaluate`` is one. For SFT Axolotl imports the module of that name and calls its ``load``; for preference
training it calls the function of that name on the package (``axolotl/prompt_strategies/__init__.py`` and ``base.py``).

Such a command also keeps the rows that it made, and finds them by what the recipe says, not by what its files hold: a
changed file would be evaluated as it was. So each content gets a folder of its own there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from glob import glob
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn, cast

from solar_plugins.axolotl_adapter.recipe_checks import FormattedSet
from solar_plugins.data.prepared_datasets import FORMAT_VERSION
from solar_plugins.errors import DataError, PluginError
from solar_plugins.recipe import TYPE_PREFIX
from solar_plugins.storage.content import content_hashes

PACKAGE = "solar_plugins"
ASKS_NO_PLUGIN = Path("cli", "evaluate.py")
"""The module of Axolotl's command that loads datasets without asking plugins."""


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


def is_called_without_plugins() -> bool:
    """Whether the command that called us is one that asks no plugin for data."""
    import axolotl

    file, frame = str(Path(axolotl.__file__).parent / ASKS_NO_PLUGIN), cast(FrameType | None, sys._getframe())
    while frame is not None:
        if frame.f_code.co_filename == file:  # Its name is __main__ where it was started with python -m.
            return True
        frame = frame.f_back
    return False


def folder_by_content(directory: Path, sets: Iterable[FormattedSet]) -> Path:
    """A folder for Axolotl's prepared rows, which is another one when a file of the sets holds something else.

    Args:
        directory: Where it lies.
        sets: All of the recipe.

    Raises:
        OSError: A file cannot be read.
    """
    parts: list[object] = [FORMAT_VERSION]
    for found in sets:
        hashes = content_hashes(_local_files(found.entry))
        parts.append((found.formatter.name, found.formatter.version, sorted(hashes.items())))
    return directory / f"evaluate-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def _local_files(entry: Mapping[str, Any]) -> Iterator[str]:
    path, data_files = Path(str(entry.get("path"))), entry.get("data_files")
    if path.is_file():
        yield str(path)
    elif path.is_dir():
        patterns = [data_files] if isinstance(data_files, str) else data_files or [f"{path}/**"]
        yield from (file for pattern in patterns for file in glob(pattern, recursive=True) if Path(file).is_file())


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
