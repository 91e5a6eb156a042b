"""Training checkpoints that a stage can resume from: those whose parts are all there and can be read to the end.

Parts are those that ``Trainer._save_checkpoint`` (transformers/trainer.py) writes on one process, with DDP, FSDP and
DeepSpeed. Files of torch are zip archives with a checksum for each part, so no torch is needed to check them.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from solar_plugins.errors import SolarError
from solar_plugins.storage.safetensors import read_header
from solar_plugins.storage.untrusted import read_json_object

NUMBERED = re.compile(r"checkpoint-(\d+)")
MODEL = (
    "model*.safetensors",
    "adapter_model.safetensors",
    "pytorch_model*.bin",
    "pytorch_model_fsdp_0",
    "global_step*",
)
OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*")
SCHEDULER = ("scheduler.pt", "global_step*")
RANDOM = ("rng_state*.pth",)


def training_checkpoints(output: Path) -> list[Path]:
    """Every ``checkpoint-N`` of an output folder, newest first."""
    found = [path for path in output.glob("checkpoint-*") if path.is_dir() and NUMBERED.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)


def saves_model_only(checkpoint: Path) -> bool:
    """Whether a checkpoint has the model and no optimizer at all, as ``save_only_model: true`` makes them."""
    return _any(checkpoint, MODEL[:2]) and not _any(checkpoint, OPTIMIZER) and not _any(checkpoint, RANDOM)


def damage(checkpoint: Path) -> str | None:
    """Why training cannot resume from a checkpoint; None if every part is there and can be read.

    Args:
        checkpoint: A folder ``checkpoint-N``.
    """
    return next(_damages(checkpoint), None)


def _damages(checkpoint: Path) -> Iterator[str]:
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    try:
        found = read_json_object(checkpoint / "trainer_state.json").get("global_step")
    except (OSError, SolarError):
        yield "trainer_state.json is missing or cannot be read"
        return
    if found != step:
        yield f"trainer_state.json is of step {found}"
    parts = {"model": MODEL, "optimizer": OPTIMIZER, "scheduler": SCHEDULER, "random state": RANDOM}
    yield from (f"the {part} is missing" for part, names in parts.items() if not _any(checkpoint, names))
    for path in sorted(checkpoint.rglob("*")):
        if check := CHECKS.get(path.suffix):
            try:
                check(path)
            except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, SolarError) as error:
                yield f"{path.relative_to(checkpoint)} cannot be read ({' '.join(str(error).split()):.200})"
    yield from _missing_shards(checkpoint)
    yield from _missing_ranks(checkpoint)


def _any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def _check_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken:
        raise ValueError(f"{broken} has a wrong checksum")


def _check_safetensors(path: Path) -> None:
    read_header(path)


def _check_json(path: Path) -> None:
    json.loads(path.read_bytes())


CHECKS: dict[str, Callable[[Path], None]] = {
    ".pt": _check_zip,
    ".pth": _check_zip,
    ".bin": _check_zip,
    ".safetensors": _check_safetensors,
    ".json": _check_json,
}


def _missing_shards(checkpoint: Path) -> Iterator[str]:
    """Shards that an index, FSDP's metadata or DeepSpeed's ``latest`` names and that are not there, or too short."""
    for index in checkpoint.glob("*.safetensors.index.json"):
        for name in sorted(set(json.loads(index.read_bytes()).get("weight_map", {}).values())):
            if not (checkpoint / name).is_file():
                yield f"{name} is missing"
    for metadata in checkpoint.glob("*/.metadata"):
        yield from (f"{metadata.parent.name}/{problem}" for problem in _short_shards(metadata.parent))
    for latest in checkpoint.glob("latest"):
        tag = latest.read_text(encoding="utf-8", errors="replace").strip()
        if not tag or not (checkpoint / tag).is_dir():
            yield f"latest names {tag!r}, which is missing"
    for folder in checkpoint.glob("*_0"):
        if folder.is_dir() and not (folder / ".metadata").is_file():
            yield f"{folder.name}/.metadata is missing"


def _short_shards(folder: Path) -> Iterator[str]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    try:
        stored = FileSystemReader(folder).read_metadata().storage_data or {}
    except Exception as error:  # It is a pickle: anything may come out of a damaged one.
        yield f".metadata cannot be read ({type(error).__name__})"
        return
    ends: dict[str, int] = {}
    for place in stored.values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for name, end in sorted(ends.items()):
        path = folder / name
        if not path.is_file() or path.stat().st_size < end:
            yield f"{name} is missing or too short"


def _missing_ranks(checkpoint: Path) -> Iterator[str]:
    """Every rank writes a random state, and under ZeRO a part of the optimizer."""
    ranks = _ranks(checkpoint, "rng_state_*.pth", r"rng_state_(\d+)")
    shards = _ranks(checkpoint, "global_step*/*zero_pp_rank_*_optim_states.pt", r"zero_pp_rank_(\d+)_")
    for what, found in (("random state", ranks), ("optimizer", shards)):
        missing = sorted(set(range(max(ranks | shards, default=-1) + 1)) - found) if found else []
        if missing:
            yield f"the {what} of rank {missing[0]} is missing"


def _ranks(checkpoint: Path, pattern: str, number: str) -> set[int]:
    found = (re.search(number, path.name) for path in checkpoint.glob(pattern))
    return {int(match[1]) for match in found if match}
