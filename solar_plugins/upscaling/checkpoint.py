"""Up-scaled checkpoint directories: made once, whole or not at all, and found again.

A directory is written beside its final name and renamed when it is whole. The marker file `MARKER`, written last,
holds the plan, the base's identity and every file's size; a directory whose marker does not fit is never used.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from solar_plugins.errors import CheckpointError
from solar_plugins.registry import announce
from solar_plugins.upscaling.architecture import tensor_copies, upscale_config
from solar_plugins.upscaling.base_model import CONFIG, INDEX, PROVENANCE_KEY, BaseCheckpoint, read_json_object
from solar_plugins.upscaling.estimates import format_bytes, require_expected_parameters
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.model_card import model_card
from solar_plugins.upscaling.safetensors_io import PlannedTensor, Shard, plan_shards, shard_index, write_shard

# Axolotl shows INFO only from loggers whose name starts with "axolotl".
LOG = logging.getLogger("axolotl.solar_plugins.checkpoint")

MARKER = "solar_plan.json"
FORMAT_VERSION = 1
"""Raise it when the same base and plan would give other bytes: caches made before are then not reused."""

MAX_SHARD_BYTES = 5_000_000_000
WAIT_MESSAGE_SECONDS = 30.0


def default_cache_dir() -> Path:
    """``$HF_HOME/solar_plugins``: beside the hub cache, which clusters already put on their large disk."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "solar_plugins"


def cache_name(base: BaseCheckpoint, plan: LayerPlan) -> str:
    """The directory name of an up-scaled checkpoint: it changes with the base, the plan and our format.

    It holds no part of the base's name: Axolotl takes words such as "llama" in a path for the model's type.
    """
    content = json.dumps([FORMAT_VERSION, base.identity, plan.to_dict()], sort_keys=True)
    return f"upscaled-{plan.base_layers}-to-{len(plan)}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def ensure_checkpoint(base: BaseCheckpoint, plan: LayerPlan, cache_dir: str | Path | None) -> Path:
    """The up-scaled checkpoint of ``base`` by ``plan`` below ``cache_dir``; made now if it is not there.

    Without ``cache_dir`` it is kept in `default_cache_dir`.

    Safe to call from many processes at once: one writes, the others wait and then find it.

    Raises:
        CheckpointError: The base cannot be used or the target cannot be written. Nothing that looks finished is left.
    """
    cache = Path(cache_dir) if cache_dir else default_cache_dir()
    directory = Path(os.path.expanduser(cache)).absolute() / cache_name(base, plan)
    if is_finished(directory, base, plan):
        LOG.info("up-scaled checkpoint found: %s (%s)", directory, plan)
        return directory
    with _os_errors_explained(directory), _sole_writer(directory):
        if is_finished(directory, base, plan):
            return directory
        if directory.exists():
            LOG.warning("%s is damaged (its marker does not fit); it is made again", directory)
            shutil.rmtree(directory)
        _write_beside_and_rename(base, plan, directory)
    announce("checkpoint_written", path=directory, plan=plan, base=base)
    return directory


def write_checkpoint(base: BaseCheckpoint, plan: LayerPlan, directory: Path) -> bool:
    """Write the up-scaled checkpoint to ``directory``, which must be absent or empty. False if it was there already.

    Raises:
        CheckpointError: As `ensure_checkpoint`; also if the directory holds anything else.
    """
    directory = Path(os.path.expanduser(directory)).absolute()
    with _os_errors_explained(directory), _sole_writer(directory):
        if is_finished(directory, base, plan):
            return False
        if directory.is_symlink() or (directory.exists() and (not directory.is_dir() or any(directory.iterdir()))):
            raise CheckpointError(
                f"{directory}: exists and is not this base up-scaled by this plan; nothing was changed. Remove it, or "
                "give another name"
            )
        _write_beside_and_rename(base, plan, directory)
        _lock_path(directory).unlink()  # Nobody needs it any more: whoever waits finds the finished directory.
    announce("checkpoint_written", path=directory, plan=plan, base=base)
    return True


def is_finished(directory: Path, base: BaseCheckpoint, plan: LayerPlan) -> bool:
    """Whether ``directory`` holds, whole, what `write_checkpoint` would write there."""
    try:
        marker = read_json_object(directory / MARKER)
        sizes: dict[str, int] = dict(marker["files"])
        return (
            marker["format_version"] == FORMAT_VERSION
            and marker["base"]["identity"] == base.identity
            and marker["plan"] == plan.to_dict()
            and all((directory / name).stat().st_size == size for name, size in sizes.items())
        )
    except (CheckpointError, OSError, KeyError, TypeError, ValueError):
        return False


def planned_shards(base: BaseCheckpoint, plan: LayerPlan) -> list[Shard]:
    """The files of tensors that the up-scaled checkpoint will have.

    Raises:
        CheckpointError: The base's tensors do not fit its config.
    """
    stored = base.tensors
    copies = tensor_copies(stored, base.config, plan)
    return plan_shards((PlannedTensor(copy.name, stored[copy.source], copy.zeroed) for copy in copies), MAX_SHARD_BYTES)


def _write_beside_and_rename(base: BaseCheckpoint, plan: LayerPlan, directory: Path) -> None:
    for left_over in directory.parent.glob(f".{glob.escape(directory.name)}.partial-????????"):
        LOG.info("removing what an interrupted run left: %s", left_over)
        shutil.rmtree(left_over)
    config, shards = upscale_config(base.config, plan), planned_shards(base, plan)
    require_expected_parameters(shards, base.config, plan)
    total_bytes = sum(shard.data_bytes for shard in shards)
    _require_space(directory.parent, total_bytes)
    LOG.info("up-scaling %s: %s, %s, into %s", base.name, plan, format_bytes(total_bytes), directory)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.partial-", dir=directory.parent))
    try:
        partial.chmod(0o777 & ~_umask())  # mkdtemp makes it private; on a shared cache other users' ranks read it too.
        _fill(partial, base, plan, config, shards)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_directory(directory.parent)


def _fill(directory: Path, base: BaseCheckpoint, plan: LayerPlan, config: dict[str, Any], shards: list[Shard]) -> None:
    with _progress(sum(shard.data_bytes for shard in shards)) as advance:
        for shard in shards:
            write_shard(shard, directory, advance)
    if len(shards) > 1:
        _write_json(directory / INDEX, shard_index(shards))
    for path in base.companions:
        shutil.copyfile(path, directory / path.name)
    record = {"base_model": base.public_name, "base_revision": base.revision, "plan": plan.to_dict()}
    _write_json(directory / CONFIG, config | {PROVENANCE_KEY: record})
    card = base.directory / "README.md"
    base_card = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None
    text = model_card(base.public_name, plan, base_card, on_hub=base.revision is not None)
    (directory / "README.md").write_text(text, encoding="utf-8")
    if base.fingerprint() != base.identity:
        raise CheckpointError(f"{base.directory}: the base changed while it was copied; leave it alone and run again")
    _write_json(directory / MARKER, _marker(directory, base, plan))
    _sync_directory(directory)


def _marker(directory: Path, base: BaseCheckpoint, plan: LayerPlan) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "base": {"name": base.public_name, "revision": base.revision, "identity": base.identity},
        "plan": plan.to_dict(),
        "files": {path.name: path.stat().st_size for path in sorted(directory.iterdir())},
    }


def _write_json(path: Path, content: object) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _require_space(directory: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise CheckpointError(
            f"{directory}: {format_bytes(free_bytes)} free, but the up-scaled checkpoint needs "
            f"{format_bytes(needed_bytes)}; make room, or choose another disk with solar.cache_dir"
        )


def _lock_path(directory: Path) -> Path:
    return directory.parent / f".{directory.name}.lock"


@contextmanager
def _sole_writer(directory: Path) -> Iterator[None]:
    """Hold the lock for ``directory``. The kernel frees it when its owner dies, so a dead writer blocks nobody."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory.parent):
        pass  # Fails at once where nothing can be written; the lock would be tried again and again.
    # A soft lock would outlive its owner; where the kernel has no locks an error is better than an endless wait.
    lock = FileLock(_lock_path(directory), fallback_to_soft=False)
    while True:
        try:
            lock.acquire(timeout=WAIT_MESSAGE_SECONDS)
            break
        except Timeout:
            LOG.info("waiting for another process that is writing %s", directory)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _progress(total_bytes: int) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    with tqdm(
        total=total_bytes, desc="up-scaling", unit="B", unit_scale=True, unit_divisor=1000, mininterval=0.5
    ) as bar:
        yield bar.update


@contextmanager
def _os_errors_explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{directory}: the up-scaled checkpoint could not be written "
            f"({error.strerror or error}{f', {error.filename}' if error.filename else ''}); nothing that looks "
            "finished was left. Make room or give write permission, or choose another place with solar.cache_dir"
        ) from None
