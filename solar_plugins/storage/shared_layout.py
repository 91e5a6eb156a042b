"""Lay out shards so that their tensors begin at the same offset within a block as in the source files. Pure.

Blocks can be shared (`reflink.py`) wherever source and target offsets are equal modulo the block size. The header of a
shard may be padded with spaces, so its data can begin anywhere within a block, and data that follows each other in the
source can follow each other in the shard. Only where that breaks off does a new shard have to begin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from solar_plugins.storage.safetensors import (
    PlannedTensor,
    Shard,
    StoredTensor,
    plan_shards,
    shard_names,
)

MIN_SHARDS, SHARDS_PER_SOURCE = 16, 3
"""At most the larger of 16 and three times the source files: loaders open every shard."""


type Chain = list[PlannedTensor]
"""Tensors that are written one after the other, each starting where the offset within a block allows to share it."""


def share_shards(tensors: Iterable[PlannedTensor], block: int, max_bytes: int) -> list[Shard]:
    """Split tensors into files so that as many blocks as possible can be shared with the source files.

    Tensors that are zeroed or computed, and those that would need too many files, are laid out as by `plan_shards`.

    Args:
        tensors: In the order of the model.
        block: Block size in bytes.
        max_bytes: Of data in a file. A larger tensor gets its own file.

    Example:
        >>> stored = StoredTensor(Path("a"), "U8", (8192,), 100, 8292)
        >>> [shard] = share_shards([PlannedTensor("x", stored)], 4096, 10**9)
        >>> shard.block, shard.residue, [num_bytes for _, num_bytes in shard.whole_blocks()]
        (4096, 100, [4096])
    """
    tensors = list(tensors)
    copied = [tensor for tensor in tensors if tensor.zeroed or tensor.compute]
    chains = _joined(_chained(_source_runs(tensors, max_bytes), block, max_bytes), block, max_bytes)
    shared = _worth_a_shard(chains, block, max_bytes, sum(map(_num_bytes, copied)), _most_shards(tensors))
    there = {tensor.name for chain in shared for tensor in chain}
    others = [tensor for tensor in tensors if tensor.name not in there]
    plain = plan_shards(others, max_bytes) if others else []
    shards = [*(_shard(chain, block) for chain in shared), *plain]
    return [shard._replace(filename=name) for name, shard in zip(shard_names(len(shards)), shards, strict=True)]


def _shard(chain: Chain, block: int) -> Shard:
    return Shard("", tuple(chain), block, _start(chain, block))


def _num_bytes(tensor: PlannedTensor) -> int:
    return tensor.source.num_bytes


def _most_shards(tensors: Iterable[PlannedTensor]) -> int:
    return max(MIN_SHARDS, SHARDS_PER_SOURCE * len({tensor.source.file for tensor in tensors}))


def _source_runs(tensors: Iterable[PlannedTensor], max_bytes: int) -> Iterator[Chain]:
    """Tensors that follow each other in a source file. A second copy of a tensor goes into a second pass over it."""
    used: Counter[StoredTensor] = Counter()
    passes: dict[tuple[Path, int], Chain] = {}
    for tensor in tensors:
        if not tensor.zeroed and not tensor.compute:
            passes.setdefault((tensor.source.file, used[tensor.source]), []).append(tensor)
            used[tensor.source] += 1
    for one in passes.values():
        run: Chain = []
        length = 0
        for tensor in sorted(one, key=lambda tensor: (tensor.source.start, tensor.source.end)):
            if run and (run[-1].source.end != tensor.source.start or length + _num_bytes(tensor) > max_bytes):
                yield run
                run, length = [], 0
            run.append(tensor)
            length += _num_bytes(tensor)
        yield run


def _length(chain: Chain) -> int:
    return sum(map(_num_bytes, chain))


def _start(chain: Chain, block: int) -> int:
    return chain[0].source.start % block


def _end(chain: Chain, block: int) -> int:
    return chain[-1].source.end % block


def _chained(runs: Iterable[Chain], block: int, max_bytes: int) -> list[Chain]:
    """Append each run to a chain that ends at the offset within a block at which the run starts."""
    by_end: dict[int, list[tuple[int, Chain]]] = {}
    chains: list[Chain] = []
    for run in runs:
        length = _length(run)
        open_chains = by_end.get(_start(run, block), [])
        place = next((i for i, (used, _) in enumerate(open_chains) if used + length <= max_bytes), None)
        used, chain = open_chains.pop(place) if place is not None else (0, [])
        if not chain:
            chains.append(chain)
        chain.extend(run)
        by_end.setdefault(_end(run, block), []).append((used + length, chain))
    return chains


def _joined(chains: list[Chain], block: int, max_bytes: int) -> list[Chain]:
    """Join each chain with one that starts where it ends, so that fewer files are needed."""
    left = dict(enumerate(chains))
    by_start: dict[int, list[int]] = {}
    for number, chain in left.items():
        by_start.setdefault(_start(chain, block), []).append(number)
    for number in list(left):
        while number in left:
            chain = left[number]
            following = next(
                (
                    other
                    for other in by_start.get(_end(chain, block), ())
                    if other != number and other in left and _length(chain) + _length(left[other]) <= max_bytes
                ),
                None,
            )
            if following is None:
                break
            chain.extend(left.pop(following))
    return list(left.values())


def _worth_a_shard(chains: Sequence[Chain], block: int, max_bytes: int, copied_bytes: int, most: int) -> list[Chain]:
    """The chains of which at least half can be shared; as many of the largest as the number of shards allows."""
    shared_bytes = [sum(size for _, size in _shard(chain, block).whole_blocks()) for chain in chains]
    lengths = [_length(chain) for chain in chains]
    worth = [i for i, chain in enumerate(chains) if 0 < lengths[i] <= 2 * shared_bytes[i]]
    worth.sort(key=lambda i: -shared_bytes[i])
    rest = copied_bytes + sum(lengths) - sum(lengths[i] for i in worth)
    while worth and len(worth) + -(-rest // max_bytes) > most:
        rest += lengths[worth.pop()]
    return [chains[i] for i in sorted(worth)]
