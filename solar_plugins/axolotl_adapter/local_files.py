"""Local datasets of a recipe: which files they consist of, and how they are read.

`datasets` decides which file belongs to which split and configuration: globs, folders, names such as
``train-00000-of-00002.jsonl``, the YAML header of a README. But in a folder with files of several formats it silently
reads only the most common one; that is rejected. JSON and Parquet are read by `data.row_files`, as in every command of
this package. Other formats (CSV, text, Arrow, archives, folders of `save_to_disk`) are read by `datasets`, under a key
that is a hash of their content, because its own cache is keyed by path and time.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from solar_plugins.axolotl_adapter.recipe_checks import FormattedDataset
from solar_plugins.data.formatters.columns import wanted_columns
from solar_plugins.data.row_files import COMPRESSIONS, JSON_NAMES, PARQUET_NAMES, SNIFF_BYTES
from solar_plugins.data.row_tables import row_table
from solar_plugins.errors import DataError, SolarError
from solar_plugins.logs import logger
from solar_plugins.storage.content import content_hashes

LOG = logger("local_files")

OUR_FORMATS = ("json", "parquet")
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".rar", ".7z")
SAVED_MARKERS = ("state.json", "dataset_dict.json")
"""What `save_to_disk` writes into a folder."""
FORMATS = {"JSON": JSON_NAMES, "Parquet": PARQUET_NAMES, "CSV": (".csv",), "TSV": (".tsv",), "Arrow": (".arrow",)}
"""Formats of files with rows, by suffix. `datasets` would read TSV among CSV as CSV."""


def is_local(source: FormattedDataset) -> bool:
    """Whether a dataset is local. Axolotl, too, looks for a local path first."""
    return Path(str(source.entry.get("path"))).exists()


def load_local(source: FormattedDataset) -> Any:
    """The rows of a local dataset.

    Args:
        source: One dataset of one configuration.

    Returns:
        A `datasets.Dataset`: from `row_table`, or with the dataset's own columns for formats that `datasets` reads. If
        the recipe names no split and there are several, a mapping of them.

    Raises:
        DataError: It cannot be read, does not have the split, or is a folder with files of several formats.
    """
    import datasets

    entry, path = source.entry, Path(source.entry["path"])
    tables = Path(datasets.config.HF_DATASETS_CACHE) / "solar_plugins"
    split = entry.get("split") or None
    if path.is_dir() and not entry.get("data_files") and any((path / name).is_file() for name in SAVED_MARKERS):
        found = datasets.load_from_disk(str(path))
        key = _key([str(file) for file in sorted(path.rglob("*")) if file.is_file()])
        if isinstance(found, Mapping):
            splits = {name: _named(one, f"{key}-{name}") for name, one in found.items()}
            return splits if split is None else _selected(splits, splits.__getitem__, split, source.where)
        return _named(found, key)
    if path.is_dir() and not entry.get("data_files"):
        _check_folder(path, source.where)
    builder = datasets.load_dataset_builder(**_origin(entry, path))
    files = {str(name): [str(file) for file in of_split] for name, of_split in builder.config.data_files.items()}
    kind = type(builder).__module__.rpartition(".")[2]
    if path.is_file() and split is None:
        split = "train"
    if not _is_ours(builder, kind, files):
        key = _key([file for of_split in files.values() for file in of_split])
        found = datasets.load_dataset(**_origin(entry, path), split=split, cache_dir=str(tables / key))
        return found if split is None else _named(found, hashlib.sha256(f"{key} {split}".encode()).hexdigest())
    wanted = wanted_columns(source.formatter)

    @cache
    def read(name: str) -> Any:
        return row_table(files[name], kind, wanted, tables)

    return _Splits(files, read) if split is None else _selected(files, read, split, source.where)


def _origin(entry: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The arguments with which `axolotl.utils.data.shared` calls `datasets`."""
    name = entry.get("name")
    if path.is_dir() and not entry.get("data_files"):
        return {"path": str(path), "name": name}
    from axolotl.utils.data.shared import get_dataset_type
    from axolotl.utils.dict import DictDefault

    files = entry["data_files"] if path.is_dir() else glob.escape(str(path))  # A path, not a pattern.
    return {"path": get_dataset_type(DictDefault(dict(entry))), "name": name, "data_files": files}


def _check_folder(path: Path, where: str) -> None:
    """Reject a folder of which `datasets` would read some files and skip the others because of their format.

    Files that belong to no split by their name (``extra.jsonl`` next to ``train.jsonl``) are listed in a warning.
    """
    from datasets.data_files import DataFilesDict, get_data_patterns

    base = path.resolve().as_posix()

    def files(patterns: dict[str, list[str]]) -> list[str]:
        found = DataFilesDict.from_patterns(patterns, base_path=base)
        return [str(file) for of_split in found.values() for file in of_split]

    read = files(get_data_patterns(base))
    formats = _by_format(read)
    unread = sorted(file for one in _by_format(set(files({"all": ["**"]})) - set(read)).values() for file in one)
    if (len(formats) < 2 and not unread) or _readme_lists_files(path):
        return
    if len(formats) > 1:
        found = "; ".join(f"{len(one)} {name} ({_listed(one, base)})" for name, one in formats.items())
        raise DataError(
            f"{where}: the folder has files of several formats: {found}. `datasets` would silently read only the most "
            "common format. Put each format into its own folder and entry, or list the files under data_files: and set "
            "ds_type: (json, parquet, csv)"
        )
    LOG.warning(
        "%s: %d of the folder's files are not read, because other files have a split in their names and these do not: "
        "%s. If they belong to the dataset, list all its files under data_files:",
        where,
        len(unread),
        _listed(unread, base),
    )


def _by_format(files: Collection[str]) -> dict[str, list[str]]:
    """The files with rows, by format. Among files of other formats, a JSON file with one object is a description."""
    formats: dict[str, list[str]] = {}
    for file in sorted(files):
        name = file.lower()
        name = name.removesuffix(next((ending for ending in COMPRESSIONS if name.endswith(ending)), ""))
        for one, endings in FORMATS.items():
            if name.endswith(endings):
                formats.setdefault(one, []).append(file)
    if len(formats) > 1 and "JSON" in formats and all(map(_is_one_object, formats["JSON"])):
        del formats["JSON"]
    return formats


def _is_one_object(file: str) -> bool:
    if not file.lower().endswith(".json") or Path(file).stat().st_size > SNIFF_BYTES:
        return False
    try:
        return isinstance(json.loads(Path(file).read_bytes()), dict)
    except (ValueError, RecursionError):
        return False


def _readme_lists_files(path: Path) -> bool:
    """Whether the dataset card lists the files that belong to it."""
    from datasets.load import dataset_module_factory

    try:
        return bool(dataset_module_factory(str(path)).builder_configs_parameters.metadata_configs)
    except (ValueError, FileNotFoundError):  # No card that lists files, and files that do not form a dataset.
        return False


def _listed(files: list[str], base: str) -> str:
    names = [Path(file).relative_to(base).as_posix() for file in files[:3]]
    return ", ".join(names) + (", ..." if len(files) > 3 else "")


def _is_ours(builder: Any, kind: str, files: Mapping[str, list[str]]) -> bool:
    return (
        kind in OUR_FORMATS
        and not getattr(builder.config, "field", None)
        and all(Path(file).is_file() and not file.lower().endswith(ARCHIVES) for one in files.values() for file in one)
    )


def _key(files: list[str]) -> str:
    hashes = content_hashes(files)
    return hashlib.sha256(repr([hashes[file] for file in files]).encode()).hexdigest()[:32]


def _named(dataset: Any, key: str) -> Any:
    """The same dataset with a fingerprint that is a hash of its content."""
    dataset._fingerprint = key
    return dataset


class _Splits(Mapping[str, Any]):
    """Splits that are read on access."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Any]) -> None:
        self._names, self._read = tuple(names), read

    def __getitem__(self, name: str) -> Any:
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _selected(names: Collection[str], read: Callable[[str], Any], split: str, where: str) -> Any:
    """The rows of a split: ``train``, ``train[:500]``, ``train[10%:20%]+test``.

    Raises:
        DataError: It cannot be parsed, or names a split that does not exist.
    """
    from datasets import ReadInstruction, concatenate_datasets

    try:
        parts = ReadInstruction.from_spec(split).to_absolute(_Splits(names, lambda name: len(read(name))))
    except SolarError:
        raise
    except (ValueError, AssertionError, KeyError) as error:
        raise DataError(
            f"{where}: split {split!r} cannot be read ({' '.join(str(error).split()):.200}); the dataset has "
            f"{', '.join(names)}. Set split: to one of them, or to a part such as {next(iter(names), 'train')}[:500]"
        ) from None
    found = []
    for part in parts:
        table = read(part.splitname)
        every = range(len(table))
        chosen = every[part.from_ : part.to]
        found.append(table if chosen == every else table.select(chosen))
    return found[0] if len(found) == 1 else concatenate_datasets(found)
