"""Compare a finished checkpoint with its base and plan, byte by byte, and report the first difference.

Names, sizes and values are compared by pure functions; `verify_checkpoint` reads the files and calls them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.errors import CheckpointError
from solar_plugins.storage.atomic import files_below
from solar_plugins.storage.cards import CARD
from solar_plugins.storage.safetensors import PlannedTensor, Shard, read_header, shard_header, shard_index
from solar_plugins.storage.untrusted import read_json_object, require_file
from solar_plugins.text import format_bytes
from solar_plugins.upscaling.base_model import CONFIG, BaseCheckpoint, find_base
from solar_plugins.upscaling.checkpoint import progress
from solar_plugins.upscaling.companions import Reason, judge
from solar_plugins.upscaling.config_check import config_check
from solar_plugins.upscaling.layer_plan import Donor, LayerPlan
from solar_plugins.upscaling.marker import MARKER, Marker, read_marker
from solar_plugins.upscaling.planned_checkpoint import changed_companions
from solar_plugins.upscaling.provenance import provenance, recorded_trust
from solar_plugins.upscaling.upscaled_config import upscale_config
from solar_plugins.upscaling.upscaled_tensors import planned_shards, require_what_computes
from solar_plugins.upscaling.weight_files import INDEX

READ_THREADS = 2
BUFFER_BYTES = 1 << 20
PIECE_BYTES = 16 << 20


class Verified(NamedTuple):
    """The result of a successful comparison."""

    tensors: int
    num_bytes: int
    base: str
    plan: LayerPlan
    note: str
    """Empty, or a remark: the base has changed, although all bytes are equal."""
    config: str
    """How transformers reads the config, or why that was not checked."""


class Difference(NamedTuple):
    """A difference between a checkpoint and its base and plan."""

    what: str
    expected: str
    found: str


def verify_checkpoint(
    directory: Path, base_name: str | None = None, revision: str | None = None, donors: Sequence[str] = ()
) -> Verified:
    """Compare a finished checkpoint with its base and plan: files, config, index, companions, and all tensor bytes.

    If transformers is installed, the config is also checked with its config class. Of the model card only the size is
    compared, because its text may change between versions of this package.

    Args:
        directory: The checkpoint.
        base_name: The base it was created from, a directory or hub id; required if it was a directory.
        revision: Of a hub id; default: the one in the marker.
        donors: Directories or hub ids of the plan's donors, in order; required unless all are hub models.

    Raises:
        CheckpointError: They differ, and the message names the first difference; or they cannot be compared.
    """
    marker = read_marker(directory)
    base = replace(_base(directory, marker, base_name, revision), trusted_keys=_trusted_keys(directory))
    base = _with_donors(directory, base, marker.plan, donors)
    same = base.identity == marker.base_identity
    what = "the base or a donor" if base.donors else "the base"
    note = "" if same else f"{what} is not the recorded one: it was changed, touched or copied, or is another model"
    shards = planned_shards(base, marker.plan, marker.shared_block)
    require_what_computes(shards)
    folders = [model.directory for model in base.models]
    with config_check(folders, directory, base.decoder.model_type, marker.plan, base.trusted_keys) as checked:
        for path, difference in _differences(directory, base, marker, shards):
            if difference:
                raise CheckpointError(
                    f"{path}: {difference.what} does not match {base.name} upscaled by the plan {marker.plan}: "
                    f"expected {difference.expected}, found {difference.found}; this is the first difference"
                    f"{f' ({note})' if note else ''}. If the model was trained or edited in this directory, a "
                    "difference is expected; otherwise remove the directory and write the checkpoint again"
                )
        config = checked()
    total_bytes = sum(shard.data_bytes for shard in shards)
    return Verified(sum(len(shard.tensors) for shard in shards), total_bytes, base.name, marker.plan, note, config)


def _base(directory: Path, marker: Marker, name: str | None, revision: str | None) -> BaseCheckpoint:
    # Code is not run here; whether it was copied shows in the list of files.
    with_code = any(judge({name: None}, code=False).left.get(name) is Reason.CODE for name in marker.files)
    return replace(_found_base(directory, marker, name, revision), trusts_code=with_code)


def _found_base(directory: Path, marker: Marker, name: str | None, revision: str | None) -> BaseCheckpoint:
    if name:
        return find_base(name, revision, trust_remote_code=True)
    if marker.base_revision is None:
        raise CheckpointError(
            f"{directory}: was created from a local directory called {marker.base_name!r:.200}, whose path is not "
            f"recorded; give it: solar verify {directory} --base PATH"
        )
    base = find_base(marker.base_name, revision or marker.base_revision, trust_remote_code=True)
    if base.revision is None:
        raise CheckpointError(
            f"{directory}: was created from {marker.base_name} on the hub, but a local directory has the same name; "
            "choose one with --base, or run this in another directory"
        )
    return base


def _with_donors(directory: Path, base: BaseCheckpoint, plan: LayerPlan, names: Sequence[str]) -> BaseCheckpoint:
    """The base with the donors of a marker's plan, which has their public names."""
    if len(names) not in (0, len(plan.donors)):
        raise CheckpointError(
            f"{directory}: --donor was given {len(names)} times, expected {len(plan.donors)}; give it once for each "
            "donor, in the order of the plan"
        )
    for donor in () if names else plan.donors:
        if donor.revision is None:
            raise CheckpointError(
                f"{directory}: has layers from a local directory called {donor.name!r:.200}, whose path is not "
                f"recorded; give it: solar verify {directory} --donor PATH, once for each donor"
            )
    given = [donor if name == donor.name else Donor(name) for name, donor in zip(names, plan.donors, strict=False)]
    asked = given or plan.donors
    found, _ = base.with_donors(replace(plan, donors=tuple(asked)), None)
    if len(found.donors) != len(plan.donors):
        raise CheckpointError(f"{directory}: two of the given models are the same; check --base and --donor")
    return found


def _trusted_keys(directory: Path) -> tuple[str, ...]:
    try:
        return recorded_trust(read_json_object(directory / CONFIG))
    except (CheckpointError, OSError):
        return ()  # The comparison of the files reports what is wrong with it.


def _differences(
    directory: Path, base: BaseCheckpoint, marker: Marker, shards: list[Shard]
) -> Iterator[tuple[Path, Difference | None]]:
    """The result of each comparison with its file, cheap comparisons first."""
    names = {name for name in files_below(directory) if "/." not in f"/{name}"} - {MARKER}
    sizes = {name: require_file(directory / name) if name in marker.files else 0 for name in sorted(names)}
    yield directory, files_difference(marker.files, sizes)
    config = upscale_config(base.decoder, marker.plan, [donor.decoder for donor in base.donors])
    config |= provenance(marker.base_name, marker.base_revision, marker.plan, base.decoder.trusted_keys)
    yield directory / CONFIG, values_difference(config, read_json_object(directory / CONFIG))
    companions = {base.relative(path): path for path in base.companions}
    planned = {shard.filename for shard in shards} | companions.keys() | {CONFIG, CARD}
    planned |= {INDEX} if len(shards) > 1 else set()
    yield directory, files_difference(dict.fromkeys(planned), dict.fromkeys(sizes))
    if len(shards) > 1:
        yield directory / INDEX, index_difference(shard_index(shards), read_json_object(directory / INDEX))
    changed = changed_companions(base, marker.plan)
    for name, path in companions.items():
        yield directory / name, _companion_difference(changed.get(name, path), directory / name)
    for shard in shards:
        yield directory / shard.filename, _header_difference(shard, directory / shard.filename)
    with progress(sum(shard.data_bytes for shard in shards), "comparing") as advance:
        for shard in shards:
            yield directory / shard.filename, _data_difference(shard, directory / shard.filename, base, advance)


def files_difference(expected: Mapping[str, int | None], found: Mapping[str, int | None]) -> Difference | None:
    """The first file that is missing, unexpected, or of another size.

    Example:
        >>> files_difference({"a": 1, "b": 2}, {"a": 1, "b": 3})
        Difference(what='the file b', expected='2 bytes', found='3 bytes')
    """
    for name in sorted({*expected, *found}):
        if name not in found:
            return Difference(f"the file {name}", "it to exist", "nothing")
        if name not in expected:
            return Difference(f"the file {name}", "no such file", "an unexpected file")
        if expected[name] != found[name]:
            return Difference(f"the file {name}", f"{expected[name]} bytes", f"{found[name]} bytes")
    return None


def values_difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> Difference | None:
    """The first key of a JSON object that is missing, unexpected, or has another value."""
    for key in sorted({*expected, *found}):
        # As text, because NaN != NaN and 1 == True.
        texts = [
            json.dumps(values[key], sort_keys=True) if key in values else "nothing" for values in (expected, found)
        ]
        if texts[0] != texts[1]:
            return Difference(f"{key!r:.200}", f"{texts[0]:.200}", f"{texts[1]:.200}")
    return None


def index_difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> Difference | None:
    """The first tensor that an index assigns to another file, else the first other difference."""
    weight_map = found.get("weight_map")
    if isinstance(weight_map, Mapping):
        difference = values_difference(expected["weight_map"], weight_map)
        if difference:
            return difference._replace(what=f"the place of tensor {difference.what}")
    return values_difference(expected, found)


def tensors_difference(
    expected: Mapping[str, tuple[Any, ...]], found: Mapping[str, tuple[Any, ...]]
) -> Difference | None:
    """The first tensor of a file that is missing, unexpected, or has another (dtype, shape, start)."""
    for name in [*expected, *(name for name in found if name not in expected)]:
        if expected.get(name) != found.get(name):
            texts = [
                "{} {} from byte {}".format(*tensors[name]) if name in tensors else "no such tensor"
                for tensors in (expected, found)
            ]
            return Difference(f"tensor {name!r}", *texts)
    return None


def _companion_difference(ours: Path | bytes, theirs: Path) -> Difference | None:
    with BytesIO(ours) if isinstance(ours, bytes) else ours.open("rb") as expected, theirs.open("rb") as found:
        position = 0
        while True:
            pair = expected.read(BUFFER_BYTES), found.read(BUFFER_BYTES)
            if pair[0] != pair[1]:
                return _bytes_difference("the file", position, *pair)
            if not pair[0]:
                return None
            position += len(pair[0])


def _header_difference(shard: Shard, path: Path) -> Difference | None:
    header = shard_header(shard)
    expected, position = {}, len(header)
    for tensor in shard.tensors:
        expected[tensor.name] = (tensor.source.dtype, list(tensor.source.shape), position)
        position += tensor.source.num_bytes
    found = {name: (t.dtype, list(t.shape), t.start) for name, t in read_header(path).items()}
    with path.open("rb") as file:
        text = file.read(len(header))
    # The raw text is compared too, for metadata and padding, but a tensor gives a better message.
    return tensors_difference(expected, found) or (
        _bytes_difference("the header", 0, header, text) if text != header else None
    )


def _data_difference(
    shard: Shard, path: Path, base: BaseCheckpoint, advance: Callable[[int], object]
) -> Difference | None:
    with ExitStack() as stack, ThreadPoolExecutor(READ_THREADS) as threads:
        target = stack.enter_context(path.open("rb", buffering=0)).fileno()
        files = {tensor.source.file for tensor in shard.tensors if not tensor.zeroed}
        sources = {file: stack.enter_context(file.open("rb", buffering=0)).fileno() for file in files}
        pieces, position = [], len(shard_header(shard))
        for tensor in shard.tensors:
            if tensor.compute:
                pieces.append((tensor, threads.submit(_compare_computed, tensor.compute, target, position, advance)))
            else:
                source = None if tensor.zeroed else sources[tensor.source.file]
                for part in _parts(tensor.source.num_bytes):
                    job = threads.submit(_compare, source, tensor.source.start, target, position, part, advance)
                    pieces.append((tensor, job))
            position += tensor.source.num_bytes
        try:
            for tensor, job in pieces:
                if unequal := job.result():
                    return _bytes_difference(_described(tensor, base), *unequal)
        finally:
            threads.shutdown(cancel_futures=True)
    return None


def _parts(num_bytes: int) -> Iterator[tuple[int, int]]:
    """Start and end of each piece of a tensor."""
    for start in range(0, num_bytes, PIECE_BYTES):
        yield start, min(start + PIECE_BYTES, num_bytes)


def _compare_computed(
    compute: Callable[[], memoryview], target: int, target_start: int, advance: Callable[[int], object]
) -> tuple[int, bytes, bytes] | None:
    """As `_compare`, for a tensor that its initializer computes again."""
    data = compute()
    for position in range(0, len(data), BUFFER_BYTES):
        expected = bytes(data[position : position + BUFFER_BYTES])
        found = os.pread(target, len(expected), target_start + position)
        if expected != found:
            return position, expected, found
        advance(len(found))
    return None


def _compare(
    source: int | None,
    source_start: int,
    target: int,
    target_start: int,
    part: tuple[int, int],
    advance: Callable[[int], object],
) -> tuple[int, bytes, bytes] | None:
    """The offset in ``part`` of a tensor from which two files differ, with data of both. No source means zeros."""
    position, end = part
    while position < end:
        size = min(BUFFER_BYTES, end - position)
        found = os.pread(target, size, target_start + position)
        expected = bytes(size) if source is None else os.pread(source, size, source_start + position)
        if expected != found:
            return position, expected, found
        if len(found) < size:
            raise CheckpointError(
                "a file was truncated while it was compared; do not write to base and checkpoint, and run again"
            )
        advance(size)
        position += size
    return None


def _bytes_difference(what: str, position: int, expected: bytes, found: bytes) -> Difference:
    """The first different byte of two byte strings that start at ``position`` of ``what``, and up to seven more."""
    first = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
    if first is None:
        first = min(len(expected), len(found))
    texts = [part[first : first + 8].hex(" ") or "its end" for part in (expected, found)]
    return Difference(f"{what}, at byte {position + first:,},", *texts)


def _described(tensor: PlannedTensor, base: BaseCheckpoint) -> str:
    if tensor.zeroed:
        return f"tensor {tensor.name!r} (zero, because of how its layer starts)"
    name, model = next(
        (name, model) for model in base.models for name, stored in model.tensors.items() if stored == tensor.source
    )
    made, of = "computed from" if tensor.compute else "a copy of", "" if model is base else f" of {model.name}"
    return f"tensor {tensor.name!r} ({made} {name!r} in {tensor.source.file.name}{of})"


def success_line(verified: Verified) -> str:
    """The output of the command if everything is equal."""
    return (
        f"OK: {verified.tensors} tensors, {format_bytes(verified.num_bytes)}, equal to {verified.base} upscaled by the "
        f"plan {verified.plan}; {verified.config}"
    )
