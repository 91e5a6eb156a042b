import contextlib
import errno
import json
import os
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from solar_plugins.errors import CheckpointError
from solar_plugins.storage import safetensors as safetensors_io
from solar_plugins.storage.safetensors import PlannedTensor, plan_shards, read_header, shard_index, write_shard


def write_raw(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start, end, dtype="F32", shape=None):
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return {
        "wide": torch.randn(7, 3, dtype=torch.float64),
        "half": torch.randn(5, 3).to(torch.bfloat16),
        "bytes": torch.arange(13, dtype=torch.uint8),
        "float": torch.randn(64, 64),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
    }


def test_header_agrees_with_the_reference_reader(tmp_path, tensors):
    save_file(tensors, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    assert header.keys() == tensors.keys()
    raw = (tmp_path / "a.safetensors").read_bytes()
    for name, tensor in tensors.items():
        stored = header[name]
        assert stored.shape == tuple(tensor.shape)
        assert raw[stored.start : stored.end] == bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy())


@pytest.mark.slow
@pytest.mark.parametrize("max_bytes", [1, 600, 10**9])
def test_written_shards_hold_the_same_values_under_the_new_names(tmp_path, tensors, max_bytes, monkeypatch):
    monkeypatch.setattr(safetensors_io, "PIECE_BYTES", 100)
    monkeypatch.setattr(safetensors_io, "BUFFER_BYTES", 33)
    save_file(tensors, tmp_path / "a.safetensors")
    stored = read_header(tmp_path / "a.safetensors")
    planned = [PlannedTensor(f"{name}.{copy}", stored[name]) for copy in range(2) for name in tensors]
    shards = plan_shards(planned, max_bytes)
    moved = []
    for shard in shards:
        write_shard(shard, tmp_path, moved.append)
    loaded = {}
    for shard in shards:
        loaded |= load_file(tmp_path / shard.filename)
        with safe_open(tmp_path / shard.filename, "pt") as file:
            assert file.metadata() == {"format": "pt"}
    assert loaded.keys() == {tensor.name for tensor in planned} == shard_index(shards)["weight_map"].keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, tensors[name.rpartition(".")[0]])
    assert sum(moved) == sum(shard.data_bytes for shard in shards) == shard_index(shards)["metadata"]["total_size"]


def test_every_tensor_is_aligned_to_its_dtype(tmp_path, tensors):
    save_file(tensors, tmp_path / "a.safetensors")
    stored = read_header(tmp_path / "a.safetensors")
    (shard,) = plan_shards([PlannedTensor(name, stored[name]) for name in ("bytes", "half", "float", "wide")], 10**9)
    write_shard(shard, tmp_path, lambda count: None)
    for tensor in read_header(tmp_path / shard.filename).values():
        assert tensor.start % (safetensors_io.DTYPE_BITS[tensor.dtype] // 8) == 0


def test_zeroed_tensors_are_zero_and_their_neighbors_are_not(tmp_path, tensors):
    save_file(tensors, tmp_path / "a.safetensors")
    stored = read_header(tmp_path / "a.safetensors")
    planned = [PlannedTensor(str(i), stored["float"], zeroed=i in (1, 2)) for i in range(4)]
    (shard,) = plan_shards(planned, 10**9)
    write_shard(shard, tmp_path, lambda count: None)
    loaded = load_file(tmp_path / shard.filename)
    assert torch.equal(loaded["0"], tensors["float"])
    assert torch.equal(loaded["3"], tensors["float"])
    assert not loaded["1"].any()
    assert not loaded["2"].any()


def test_shards_keep_to_the_limit_and_follow_the_hub_names(tmp_path, tensors):
    save_file(tensors, tmp_path / "a.safetensors")
    stored = read_header(tmp_path / "a.safetensors")
    shards = plan_shards([PlannedTensor(str(i), stored["float"]) for i in range(5)], 2 * 64 * 64 * 4)
    assert [len(shard.tensors) for shard in shards] == [2, 2, 1]
    assert [shard.filename for shard in shards] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


GOOD = {"a": entry(0, 8), "b": entry(8, 16)}
HOSTILE = {
    "empty file": (b"", b"", 0),
    "header longer than the file": (GOOD, bytes(16), 1 << 60),
    "header of no length": (GOOD, bytes(16), 0),
    "not JSON": (b"{nonsense}", b"", None),
    "not UTF-8": (b'{"\xff\xfe": 1}', b"", None),
    "not an object": (b"[1, 2]", b"", None),
    "nesting bomb": (b"[" * 200_000 + b"]" * 200_000, b"", None),
    "duplicate names": (b'{"a": %s, "a": %s}' % ((json.dumps(entry(0, 8)).encode(),) * 2), bytes(8), None),
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), None),
    "hole": ({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20), None),
    "truncated data": (GOOD, bytes(15), None),
    "longer than described": (GOOD, bytes(17), None),
    "negative offset": ({"a": entry(-8, 0, shape=[2])}, b"", None),
    "offsets backwards": ({"a": entry(8, 0, shape=[0])}, b"", None),
    "shape disagrees": ({"a": entry(0, 8, shape=[3])}, bytes(8), None),
    "shape that overflows": ({"a": entry(0, 8, shape=[1 << 40, 1 << 40])}, bytes(8), None),
    "float shape": ({"a": entry(0, 8, shape=[2.0])}, bytes(8), None),
    "true as a dimension": ({"a": entry(0, 4, shape=[True])}, bytes(4), None),
    "shape as text": ({"a": entry(0, 8, shape="2")}, bytes(8), None),
    "unknown dtype": ({"a": entry(0, 8, dtype="F33")}, bytes(8), None),
    "dtype as list": ({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, bytes(8), None),
    "three offsets": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, bytes(8), None),
    "entry as number": ({"a": 1}, b"", None),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_by_name(tmp_path, case):
    path = write_raw(tmp_path / "bad.safetensors", *HOSTILE[case])
    with pytest.raises(CheckpointError, match=r"bad.safetensors: "):
        read_header(path)


def test_the_unchanged_file_of_these_cases_is_read(tmp_path):
    assert read_header(write_raw(tmp_path / "good.safetensors", GOOD, bytes(16))).keys() == {"a", "b"}


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 250) | st.integers(0, 2**64 - 1))
def test_random_bytes_never_raise_anything_else(tmp_path_factory, data, length):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(struct.pack("<Q", length) + data)
    with contextlib.suppress(CheckpointError):
        read_header(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**63) | st.floats() | st.sampled_from(["F32", "BF16", "a"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "a", "b", "__metadata__"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(json_values)
def test_random_headers_never_raise_anything_else(tmp_path_factory, header):
    path = write_raw(tmp_path_factory.getbasetemp() / "fuzz.safetensors", header, bytes(8))
    with contextlib.suppress(CheckpointError):
        read_header(path)


def test_a_source_that_shrinks_while_it_is_copied_is_an_error(tmp_path, tensors):
    save_file(tensors, tmp_path / "a.safetensors")
    stored = read_header(tmp_path / "a.safetensors")
    os.truncate(tmp_path / "a.safetensors", 1000)
    (shard,) = plan_shards([PlannedTensor("x", stored["float"])], 10**9)
    with pytest.raises(CheckpointError, match="truncated while it was copied"):
        write_shard(shard, tmp_path, lambda count: None)


def test_an_error_of_the_disk_while_pieces_are_still_copied_is_raised(tmp_path, tensors, monkeypatch):
    def failing_disk(file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing_disk)
    monkeypatch.setattr(safetensors_io, "PIECE_BYTES", 100)
    save_file(tensors, tmp_path / "a.safetensors")
    (shard,) = plan_shards([PlannedTensor("x", read_header(tmp_path / "a.safetensors")["float"])], 10**9)
    with pytest.raises(OSError, match="Input/output error"):
        write_shard(shard, tmp_path, lambda count: None)
