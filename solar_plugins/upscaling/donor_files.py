"""What a donor's files must share with the base's: the tokenizer, and the tensors in layers of one kind.

Imported where a plan has donors, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.storage.untrusted import read_json_object, require_file, require_inside
from solar_plugins.upscaling.base_model import BaseCheckpoint
from solar_plugins.upscaling.upscaled_tensors import layer_names

TOKENIZER = "tokenizer.json"
OTHER_TOKENIZERS = (
    ("tokenizer.model", "added_tokens.json"),
    ("spiece.model", "added_tokens.json"),
    ("sentencepiece.bpe.model", "added_tokens.json"),
    ("vocab.json", "merges.txt", "added_tokens.json"),
    ("vocab.txt", "added_tokens.json"),
    ("tekken.json",),
    ("tokenizer.tiktoken",),
    ("qwen.tiktoken",),
    ("rwkv_vocab_v20230424.txt",),
)
"""Files that make a tokenizer where there is no tokenizer.json; a model has the first of a line at least."""

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of the tensors of a layer, by name."""


def refuse_other_files(base: BaseCheckpoint, donor: BaseCheckpoint) -> None:
    """Refuse a donor with another tokenizer, or with layers that do not hold what the base's hold.

    Raises:
        CheckpointError: It has; the text names the first difference.
    """
    refuse_other_tokenizer(base.fetched, donor.fetched, donor.name)
    firsts: dict[tuple[str, ...], tuple[int, Tensors]] = {}
    for index, kind, tensors in _layers(base):
        firsts.setdefault(kind, (index, tensors))
    for layer, kind, tensors in _layers(donor):
        # Of a kind of layer that the base has not, nobody knows the shapes; the dtypes are those of its first layer.
        index, own = firsts.get(kind) or next(iter(firsts.values()))
        if kind not in firsts:
            common = own.keys() & tensors.keys()
            own, tensors = ({name: (one[name][0], ()) for name in sorted(common)} for one in (own, tensors))
        _require_alike(donor.name, (layer, tensors), (index, own))


def _require_alike(name: str, of_donor: tuple[int, Tensors], of_base: tuple[int, Tensors]) -> None:
    (layer, theirs), (index, ours) = of_donor, of_base
    wrong = next((tensor for tensor in {**ours, **theirs} if ours.get(tensor) != theirs.get(tensor)), None)
    if wrong is not None:
        said = [f"{one[wrong][0]} {list(one[wrong][1])}" if wrong in one else "absent" for one in (theirs, ours)]
        raise CheckpointError(
            f"donor {name}: {wrong} of layer {layer} is {said[0]}, that of the base's layer {index} is {said[1]}; "
            "layers of both must hold the same tensors. Save both models in the same way and dtype"
        )


def _layers(model: BaseCheckpoint) -> Iterator[tuple[int, tuple[str, ...], Tensors]]:
    """Number, kind, and dtype and shape of each tensor of each layer."""
    found = layer_names(model.tensors, model.decoder)
    for index, names in enumerate(found.layers):
        tensors = {name.removeprefix(f"{found.prefix}{index}."): model.tensors[name] for name in names}
        described = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        yield index, model.decoder.layer_kinds[index], described


def refuse_other_tokenizer(base: Path, donor: Path, name: str) -> None:
    """Refuse a donor that makes other tokens of a text than the base.

    Args:
        base: The base's folder.
        donor: The donor's.
        name: What to call the donor in an error.

    Raises:
        CheckpointError: It does, or nobody can say; the text names the first difference.
    """
    if all((folder / TOKENIZER).is_file() for folder in (base, donor)):
        ours, theirs = (_tokens(folder) for folder in (base, donor))
        difference = next(_differences(ours, theirs), None)
        if difference:
            key, own, other = difference
            raise CheckpointError(
                f"donor {name}: {TOKENIZER}: {key} is {other!r:.200}, the base's is {own!r:.200}; a donor must have "
                "the very tokenizer of the base, or its layers would read other words"
            )
        return
    for files in OTHER_TOKENIZERS:
        if all((folder / files[0]).is_file() for folder in (base, donor)):
            if other := next((file for file in files if _content(base, file) != _content(donor, file)), None):
                raise CheckpointError(
                    f"donor {name}: {other} is not the base's, byte by byte; a donor must have the very tokenizer of "
                    "the base, or its layers would read other words"
                )
            return
    raise CheckpointError(
        f"donor {name}: whether its tokenizer is the base's cannot be seen: no file of a tokenizer, such as "
        f"{TOKENIZER} or tokenizer.model, is in both folders, {donor} and {base}. Put both models' own there"
    )


def _content(folder: Path, name: str) -> bytes | None:
    path = folder / name
    if not path.is_file():
        return None
    require_inside(path, folder)
    return path.read_bytes()


def _tokens(folder: Path) -> dict[str, Any]:
    """What a tokenizer.json says of which text becomes which tokens; how it cuts and frames texts is the base's."""
    path = folder / TOKENIZER
    require_inside(path, folder)
    require_file(path)
    said = read_json_object(path)
    model = said.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{path}: model is {model!r:.80}; expected the vocabulary. Download it again")
    merges = model.get("merges")
    if isinstance(merges, list):  # A pair was one text before tokenizers 0.20.
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
    model = {key: value for key, value in {**model, "merges": merges}.items() if value not in (None, False, "")}
    return {"model": model} | {key: said.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer")}


def _differences(ours: Any, theirs: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The places in which two JSON values differ, with what stands there."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys((*ours, *theirs)):
            yield from _differences(ours.get(key, "absent"), theirs.get(key, "absent"), f"{where}.{key}".lstrip("."))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(*pair, f"{where}[{number}]")
    elif ours != theirs:
        yield where, ours, theirs
