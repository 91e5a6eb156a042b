"""Write upscaled checkpoint directories, atomically (`storage/atomic.py`), and reuse existing ones.

A checkpoint's marker (`marker.py`) is written last. A directory without a matching marker is never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from solar_plugins.errors import CheckpointError
from solar_plugins.logs import logger, speaks_for_node
from solar_plugins.plugins.manager import announce
from solar_plugins.storage.atomic import (
    ensure_directory,
    files_below,
    partials_of,
    sole_writer,
    write_directory,
    write_errors_explained,
)
from solar_plugins.storage.cards import CARD, read_card
from solar_plugins.storage.reflink import NONE, Sharing, find_sharing
from solar_plugins.storage.safetensors import Shard, shard_index, write_shard
from solar_plugins.storage.untrusted import require_inside
from solar_plugins.text import format_bytes
from solar_plugins.upscaling.base_model import CONFIG, BaseCheckpoint
from solar_plugins.upscaling.generation_config import GENERATION_CONFIG, warning
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.marker import FORMAT_VERSION, MARKER, Marker, read_marker
from solar_plugins.upscaling.model_card import model_card
from solar_plugins.upscaling.planned_checkpoint import planned_checkpoint
from solar_plugins.upscaling.provenance import provenance
from solar_plugins.upscaling.upscaled_tensors import planned_shards, require_what_computes
from solar_plugins.upscaling.weight_files import INDEX

LOG = logger("checkpoint")

WHAT = "upscaled checkpoint"
CACHE_PREFIX = "upscaled-"
"""The prefix of checkpoint names in the cache."""


def default_cache_dir() -> Path:
    """``$HF_HOME/solar_plugins``: next to the hub cache, which clusters already keep on a large disk."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "solar_plugins"


def cache_name(base: BaseCheckpoint, plan: LayerPlan, *, copy: bool = False) -> str:
    """The directory name of an upscaled checkpoint. It depends on the base, the plan and the format version.

    With ``copy`` it is another one, because an existing checkpoint may share blocks with the base.

    It contains no part of the base's name: Axolotl derives the model type from words such as "llama" in a path.
    """
    trust = [sorted(base.trusted_keys)] if base.trusted_keys else []  # They are recorded in the new config.json.
    copied = ["copy"] if copy else []
    content = json.dumps([FORMAT_VERSION, base.identity, plan.to_dict(), *trust, *copied], sort_keys=True)
    return f"{CACHE_PREFIX}{plan.base_layers}-to-{len(plan)}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def ensure_checkpoint(
    base: BaseCheckpoint, plan: LayerPlan, cache_dir: str | Path | None, *, copy: bool = False
) -> Path:
    """The directory of the upscaled checkpoint in the cache. Writes the checkpoint if it does not exist.

    Safe to call from many processes at once: one writes, the others wait and then use it.

    Args:
        base: The base.
        plan: The plan.
        cache_dir: Default: `default_cache_dir`.
        copy: Copy every byte, even where the file system could share blocks with the base.

    Raises:
        CheckpointError: The base cannot be used, or the checkpoint cannot be written. No partial checkpoint is left.
    """
    cache = Path(cache_dir) if cache_dir else default_cache_dir()
    directory = Path(os.path.expanduser(cache)).absolute() / cache_name(base, plan, copy=copy)
    with _os_errors_explained(directory):
        written = ensure_directory(
            directory,
            fill=partial(_fill, base, plan, directory, copy),
            is_finished=partial(is_finished, base=base, plan=plan),
            what=WHAT,
        )
    if written:
        announce("checkpoint_written", path=directory, plan=plan, base=base)
    elif speaks_for_node():
        LOG.info("using the cached upscaled checkpoint %s (%s)", directory, plan)
    return directory


def write_checkpoint(base: BaseCheckpoint, plan: LayerPlan, directory: Path, *, copy: bool = False) -> bool:
    """Write the upscaled checkpoint to ``directory``, which must not exist or be empty. False if it already exists.

    Args:
        base: The base.
        plan: The plan.
        directory: Where to.
        copy: As for `ensure_checkpoint`.

    Raises:
        CheckpointError: As `ensure_checkpoint`; also if the directory has other content, or is inside the base.
    """
    directory = Path(os.path.expanduser(directory)).absolute()
    for model in base.models:
        if directory.resolve().is_relative_to(model.directory.resolve()):
            raise CheckpointError(
                f"{directory}: is inside the directory of the {'base' if model is base else 'donor'}, "
                f"{model.directory}, which must not be changed; give a directory outside it"
            )
    with _os_errors_explained(directory), sole_writer(directory):
        if is_finished(directory, base, plan):
            return False
        if directory.is_symlink() or (directory.exists() and (not directory.is_dir() or any(directory.iterdir()))):
            raise CheckpointError(
                f"{directory}: exists, but is not this base upscaled by this plan; it was not changed. Remove it, or "
                "give another name"
            )
        written = write_directory(
            directory, partial(_fill, base, plan, directory, copy), partial(is_finished, base=base, plan=plan)
        )
    if written:
        announce("checkpoint_written", path=directory, plan=plan, base=base)
    return written


def is_finished(directory: Path, base: BaseCheckpoint, plan: LayerPlan) -> bool:
    """Whether ``directory`` is the complete checkpoint that `write_checkpoint` would write; contents are not compared.

    Raises:
        CheckpointError: The base cannot be used.
        OSError: The directory cannot be read. It may still be complete, so it must not be written again.
    """
    identity = base.identity
    try:
        marker = read_marker(directory)
        return (
            marker.base_identity == identity
            and marker.plan == plan
            and {base.relative(path) for path in base.companions_here} <= marker.files.keys()
            and (marker.hub_was_asked or base.companions_on_hub <= marker.files.keys())
            and all((directory / name).stat().st_size == size for name, size in marker.files.items())
        )
    except (CheckpointError, FileNotFoundError, NotADirectoryError):
        return False


def _os_errors_explained(directory: Path) -> AbstractContextManager[None]:
    return write_errors_explained(directory, WHAT, "choose another place with solar.cache_dir", CheckpointError)


def _fill(base: BaseCheckpoint, plan: LayerPlan, final: Path, copy: bool, directory: Path) -> None:
    """Write into ``directory``, which will be renamed to ``final``."""
    config, shards, changed = planned_checkpoint(base, plan)
    require_what_computes(shards)
    sharing = NONE if copy else find_sharing({one.source.file for shard in shards for one in shard.tensors}, directory)
    if sharing.block:
        shards = planned_shards(base, plan, sharing.block)
    companions = {base.relative(path): path for path in base.companions}
    shared_ranges = (part for shard in shards for part in shard.whole_blocks())
    shared_bytes = sum(size for path, size in shared_ranges if path in sharing.files)
    total_bytes = sum(shard.data_bytes for shard in shards)
    companion_bytes = sum(path.stat().st_size for path in companions.values())
    _require_space(total_bytes - shared_bytes + companion_bytes, final, directory)
    LOG.info("upscaling %s: %s, %s, into %s", base.name, plan, format_bytes(total_bytes), final)
    state = base.state()
    _write_weights(shards, directory, sharing)
    for name, path in companions.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        if name in changed:
            (directory / name).write_bytes(changed[name])
        else:
            shutil.copyfile(path, directory / name)
    if message := warning(base.directory / GENERATION_CONFIG, base.config):
        LOG.warning("%s", message)
    for level, line in base.notes_on_companions():
        LOG.log(level, "%s", line)
    record = provenance(base.public_name, base.revision, plan, base.decoder.trusted_keys)
    _write_json(directory / CONFIG, config | record)
    (directory / CARD).write_text(_card(base, plan), encoding="utf-8")
    _refuse_changed(base, state)
    files = {name: (directory / name).stat().st_size for name in sorted(files_below(directory))}
    marker = Marker(base.public_name, base.revision, base.identity, plan, files, base.hub_was_asked, sharing.block)
    _write_json(directory / MARKER, marker.to_dict())


def _write_weights(shards: Sequence[Shard], directory: Path, sharing: Sharing) -> None:
    total_bytes = sum(shard.data_bytes for shard in shards)
    with progress(total_bytes, "upscaling") as advance:
        copied_bytes = sum(write_shard(shard, directory, advance) for shard in shards)
    if len(shards) > 1:
        _write_json(directory / INDEX, shard_index(shards))
    if sharing.block:
        LOG.info("%s", space_line(total_bytes, copied_bytes))


def space_line(total_bytes: int, copied_bytes: int) -> str:
    """How much of the weights shares blocks with the base, and how much disk space they take.

    >>> space_line(4_500_000_000, 7_000)
    '4.5 GB of weights: 4.5 GB shared with the base, 7 kB copied; new disk space: 7 kB (du counts shared blocks twice)'
    """
    total, shared, copied = map(format_bytes, (total_bytes, total_bytes - copied_bytes, copied_bytes))
    return (
        f"{total} of weights: {shared} shared with the base, {copied} copied; new disk space: {copied} (du counts "
        "shared blocks twice)"
    )


def _card(base: BaseCheckpoint, plan: LayerPlan) -> str:
    if (base.fetched / CARD).is_file():
        require_inside(base.fetched / CARD, base.directory)
    return model_card(base.public_name, plan, read_card(base.fetched), on_hub=base.revision is not None)


def _refuse_changed(base: BaseCheckpoint, before: dict[Path, tuple[int, ...]]) -> None:
    after = base.state()
    changed = [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)]
    if changed or base.fingerprint() != base.identity:
        raise CheckpointError(
            f"{changed[0] if changed else base.directory}: the base changed while it was copied; do not write to it, "
            "and run again"
        )


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _require_space(needed_bytes: int, final: Path, directory: Path) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        others = [path.name for path in partials_of(final) if path != directory]
        raise CheckpointError(
            f"{final.parent}: {format_bytes(free_bytes)} free, but the {WHAT} needs {format_bytes(needed_bytes)}; free "
            f"disk space{''.join(f', remove {name} if its writer is dead' for name in others)}, or choose another disk "
            "with solar.cache_dir"
        )


@contextmanager
def progress(total_bytes: int, title: str) -> Iterator[Callable[[int], object]]:
    """A progress bar in bytes. Yields the function that advances it."""
    from tqdm import tqdm

    with tqdm(total=total_bytes, desc=title, unit="B", unit_scale=True, unit_divisor=1000, mininterval=0.5) as bar:
        yield bar.update
