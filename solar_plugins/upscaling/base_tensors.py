"""The tensors of a base model: one safetensors file, or an index with its shards. Nothing in them is believed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from solar_plugins.errors import CheckpointError
from solar_plugins.storage.safetensors import StoredTensor, read_header
from solar_plugins.storage.untrusted import is_plain_file_name, read_json_object, require_inside

INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


def read_tensors(directory: Path) -> dict[str, StoredTensor]:
    """The tensors by name. Reads the headers only.

    Raises:
        CheckpointError: There are no safetensors files, one is damaged or no file of this folder, or the index and the
            files disagree.
    """
    if (directory / INDEX).is_file() and (directory / SINGLE_FILE).is_file():
        raise CheckpointError(
            f"{directory}: holds both {SINGLE_FILE} and {INDEX}; transformers reads the first and mergekit the second, "
            "so nobody can say which weights are meant. Remove the one that is stale"
        )
    if (directory / INDEX).is_file():
        return _read_indexed(directory)
    if (directory / SINGLE_FILE).is_file():
        return _read_own_header(directory / SINGLE_FILE)
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{directory}: the weights are pickles ({pickles[0]}), which can run code when they are read; expected "
            "safetensors. Convert them once: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    raise CheckpointError(f"{directory}: no weights; expected {SINGLE_FILE} or {INDEX} with its shards")


def _read_own_header(path: Path) -> dict[str, StoredTensor]:
    require_inside(path, path.parent)
    return read_header(path)


def _read_indexed(directory: Path) -> dict[str, StoredTensor]:
    require_inside(directory / INDEX, directory)
    weight_map = read_json_object(directory / INDEX, strict=True).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(
            f"{directory / INDEX}: weight_map is not a map from tensor names to file names; download it again"
        )
    stored: dict[str, StoredTensor] = {}
    for filename in _shard_names(directory, weight_map):
        for name, tensor in _read_own_header(directory / filename).items():
            if weight_map.get(name) != filename:
                raise CheckpointError(
                    f"{directory / INDEX}: tensor {name!r:.200} lies in {filename}, but the index says "
                    f"{weight_map.get(name)!r}; shards and index are of different versions. Download them again"
                )
            stored[name] = tensor
    absent = sorted(weight_map.keys() - stored.keys())
    if absent:
        raise CheckpointError(
            f"{directory / INDEX}: tensor {absent[0]!r:.200} should be in {weight_map[absent[0]]}, but is not; "
            "download it again"
        )
    return stored


def _shard_names(directory: Path, weight_map: Mapping[str, str]) -> Iterator[str]:
    for filename in dict.fromkeys(weight_map.values()):
        if not is_plain_file_name(filename):
            raise CheckpointError(
                f"{directory / INDEX}: names the shard {filename!r:.200}, which is no plain file name in this folder; "
                "refused"
            )
        if not (directory / filename).exists():
            raise CheckpointError(f"{directory / INDEX}: names the shard {filename}, which is missing; download it")
        yield filename
