"""The weight files of a model's folder: which of them transformers loads, and what a folder without them is."""

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
    """What the weight files of a folder hold."""

    tensors: dict[str, StoredTensor]
    """By name, as transformers would read them."""
    unlisted: frozenset[str] = frozenset()
    """Those that the index leaves out. transformers loads whole shards, so it sees them all the same."""
    absent: Mapping[str, str] = {}
    """Tensors that the index names and no file holds, with the file that should."""


class OtherFolder(NamedTuple):
    """A kind of folder that is no model to load with transformers, known by the files in it."""

    patterns: tuple[str, ...]
    what: str
    fix: str


ZERO = OtherFolder(
    ("global_step*", "zero_pp_rank_*", "*_zero_pp_rank_*"),
    "a DeepSpeed ZeRO checkpoint, whose weights are split over the ranks and were not gathered",
    "Gather them: python zero_to_fp32.py DIR NEW_DIR --safe_serialization (the script lies in the folder), and copy "
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
        "Merge it into its base first (axolotl merge-lora RECIPE) and give the merged folder",
    ),
    OtherFolder(
        ("*.gguf", "ggml*.bin"),
        "GGUF, the format of llama.cpp",
        "Give the original model in safetensors format, from which the GGUF file was made",
    ),
    OtherFolder(
        ("consolidated*.safetensors", "consolidated*.pth", "params.json"),
        "the publisher's own format, whose tensors have other names than transformers' model",
        "Download the same model in transformers' format (config.json, model*.safetensors)",
    ),
    OtherFolder(
        ("*.safetensors",),
        "safetensors under a name that transformers does not look for",
        f"If it is the whole model, rename it to {SINGLE_FILE}",
    ),
    OtherFolder(
        ("pytorch_model*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt"),
        "pickles, which can run code when they are read",
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
"""In the order in which they are tried: a ZeRO folder may also hold a useless pytorch_model.bin."""


def read_weights(
    directory: Path, explicit: str | None = None, repository: tuple[str, Collection[str]] | None = None
) -> StoredWeights:
    """The tensors of a model's folder, as transformers finds them: of one file, or of an index and its shards.

    Follows ``_get_resolved_checkpoint_files`` and ``_load_pretrained_model`` of transformers 5.20 (modeling_utils.py):
    one file goes before an index; of the shards that an index names every tensor is read, in the order of the file
    names, and a later one replaces an earlier one. Where that and the index differ, other readers (mergekit, vLLM)
    would read another model, so such a folder is refused. Only headers are read.

    Args:
        directory: The folder.
        explicit: The file or index that the config names as ``transformers_weights``, if it does.
        repository: The name of the hub's repository that the folder is a part of, and the files there.

    Raises:
        CheckpointError: There are no weights that transformers would load, one is damaged, or two readers would read
            different ones.
    """
    single, index = directory / SINGLE_FILE, directory / INDEX
    if explicit is not None:
        if not is_plain_file_name(explicit):
            raise CheckpointError(
                f"{directory}: config.json names the weights {explicit!r:.200} (transformers_weights), which is no "
                "plain file name in this folder; refused"
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
                f"{path}: a link that leads nowhere; restore the file, or download it: {how_to_download(directory)}"
            )
        if path.exists():
            require_file(path)
    where = str(directory) if repository is None else repository[0]
    names = names_in(directory) if repository is None else repository[1]
    # Of a repository all files are known: what is not there cannot be downloaded.
    fix = f". If the download was cut off or left them out: {how_to_download(directory)}" if repository is None else ""
    raise CheckpointError(describe_other(where, names) or f"{where}: no weights; {EXPECTED}{fix}")


def refuse_ungathered(directory: Path, tensors: Mapping[str, StoredTensor], *, has_layers: bool) -> None:
    """Refuse weight files in which ZeRO-3 left only one rank's empty hulls of the weights.

    Args:
        directory: The folder.
        tensors: Of the model.
        has_layers: Whether decoder layers are among them.

    Raises:
        CheckpointError: A weight is empty; or there are no layers, and the folder is a ZeRO checkpoint.
    """
    empty = next((name for name, tensor in tensors.items() if name.endswith(".weight") and 0 in tensor.shape), None)
    if empty or (not has_layers and _matching(names_in(directory), ZERO.patterns)):
        what = f"tensor {empty!r:.200} has the shape {list(tensors[empty].shape)}" if empty else "there are no layers"
        raise CheckpointError(
            f"{directory}: {what} in the weight files, as DeepSpeed ZeRO-3 leaves them where it saves without "
            f"gathering the weights; expected whole tensors. {ZERO.fix}"
        )


def has_weights(directory: Path) -> bool:
    """Whether there is a file that transformers would load weights from."""
    return (directory / SINGLE_FILE).is_file() or (directory / INDEX).is_file()


def refuse_adapter(directory: Path, name: str) -> None:
    """Refuse the output folder of a LoRA run.

    Args:
        directory: The folder.
        name: What to call it in the error.

    Raises:
        CheckpointError: There is an ``adapter_config.json``. With it transformers loads the base that it names and the
            adapter, whatever weights lie beside it.
    """
    if not (directory / ADAPTER_CONFIG).is_file():
        return
    if has_weights(directory):
        raise CheckpointError(
            f"{name}: holds {ADAPTER_CONFIG} beside a model's weights; transformers would load the adapter's own "
            f"base and the adapter, not these weights. If they are merged already, remove {ADAPTER_CONFIG}; else merge "
            "the adapter (axolotl merge-lora RECIPE) and give the merged folder"
        )
    raise CheckpointError(
        f"{name}: a LoRA adapter, not a model; merge it into its base first (axolotl merge-lora RECIPE) and give "
        "the merged folder"
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
    """The tensors of all files that an index names; those of ``single``, if it is there, before all others."""
    weight_map = _weight_map(index)
    if single and single not in weight_map.values():
        raise CheckpointError(
            f"{index.parent}: holds both {single} and {index.name}, which names other files; transformers reads the "
            "first and mergekit and vLLM the second, so nobody can say which weights are meant. Remove the one that "
            "is stale"
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
                f"{index}: tensor {name!r:.200} lies in {tensor.file.name}, which transformers would read, but the "
                f"index says {listed!r:.200}; shards and index are of different versions. Download them again"
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
                f"{index}: names the shard {filename!r:.200}, which is no plain file name in this folder; refused"
            )
        if (index.parent / filename).exists():
            yield filename
        elif single is None:
            raise CheckpointError(
                f"{index}: names the shard {filename}, which is missing; download it: {how_to_download(index.parent)}"
            )


def describe_other(where: str, names: Collection[str]) -> str:
    """What a folder or repository without a model's weights is instead, with the fix; empty if nothing tells.

    Args:
        where: What to call it.
        names: The files in it and in its subfolders, by relative path.

    Example:
        >>> describe_other("tiny", ["model.Q4.gguf"])[:51]
        'tiny: holds model.Q4.gguf (GGUF, the format of llam'
    """
    if {SINGLE_FILE, INDEX} & set(names):
        return ""
    if cut_off := _shards_without_index(where, names):
        return cut_off
    leftovers = _matching(names, LEFTOVER_FILES)
    for kind in OTHER_FOLDERS:
        if found := sorted(_matching(names, kind.patterns) - leftovers):
            return f"{where}: holds {listed(found)} ({kind.what}); {EXPECTED}. {kind.fix}"
    inner = sorted(str(PurePosixPath(name).parent) for name in names if name.endswith("/config.json"))
    if inner:
        return (
            f"{where}: no weights; {EXPECTED}. Its subfolder {inner[-1]} holds a model's config.json: give "
            f"{where}/{inner[-1]} if that is meant"
        )
    if leftovers:
        return (
            f"{where}: holds only what a trainer keeps to resume ({listed(sorted(leftovers))}) and no weights; "
            f"{EXPECTED}. Give the folder with the model's weights"
        )
    return ""


def names_in(directory: Path) -> list[str]:
    """The files and subfolders of a folder, one level down too, and the models of a hub cache's folder."""
    paths = (path for pattern in ("*", "*/*", "snapshots/*/config.json") for path in directory.glob(pattern))
    return [path.relative_to(directory).as_posix() for path in paths]


def _matching(names: Collection[str], patterns: Iterable[str]) -> set[str]:
    """What lies at the top that a pattern matches; a pattern with a slash is for the whole path."""
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
        f"{where}: holds {len(all_names) - len(missing)} of {len(all_names)} shards ({min(shards)}), but {lacking} "
        f"missing; {EXPECTED}. The writer or the download was cut off: fetch what is missing from where the shards "
        "came from, or save the model again"
    )
