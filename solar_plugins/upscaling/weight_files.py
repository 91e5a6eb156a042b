"""The weight files in a model directory: which ones transformers loads, and what a directory without them is."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from solar_plugins.errors import CheckpointError
from solar_plugins.storage.safetensors import StoredTensor, read_header
from solar_plugins.storage.untrusted import (
    how_to_download,
    is_plain_file_name,
    read_json_object,
    require_file,
    require_inside,
)
from solar_plugins.upscaling.companions import LEFTOVER_FILES, listed

INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

EXPECTED = f"expected {SINGLE_FILE}, or {INDEX} with its shards"

NUMBERED_SHARD = re.compile(r"([^/]+)-(\d{5})-of-(\d{5})\.safetensors")


class StoredWeights(NamedTuple):
    """The content of the weight files in a directory."""

    tensors: dict[str, StoredTensor]
    """The tensors that transformers would load, by name."""
    unlisted: frozenset[str] = frozenset()
    """Tensors that are not in the index. transformers loads them anyway, because it loads entire shards."""
    absent: Mapping[str, str] = {}
    """Tensors that are in the index but in no file, with the file that the index names."""


class OtherFolder(NamedTuple):
    """A kind of directory that transformers cannot load, recognized by its files."""

    patterns: tuple[str, ...]
    what: str
    fix: str


ZERO = OtherFolder(
    ("global_step*", "zero_pp_rank_*", "*_zero_pp_rank_*"),
    "a DeepSpeed ZeRO checkpoint, whose weights are still sharded over the ranks",
    "Gather them: python zero_to_fp32.py DIR NEW_DIR --safe_serialization (the script is in the directory), and copy "
    "config.json and the tokenizer there; or train with stage3_gather_16bit_weights_on_model_save: true",
)

OTHER_FOLDERS = (
    ZERO,
    OtherFolder(
        ("pytorch_model_fsdp*", "*.distcp", "*/*.distcp"),
        "a sharded FSDP checkpoint",
        "Merge it: axolotl merge-sharded-fsdp-weights RECIPE, or accelerate merge-weights "
        "DIR/pytorch_model_fsdp_0 NEW_DIR; and copy config.json and the tokenizer there",
    ),
    OtherFolder(
        ("adapter_model.*",),
        "the weights of an adapter, not of a model",
        "Merge it into its base first (axolotl merge-lora RECIPE) and give the merged model",
    ),
    OtherFolder(
        ("*.gguf", "ggml*.bin"),
        "GGUF, the format of llama.cpp",
        "Give the original model in safetensors format, from which the GGUF file was converted",
    ),
    OtherFolder(
        ("consolidated*.safetensors", "consolidated*.pth", "params.json"),
        "the publisher's own format, whose tensor names differ from transformers'",
        "Download the same model in transformers' format (config.json, model*.safetensors)",
    ),
    OtherFolder(
        ("*.safetensors",),
        "safetensors with a file name that transformers does not load",
        f"If it is the complete model, rename it to {SINGLE_FILE}",
    ),
    OtherFolder(
        ("pytorch_model*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt"),
        "pickles, which can run code when they are loaded",
        "Convert them once: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)",
    ),
    OtherFolder(
        (
            *("*.h5", "*.msgpack", "*.ot", "*.onnx", "*.nemo", "*.npz", "*.mlmodel", "*.mlpackage", "*.tflite"),
            "saved_model.pb",
        ),
        "the weights of another framework",
        "Download the model's safetensors files, or convert it",
    ),
)
"""In the order in which they are tried: a ZeRO checkpoint may also have a useless pytorch_model.bin."""


def read_weights(
    directory: Path, explicit: str | None = None, repository: tuple[str, Collection[str]] | None = None
) -> StoredWeights:
    """The tensors in a model directory that transformers would load: from one file, or from an index and its shards.

    As in ``_get_resolved_checkpoint_files`` and ``_load_pretrained_model`` of transformers 5.20 (modeling_utils.py): a
    single file takes precedence over an index. Of the shards in an index all tensors are loaded, in the order of the
    file names, and later ones replace earlier ones. Where this differs from the index, other readers (mergekit, vLLM)
    would load another model, so that is an error. Reads only headers.

    Args:
        directory: The directory.
        explicit: The file or index in the config's ``transformers_weights``, if any.
        repository: The name and the files of the hub repository that the directory is a snapshot of.

    Raises:
        CheckpointError: There are no weights that transformers would load, one is damaged, or readers would load
            different weights.
    """
    single, index = directory / SINGLE_FILE, directory / INDEX
    if explicit is not None:
        if not is_plain_file_name(explicit):
            raise CheckpointError(
                f"{directory}: config.json: transformers_weights is {explicit!r:.200}; expected the name of a file in "
                "this directory"
            )
        named = directory / explicit
        return _read_index(named, None) if explicit.endswith(".json") else StoredWeights(_read_own_header(named))
    if index.is_file():
        return _read_index(index, single.name if single.is_file() else None)
    if single.is_file():
        return StoredWeights(_read_own_header(single))
    for path in (index, single):
        if path.is_symlink() and not path.exists():
            raise CheckpointError(
                f"{path}: a broken link; restore the file, or download it: {how_to_download(directory)}"
            )
        if path.exists():
            require_file(path)
    where = str(directory) if repository is None else repository[0]
    names = names_in(directory) if repository is None else repository[1]
    # All files of a repository are known: missing ones cannot be downloaded.
    fix = f". If the download is incomplete: {how_to_download(directory)}" if repository is None else ""
    raise CheckpointError(describe_other(where, names) or f"{where}: no weights; {EXPECTED}{fix}")


def refuse_ungathered(directory: Path, tensors: Mapping[str, StoredTensor], *, has_layers: bool) -> None:
    """Refuse weight files with the empty placeholders that ZeRO-3 leaves when weights are not gathered.

    Args:
        directory: The directory.
        tensors: The tensors of the model.
        has_layers: Whether they include decoder layers.

    Raises:
        CheckpointError: A weight is empty; or there are no layers, and the directory is a ZeRO checkpoint.
    """
    empty = next((name for name, tensor in tensors.items() if name.endswith(".weight") and 0 in tensor.shape), None)
    if empty or (not has_layers and _matching(names_in(directory), ZERO.patterns)):
        what = f"tensor {empty!r:.200} has the shape {list(tensors[empty].shape)}" if empty else "there are no layers"
        raise CheckpointError(
            f"{directory}: {what} in the weight files, as when DeepSpeed ZeRO-3 saves without gathering the weights; "
            f"expected complete tensors. {ZERO.fix}"
        )


def has_weights(directory: Path) -> bool:
    """Whether there is a weight file that transformers would load."""
    return (directory / SINGLE_FILE).is_file() or (directory / INDEX).is_file()


def refuse_adapter(directory: Path, name: str) -> None:
    """Refuse the output directory of a LoRA run.

    Args:
        directory: The directory.
        name: Its name in the error.

    Raises:
        CheckpointError: It has an ``adapter_config.json``. transformers then loads the base in that file and the
            adapter, and ignores other weights in the directory.
    """
    if not (directory / ADAPTER_CONFIG).is_file():
        return
    if has_weights(directory):
        raise CheckpointError(
            f"{name}: has {ADAPTER_CONFIG} next to a model's weights; transformers would load the adapter and its base "
            f"instead of these weights. If they are already merged, remove {ADAPTER_CONFIG}; otherwise merge the "
            "adapter (axolotl merge-lora RECIPE) and give the merged model"
        )
    raise CheckpointError(
        f"{name}: a LoRA adapter, not a model; merge it into its base first (axolotl merge-lora RECIPE) and give "
        "the merged model"
    )


def _weight_map(index: Path) -> dict[str, str]:
    require_inside(index, index.parent)
    weight_map = read_json_object(index, strict=True).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map is not a map from tensor names to file names; download it again")
    return weight_map


def _read_own_header(path: Path) -> dict[str, StoredTensor]:
    require_inside(path, path.parent)
    return read_header(path)


def _read_index(index: Path, single: str | None) -> StoredWeights:
    """The tensors of all files in an index; those of ``single``, if it exists, take precedence."""
    weight_map = _weight_map(index)
    if single and single not in weight_map.values():
        raise CheckpointError(
            f"{index.parent}: has both {single} and {index.name}, which lists other files; transformers loads the "
            "first, but mergekit and vLLM load the second. Remove the stale one"
        )
    stored: dict[str, StoredTensor] = {}
    for filename in _shard_names(index, weight_map, single):
        for name, tensor in _read_own_header(index.parent / filename).items():
            other = stored.get(name)
            if other is None or other.file.name != single:
                stored[name] = tensor
    for name, tensor in stored.items():
        listed = weight_map.get(name, tensor.file.name)
        if listed != tensor.file.name:
            raise CheckpointError(
                f"{index}: tensor {name!r:.200} is in {tensor.file.name}, from which transformers would load it, but "
                f"the index says {listed!r:.200}; shards and index are of different versions. Download them again"
            )
    return StoredWeights(
        stored,
        frozenset(stored.keys() - weight_map.keys()),
        {name: filename for name, filename in weight_map.items() if name not in stored},
    )


def _shard_names(index: Path, weight_map: Mapping[str, str], single: str | None) -> Iterable[str]:
    for filename in sorted(set(weight_map.values())):
        if not is_plain_file_name(filename):
            raise CheckpointError(
                f"{index}: lists the shard {filename!r:.200}; expected the name of a file in this directory. Download "
                "it again"
            )
        if (index.parent / filename).exists():
            yield filename
        elif single is None:
            raise CheckpointError(
                f"{index}: lists the shard {filename}, which is missing; download it: {how_to_download(index.parent)}"
            )


def describe_other(where: str, names: Collection[str]) -> str:
    """What a directory or repository without a model's weights is instead, with the fix; empty if unknown.

    Args:
        where: Its name in the message.
        names: The relative paths of the files in it and in its subdirectories.

    Example:
        >>> describe_other("tiny", ["model.Q4.gguf"])[:49]
        'tiny: has model.Q4.gguf (GGUF, the format of llam'
    """
    if {SINGLE_FILE, INDEX} & set(names):
        return ""
    if cut_off := _shards_without_index(where, names):
        return cut_off
    leftovers = _matching(names, LEFTOVER_FILES)
    for kind in OTHER_FOLDERS:
        if found := sorted(_matching(names, kind.patterns) - leftovers):
            return f"{where}: has {listed(found)} ({kind.what}); {EXPECTED}. {kind.fix}"
    inner = sorted(str(PurePosixPath(name).parent) for name in names if name.endswith("/config.json"))
    if inner:
        return (
            f"{where}: no weights; {EXPECTED}. Its subdirectory {inner[-1]} has a model's config.json: give "
            f"{where}/{inner[-1]} if you mean that one"
        )
    if leftovers:
        return (
            f"{where}: has only the files with which a trainer resumes ({listed(sorted(leftovers))}), no weights; "
            f"{EXPECTED}. Give the directory with the model's weights"
        )
    return ""


def names_in(directory: Path) -> list[str]:
    """The entries of a directory and of its subdirectories, and the config files of a hub cache's snapshots."""
    paths = (path for pattern in ("*", "*/*", "snapshots/*/config.json") for path in directory.glob(pattern))
    return [path.relative_to(directory).as_posix() for path in paths]


def _matching(names: Collection[str], patterns: Iterable[str]) -> set[str]:
    """The top-level entries that match a pattern; patterns with a slash match the full path."""
    return {
        name if "/" in pattern else name.split("/")[0]
        for pattern in patterns
        for name in names
        if fnmatchcase(name if "/" in pattern else name.split("/")[0], pattern)
    }


def _shards_without_index(where: str, names: Collection[str]) -> str:
    shards = {match[0]: match for match in map(NUMBERED_SHARD.fullmatch, names) if match}
    if not shards:
        return ""
    first = shards[min(shards)]
    all_names = [f"{first[1]}-{number:05}-of-{first[3]}.safetensors" for number in range(1, int(first[3]) + 1)]
    missing = [name for name in all_names if name not in shards]
    lacking = f"{listed(missing)} and the index are" if missing else "the index is"
    return (
        f"{where}: has {len(all_names) - len(missing)} of {len(all_names)} shards ({min(shards)}), but {lacking} "
        f"missing; {EXPECTED}. Saving or downloading was interrupted: download the missing files, or save the model "
        "again"
    )
