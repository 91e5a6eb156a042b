"""Files made to harm: what the reader of headers and the reader of indices do with them, in time, memory and result."""

import contextlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
from hypothesis import example, given, settings
from hypothesis import strategies as st

from solar_plugins.errors import CheckpointError
from solar_plugins.storage.safetensors import read_header
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.weight_files import INDEX

LIMIT = 25_000_000


def framed(header, data=b"", length=None):
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensors(count):
    entries = (b'"t%06d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(count))
    return b"{" + b",".join(entries) + b"}"


MEASURE = """
import sys, time
from pathlib import Path
from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.storage.safetensors import read_header
path = Path(sys.argv[1])
start, found = time.process_time(), ""
try:
    read_header(path) if path.suffix == ".safetensors" else find_base(str(path.parent)).tensors
except CheckpointError as error:
    found = str(error)
seconds = time.process_time() - start
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(f"{seconds} {peak} {found}")
"""

EMOJI = "\U0001f600".encode()
WORST = {
    "a length of 2^60": (lambda: framed(b"{}", length=1 << 60), "1152921504606846976 bytes, but the file has 10"),
    "100 MB of brackets": (lambda: framed(b"[" * 100_000_000), "header has 100,000,000 bytes, expected at most"),
    "25 MB of brackets": (lambda: framed(b"[" * LIMIT), "about 25,000,000 JSON values, expected at most 1,000,000"),
    "a million brackets": (lambda: framed(b"[" * 999_999), "not valid JSON (maximum recursion depth"),
    "a number of 25 MB": (lambda: framed(b'{"a":' + b"9" * (LIMIT - 10) + b"}"), "not valid JSON (Exceeds the limit"),
    "a name of 25 MB": (lambda: framed(b'{"' + b"a" * (LIMIT - 10) + b'":1}'), "has 24999990 characters"),
    "a million names, wide characters": (
        lambda: framed(b"{" + b",".join(b'"%015d' % i + EMOJI + b'":0' for i in range(990_000)) + b"}"),
        "has an invalid entry 0",
    ),
    "a third of a million objects": (
        lambda: framed(b'{"a":[' + b",".join([b'{"":{}}'] * 330_000) + b"]}"),
        "tensor 'a' has an invalid entry [{'': {}},",
    ),
    "a million tensors": (lambda: framed(tensors(1_000_000)), "header has 58,000,001 bytes"),
    "160,000 tensors": (lambda: framed(tensors(160_000)), "about 1,120,000 JSON values"),
}


def measured(path):
    result = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    seconds, peak, found = result.stdout.strip().split(" ", 2)
    return float(seconds), int(peak), found


@pytest.mark.slow
@pytest.mark.parametrize("case", WORST)
def test_the_worst_headers_are_rejected_quickly_in_bounded_memory(tmp_path, case):
    """Bounds for any header at all; the usual one is refused in milliseconds. Run alone: at most 0.8 s and 405 MB."""
    make, message = WORST[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(make())
    seconds, peak, found = measured(path)
    print(f"{seconds:.2f} s, {peak / 1000:.0f} MB")
    assert found.startswith(f"{path}: ")
    assert message in found
    assert len(found) < 700
    assert seconds < 5
    assert peak < 450_000, "kilobytes"


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize("content", [b"[" * 999_999, b'{"a":' * 100_000, b" " * (LIMIT + 1), b"9" * 1_000_000])
def test_configs_and_indices_are_bounded_too(sharded_base, name, content):
    (sharded_base / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: "):
        _ = find_base(str(sharded_base)).tensors


@pytest.mark.slow
def test_a_hundred_thousand_tensors_are_read(tmp_path):
    """More than any file is known to hold."""
    (tmp_path / "x.safetensors").write_bytes(framed(tensors(100_000)))
    assert len(read_header(tmp_path / "x.safetensors")) == 100_000


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\nb", "a\x00", "\ud800", "a\u202eb", "x" * 501])
def test_names_that_could_deceive_a_reader_are_refused(tmp_path, name):
    header = json.dumps({name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(framed(header, b"1"))
    with pytest.raises(CheckpointError, match=r"x.safetensors: tensor name .* expected at most 500") as error:
        read_header(tmp_path / "x.safetensors")
    assert str(error.value).isprintable()


def test_an_index_may_not_name_a_tensor_twice(sharded_base):
    text = (sharded_base / INDEX).read_text()
    (sharded_base / INDEX).write_text(text.replace('"weight_map": {', '"weight_map": {"lm_head.weight": "x",'))
    with pytest.raises(CheckpointError, match="duplicate name"):
        _ = find_base(str(sharded_base)).tensors


def special_pipe(path):
    os.mkfifo(path)


def special_device(path):
    path.symlink_to("/dev/zero")


def special_link_out(path):
    path.symlink_to("/etc/passwd")


def special_loop(path):
    path.symlink_to(path.name)


@pytest.mark.parametrize("special", [special_pipe, Path.mkdir, special_device, special_link_out, special_loop])
@pytest.mark.parametrize("name", ["model-00001-of-*.safetensors", "config.json", INDEX, "tokenizer.json"])
@pytest.mark.timeout(20)
def test_what_is_no_file_of_this_folder_is_never_opened(sharded_base, name, special):
    """Reading a pipe or a device would never end, and a link may point to a private file."""
    (path,) = list(sharded_base.glob(name)) or [sharded_base / name]
    path.unlink(missing_ok=True)
    without = find_base(str(sharded_base)).identity if name == "tokenizer.json" else None
    special(path)
    if name == "tokenizer.json" and special is not special_link_out:
        assert find_base(str(sharded_base)).identity == without, "a companion that is no file is none"
        return
    with pytest.raises(CheckpointError) as error:
        _ = find_base(str(sharded_base)).identity
    if special is special_link_out and name != "config.json":
        expected = f"{path.name}: a link out of the model's directory, to /etc/passwd"
    else:
        expected = path.name
    assert expected in str(error.value)


GOOD = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
    "b.weight": {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]},
    "c": {"dtype": "I8", "shape": [0, 7], "data_offsets": [10, 10]},
    "d": {"dtype": "F64", "shape": [1], "data_offsets": [10, 18]},
}
DATA = bytes(range(18))
FILE = framed(json.dumps(GOOD).encode(), DATA)


def reference(content):
    """What the safetensors library finds in the same bytes, or None if it refuses them."""
    try:
        found = safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return None
    return {name: (info["dtype"], tuple(info["shape"]), bytes(info["data"])) for name, info in found}


def agrees_with_the_reference(path, content):
    """The property of all that follow: what we accept, the reference reads in the same way."""
    path.write_bytes(content)
    try:
        found = read_header(path)
    except CheckpointError:
        return False
    ours = {name: (t.dtype, t.shape, content[t.start : t.end]) for name, t in found.items()}
    assert ours == reference(content)
    return True


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "x.safetensors"


def test_the_file_that_is_mutated_is_good(path):
    assert agrees_with_the_reference(path, FILE)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(FILE) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_flipped_bytes(path, flips):
    content = bytearray(FILE)
    for position, value in flips:
        content[position] = value
    agrees_with_the_reference(path, bytes(content))


@settings(max_examples=250, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 70) | st.integers(0, 2**64 - 1))
@example(b"{}" + b" " * 20, 22)
@example(b" {}", 3)
@example('{"a": 1}'.encode("utf-16-le"), 16)
def test_arbitrary_bytes_are_read_as_the_reference_reads_them(path, content, length):
    agrees_with_the_reference(path, framed(content, length=length))


numbers = st.integers(-2, 20) | st.sampled_from([2**31, 2**53 + 1, 2**62, 2**63, 2**64, 0.5, 8.0, True, None, "8"])
shapes = st.lists(numbers, max_size=3) | numbers
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I8", "F64", "F4", "C64", "f32", "", "F99", None, 3, []]),
        "shape": shapes,
        "data_offsets": st.lists(numbers, min_size=2, max_size=2) | shapes,
    },
    optional={"extra": st.none() | st.lists(numbers, max_size=2)},
)
metadata = st.dictionaries(st.text(max_size=2), st.text(max_size=2) | numbers, max_size=2) | numbers


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), entries, max_size=3), metadata, st.booleans(), st.integers(0, 24))
def test_arbitrary_headers_are_read_as_the_reference_reads_them(path, header, some_metadata, with_metadata, num_bytes):
    header |= {"__metadata__": some_metadata} if with_metadata else {}
    agrees_with_the_reference(path, framed(json.dumps(header).encode(), bytes(range(num_bytes))))


@settings(max_examples=250, deadline=None)
@given(st.permutations([0, 8, 8, 10, 10, 10, 10, 18]), st.permutations(["a", "b.weight", "c", "d"]))
def test_swapped_offsets_and_orders(path, offsets, names):
    header = {name: GOOD[name] | {"data_offsets": offsets[2 * i : 2 * i + 2]} for i, name in enumerate(names)}
    agrees_with_the_reference(path, framed(json.dumps(header).encode(), DATA))


def test_tensors_may_stand_in_any_order_of_names(path):
    header = {name: GOOD[name] for name in ("d", "c", "a", "b.weight")}
    assert agrees_with_the_reference(path, framed(json.dumps(header).encode(), DATA))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base of two shards, one tensor each; the tests put other indices into it."""
    directory = tmp_path_factory.mktemp("indexed")
    (directory / "config.json").write_text("{}")
    for number in "12":
        header = json.dumps({number: {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}).encode()
        (directory / f"{number}.safetensors").write_bytes(framed(header, b"x"))
    return directory


index_names = st.sampled_from(
    ["1.safetensors", "2.safetensors", "../1.safetensors", "/etc/passwd", ".", "", "a\0b", "~"]
)
weight_maps = st.dictionaries(st.sampled_from(["1", "2", "3"]), index_names | st.none() | st.integers() | st.text())
indices = st.fixed_dictionaries({"weight_map": weight_maps | st.lists(index_names) | st.none()}) | st.lists(st.none())


@settings(max_examples=250, deadline=None)
@given(indices | st.binary(max_size=40))
@example({"weight_map": {"1": "1.safetensors", "2": "2.safetensors"}})
def test_an_arbitrary_index_is_rejected_or_read_as_written(folder, index):
    (folder / INDEX).write_bytes(index if isinstance(index, bytes) else json.dumps(index).encode())
    with contextlib.suppress(CheckpointError):
        found = find_base(str(folder)).weights
        read = {name: tensor.file.name for name, tensor in found.tensors.items() if name not in found.unlisted}
        assert read | dict(found.absent) == index["weight_map"]


def test_the_right_index_is_read(folder):
    (folder / INDEX).write_text('{"weight_map": {"1": "1.safetensors", "2": "2.safetensors"}}')
    assert find_base(str(folder)).weights.tensors.keys() == {"1", "2"}
