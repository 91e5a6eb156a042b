"""Makes ``type: solar_plugins.<formatter>`` importable, for Axolotl commands that do not ask plugins for datasets.

``axolotl evaluate`` is one. For SFT Axolotl imports the module of that name and calls its ``load``; for preference
training it calls the function of that name on the package (``axolotl/prompt_strategies/__init__.py`` and ``base.py``).

Such a command also caches the prepared rows, under a hash of the recipe but not of the files: after a change of a file
it would evaluate the old rows. So each content gets its own folder in that cache.
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

from solar_plugins.axolotl_adapter.recipe_checks import FormattedDataset
from solar_plugins.data.prepared_datasets import FORMAT_VERSION
from solar_plugins.errors import DataError, PluginError
from solar_plugins.recipe import TYPE_PREFIX
from solar_plugins.storage.content import content_hashes

PACKAGE = "solar_plugins"
ASKS_NO_PLUGIN = Path("cli", "evaluate.py")
"""The module of Axolotl's command that loads datasets without asking plugins for them."""


class _BoundFormatter(ModuleType):
    """A module that exists only in memory."""


def bind(found: FormattedDataset) -> None:
    """Make the formatter of a dataset importable under the ``type`` in the recipe.

    Raises:
        PluginError: Something else in this package has that name.
    """
    name = found.formatter.name
    full_name = TYPE_PREFIX + name
    package = sys.modules[PACKAGE]
    bound = isinstance(sys.modules.get(full_name), _BoundFormatter)
    if not bound and (hasattr(package, name) or importlib.util.find_spec(full_name) is not None):
        raise PluginError(
            f"{found.key}[{found.number}].type: the name of the formatter {name!r} is reserved in {PACKAGE}; the "
            "package that registers it has to choose another name"
        )
    module = _BoundFormatter(full_name)
    module.load = _load_strategy  # type: ignore[attr-defined]
    sys.modules[full_name] = module
    setattr(package, name, _refuse_preference_dataset)


def is_called_without_plugins() -> bool:
    """Whether the Axolotl command that is running does not ask plugins for datasets."""
    import axolotl

    file, frame = str(Path(axolotl.__file__).parent / ASKS_NO_PLUGIN), cast(FrameType | None, sys._getframe())
    while frame is not None:
        if frame.f_code.co_filename == file:  # Its name is __main__ where it was started with python -m.
            return True
        frame = frame.f_back
    return False


def folder_by_content(directory: Path, sets: Iterable[FormattedDataset]) -> Path:
    """The folder for Axolotl's prepared rows; it changes with the content of the datasets' files.

    Args:
        directory: Its parent.
        sets: All datasets of the recipe.

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
    """What Axolotl calls for SFT: an object whose ``wrap_dataset`` returns token ids and labels."""
    from axolotl.prompt_tokenizers import DatasetWrappingStrategy

    from solar_plugins.axolotl_adapter.datasets import read_in_memory

    class RowsOfFormatter(DatasetWrappingStrategy):  # type: ignore[misc]  # Axolotl ships no types
        def wrap_dataset(
            self, dataset: Any, process_count: int | None = None, keep_in_memory: bool | None = False, **_: Any
        ) -> Any:
            return read_in_memory(dataset, tokenizer, cfg, ds_cfg, process_count)

    return RowsOfFormatter()


def _refuse_preference_dataset(cfg: Any, **_: Any) -> NoReturn:
    raise DataError(
        "datasets: this Axolotl command does not ask plugins for datasets, so it cannot read preference datasets with "
        "type: solar_plugins.*; evaluate during training, with test_datasets and eval_steps"
    )
