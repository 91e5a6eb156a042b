"""Shards that are laid out to share blocks: checked over random files, and written with an emulated file system."""

import os
from collections import Counter
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from solar_plugins.storage import safetensors as safetensors_io
from solar_plugins.storage.safetensors import PlannedTensor, StoredTensor, read_header, shard_header, write_shard
from solar_plugins.storage.shared_layout import MIN_SHARDS, share_shards

BLOCK = 4096


@st.composite
def planned(draw):
    """Tensors of up to three files, each used zero to three times, in any order, some of them zeroed."""
    tensors = []
    for number in range(draw(st.integers(1, 3))):
        position = draw(st.integers(8, 9000))
        for index in range(draw(st.integers(0, 12))):
            size = draw(st.sampled_from([0, 2, 100, 4096, 8192, 12_290, 40_000, 1 << 20]))
            stored = StoredTensor(Path(f"{number}"), "U8", (size,), position, position + size)
            position += size
            tensors += [(f"{number}.{index}.{copy}", stored) for copy in range(draw(st.integers(0, 3)))]
    order = draw(st.permutations(tensors))
    return [PlannedTensor(name, stored, zeroed=draw(st.integers(0, 5)) == 0) for name, stored in order]


@settings(max_examples=300, deadline=None)
@given(tensors=planned(), max_bytes=st.sampled_from([10_000, 100_000, 10**9]))
def test_every_tensor_is_written_once_and_shared_data_keeps_its_place_in_the_block(tensors, max_bytes):
    shards = share_shards(tensors, BLOCK, max_bytes)
    assert Counter(tensor for shard in shards for tensor in shard.tensors) == Counter(tensors)
    assert [shard.filename for shard in shards] == safetensors_io.shard_names(len(shards))
    assert all(shard.data_bytes <= max_bytes or len(shard.tensors) == 1 for shard in shards)
    files = {tensor.source.file for tensor in tensors}
    assert sum(shard.block > 0 for shard in shards) <= max(MIN_SHARDS, 3 * len(files))
    assert shards == share_shards(tensors, BLOCK, max_bytes), "solar verify lays the shards out again"
    for shard in shards:
        position = len(shard_header(shard))
        for tensor in shard.tensors:
            if shard.block:
                assert tensor.source.start % BLOCK == position % BLOCK
                assert not tensor.zeroed
            position += tensor.source.num_bytes


def test_widths_that_are_multiples_of_the_block_need_one_shard_for_each_pass():
    size = 2 * BLOCK
    stored = [StoredTensor(Path("a"), "U8", (size,), 104 + i * size, 104 + (i + 1) * size) for i in range(8)]
    plan = [*range(6), *range(2, 8)]
    shards = share_shards([PlannedTensor(f"{i}", stored[source]) for i, source in enumerate(plan)], BLOCK, 10**9)
    assert len(shards) == 1, "the second pass starts where the first one ends in the block"
    # The two runs, 0 to 7 and 2 to 5, share everything but the blocks at their ends.
    assert sum(size for _, size in shards[0].whole_blocks()) == 12 * size - 2 * BLOCK


def test_other_widths_need_a_shard_for_each_break():
    sizes = [50_000, 60_000, 70_000, 4000, 90_000, 100_000]
    starts = [104 + sum(sizes[:i]) for i in range(6)]
    stored = [StoredTensor(Path("a"), "U8", (n,), s, s + n) for s, n in zip(starts, sizes, strict=True)]
    shards = share_shards([PlannedTensor(f"{i}", stored[i]) for i in (0, 1, 3, 5)], BLOCK, 10**9)
    shared = [[tensor.name for tensor in shard.tensors] for shard in shards if shard.block]
    copied = [[tensor.name for tensor in shard.tensors] for shard in shards if not shard.block]
    assert (shared, copied) == ([["0", "1"], ["5"]], [["3"]]), "tensor 3 has no whole block"


def test_too_many_breaks_are_copied():
    sizes = [3 * BLOCK + 8 * (i % 97 + 1) for i in range(200)]
    starts = [104 + sum(sizes[:i]) for i in range(200)]
    stored = [StoredTensor(Path("a"), "U8", (n,), s, s + n) for s, n in zip(starts, sizes, strict=True)]
    shards = share_shards([PlannedTensor(f"{i}", stored[i]) for i in range(0, 200, 2)], BLOCK, 10**9)
    assert len(shards) == MIN_SHARDS
    assert [shard.block for shard in shards] == [BLOCK] * 15 + [0]


def emulated_clone(source, source_start, target, target_start, num_bytes):
    assert source_start % BLOCK == target_start % BLOCK == num_bytes % BLOCK == 0 < num_bytes
    os.pwrite(target, os.pread(source, num_bytes, source_start), target_start)
    return True


def test_a_written_shard_holds_the_same_values_and_only_its_ends_are_copied(tmp_path, monkeypatch):
    torch.manual_seed(0)
    tensors = {f"{i}": torch.randn(i + 1, 997).to(torch.bfloat16) for i in range(20)}
    save_file(tensors, tmp_path / "a.safetensors")
    stored = read_header(tmp_path / "a.safetensors")
    uses = [f"{i}" for i in (*range(14), *range(6, 20))]
    planned_tensors = [PlannedTensor(f"{n}.{name}", stored[name]) for n, name in enumerate(uses)]
    shards = share_shards(planned_tensors, BLOCK, 10**9)
    monkeypatch.setattr(safetensors_io, "clone_range", emulated_clone)
    advanced, loaded, copied = [], {}, 0
    for shard in shards:
        copied += write_shard(shard, tmp_path, advanced.append)
        loaded |= load_file(tmp_path / shard.filename)
    assert loaded.keys() == {tensor.name for tensor in planned_tensors}
    assert all(torch.equal(tensor, tensors[name.partition(".")[2]]) for name, tensor in loaded.items())
    total = sum(shard.data_bytes for shard in shards)
    assert sum(advanced) == total
    assert copied == total - sum(size for shard in shards for _, size in shard.whole_blocks())
    assert copied < 2 * BLOCK * sum(shard.block > 0 for shard in shards) * 3
