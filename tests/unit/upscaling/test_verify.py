import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner

from solar_plugins.cli import solar
from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling import upscaled_tensors, verify
from solar_plugins.upscaling.architectures import spellings
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import MARKER, ensure_checkpoint, is_finished
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.verify import (
    Difference,
    files_difference,
    index_difference,
    tensors_difference,
    values_difference,
    verify_checkpoint,
)
from solar_plugins.upscaling.weight_files import INDEX

DUS = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
EXPANDED = LayerPlan(8, tuple(PlannedLayer(i, kind) for i in range(8) for kind in ("copy", "identity")))


@pytest.fixture
def made(sharded_base, tmp_path, monkeypatch):
    """A checkpoint in several shards, with companions, and its base."""
    monkeypatch.setattr(upscaled_tensors, "MAX_SHARD_BYTES", 40_000)
    (sharded_base / "tokenizer.json").write_text("{}" * 10)
    return ensure_checkpoint(find_base(str(sharded_base)), DUS, tmp_path / "cache"), sharded_base


def invoke(*arguments):
    return CliRunner().invoke(solar, ["verify", *map(str, arguments)])


@pytest.mark.parametrize("plan", [DUS, EXPANDED], ids=["dus", "identity"])
@pytest.mark.parametrize("buffer_bytes", [7, 1 << 20])
def test_the_written_checkpoint_is_verified(any_base, tmp_path, plan, buffer_bytes, monkeypatch):
    monkeypatch.setattr(verify, "BUFFER_BYTES", buffer_bytes * 100)
    monkeypatch.setattr(verify, "PIECE_BYTES", buffer_bytes * 333)
    directory = ensure_checkpoint(find_base(str(any_base)), plan, tmp_path / "cache")
    verified = verify_checkpoint(directory, str(any_base))
    written = find_base(str(directory)).tensors
    assert (verified.tensors, verified.num_bytes) == (
        len(written),
        sum(tensor.num_bytes for tensor in written.values()),
    )
    assert (verified.plan, verified.note) == (plan, "")


def test_success_is_one_line(made):
    directory, base = made
    result = invoke(directory, "--base", base)
    assert (result.exit_code, result.stdout) == (
        0,
        f"OK: 111 tensors, 202 kB, equal to {base} upscaled by the plan 8 -> 12 layers: [0..5] + [2..7]; "
        f"transformers {transformers.__version__} reads 12 layers in agreement with the plan\n",
    )
    assert "comparing: 100%" in result.stderr
    assert "B/s" in result.stderr


def flip(path, position):
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))
    return byte


def test_one_changed_bit_is_found_by_tensor_and_byte_although_the_directory_looks_finished(made):
    directory, base = made
    name = "model.layers.7.mlp.up_proj.weight"
    tensor = find_base(str(directory)).tensors[name]
    before = flip(tensor.file, tensor.start + 1001)
    os.utime(tensor.file, ns=(1, 1))
    assert is_finished(directory, find_base(str(base)), DUS)
    result = invoke(directory, "--base", base)
    assert result.exit_code == 1
    error = result.stderr[result.stderr.index("Error: ") :]
    source = find_base(str(base)).tensors["model.layers.3.mlp.up_proj.weight"].file.name
    assert error.startswith(
        f"Error: {tensor.file}: tensor '{name}' (a copy of 'model.layers.3.mlp.up_proj.weight' in {source}), at byte "
        f"1,001, does not match {base} upscaled by the plan 8 -> 12 layers: [0..5] + [2..7]: expected {before:02x} "
    )
    assert f"found {before ^ 1:02x} " in error
    assert "If the model was trained or edited in this directory, a difference is expected" in error
    assert len(error.splitlines()) == 1


def test_every_byte_of_every_tensor_counts(base, tmp_path):
    """The first and the last byte of each tensor, one at a time."""
    directory = ensure_checkpoint(find_base(str(base)), LayerPlan.from_sources(8, [0, 0]), tmp_path / "cache")
    for name, tensor in find_base(str(directory)).tensors.items():
        for position in (tensor.start, tensor.end - 1):
            flip(tensor.file, position)
            with pytest.raises(CheckpointError, match=rf"tensor '{name}' .* at byte {position - tensor.start:,},"):
                verify_checkpoint(directory, str(base))
            flip(tensor.file, position)
    assert verify_checkpoint(directory, str(base)).tensors == 21


def test_the_first_of_several_differences_is_named(made):
    directory, base = made
    tensors = sorted(find_base(str(directory)).tensors.items(), key=lambda item: (item[1].file, item[1].start))
    for index in (90, 50, 20):
        flip(tensors[index][1].file, tensors[index][1].start)
    with pytest.raises(CheckpointError, match=f"tensor '{tensors[20][0]}'"):
        verify_checkpoint(directory, str(base))


def test_an_identity_layer_must_be_zero(base, tmp_path):
    directory = ensure_checkpoint(find_base(str(base)), EXPANDED, tmp_path / "cache")
    name = "model.layers.1.self_attn.o_proj.weight"
    tensor = find_base(str(directory)).tensors[name]
    flip(tensor.file, tensor.start)
    with pytest.raises(
        CheckpointError,
        match=rf"tensor '{name}' \(zero, because of how its layer starts\), at byte 0, .* expected 00 .* found 01",
    ):
        verify_checkpoint(directory, str(base))


def edit_json(path, edit):
    """Change a JSON file and the size that the marker records, as a careful editor would."""
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    if path.name != MARKER:
        edit_json(path.parent / MARKER, lambda marker: marker["files"].update({path.name: path.stat().st_size}))


def damage_depth(directory):
    edit_json(directory / "config.json", lambda config: config.update(num_hidden_layers=8))


def damage_config_key(directory):
    edit_json(directory / "config.json", lambda config: config.pop("hidden_act"))


def damage_provenance(directory):
    edit_json(directory / "config.json", lambda config: config["solar_plugins"].update(base_model="other"))


def damage_index(directory):
    def move(index):
        index["weight_map"]["lm_head.weight"] = "model-00002-of-00006.safetensors"

    edit_json(directory / INDEX, move)


def damage_index_size(directory):
    edit_json(directory / INDEX, lambda index: index["metadata"].update(total_size=1))


def damage_companion(directory):
    flip(directory / "tokenizer.json", 4)


def damage_missing(directory):
    (directory / "tokenizer.json").unlink()


def damage_extra(directory):
    (directory / "adapter_model.safetensors").write_bytes(b"x")


def damage_size(directory):
    (directory / "README.md").write_text("edited")


def damage_unlisted(directory):
    (directory / "tokenizer.json").unlink()
    edit_json(directory / MARKER, lambda marker: marker["files"].pop("tokenizer.json"))


def damage_header_metadata(directory):
    path = sorted(directory.glob("*.safetensors"))[0]
    flip(path, path.read_bytes().index(b'"pt"') + 1)


def damage_header_name(directory):
    path = sorted(directory.glob("*.safetensors"))[0]
    flip(path, path.read_bytes().index(b"model.embed_tokens") + 4)


def damage_header_shape(directory):
    path = sorted(directory.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes().replace(b"[32,32]", b"[16,64]", 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_depth, r"config.json: 'num_hidden_layers' does not match .*: expected 12, found 8;"),
        (damage_config_key, r"config.json: 'hidden_act' does not match .*: expected \"silu\", found nothing;"),
        (damage_provenance, r"config.json: 'solar_plugins' does not match .* found {\"base_model\": \"other\""),
        (damage_index, r"index.json: the place of tensor 'lm_head.weight' .* found \"model-00002-of-00006"),
        (
            damage_index_size,
            r"index.json: 'metadata' does not match .*: expected {\"total_size\": 20\d*}, found {\"total_size\": 1",
        ),
        (damage_companion, r"tokenizer.json: the file, at byte 4, does not match .*: expected 7b 7d .*, found 7a 7d"),
        (damage_missing, r"the file tokenizer.json does not match .*: expected it to exist, found nothing"),
        (damage_extra, r"the file adapter_model.safetensors .*: expected no such file, found an unexpected file"),
        (damage_size, r"the file README.md does not match .*: expected \d+ bytes, found 6 bytes"),
        (damage_unlisted, r"the file tokenizer.json does not match .*: expected it to exist, found nothing"),
        (damage_header_metadata, r"model-00001-of-\d*.safetensors: the header, at byte \d+, .*: expected 70 74"),
        (damage_header_name, r"safetensors: tensor 'model.embed_tokens.weight' .* found no such tensor"),
        (
            damage_header_shape,
            r"safetensors: tensor '.*' does not match .*: expected BF16 \[32, 32\] from .*found BF16 \[16, 64\]",
        ),
    ],
)
def test_every_difference_is_named(made, damage, message):
    directory, base = made
    damage(directory)
    with pytest.raises(CheckpointError, match=message):
        verify_checkpoint(directory, str(base))


def test_a_local_base_must_be_named_and_is_not_guessed(made, monkeypatch):
    directory, base = made
    monkeypatch.chdir(base.parent)
    assert Path(base.name).is_dir()
    result = invoke(directory)
    assert result.exit_code == 1
    assert f"from a local directory called '{base.name}'" in result.stderr
    assert f"solar verify {directory} --base PATH" in result.stderr


def test_a_modified_base_is_noted_and_still_compared(made):
    directory, base = made
    os.utime(base / "config.json", ns=(1, 1))
    result = invoke(directory, "--base", base)
    assert result.exit_code == 0
    assert "Note: the base is not the recorded one" in result.stderr
    assert result.stdout.startswith("OK: 111 tensors")


def test_another_base_differs(made, tmp_path):
    directory, base = made
    other = Path(shutil.copytree(base, tmp_path / "other"))
    tensor = find_base(str(other)).tensors["model.norm.weight"]
    flip(tensor.file, tensor.start)
    with pytest.raises(CheckpointError, match=r"tensor 'model.norm.weight' .* \(the base is not the recorded one"):
        verify_checkpoint(directory, str(other))


def hub_cache(top, base, monkeypatch):
    import huggingface_hub.constants

    snapshot = top / "hub" / "models--someone--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(base, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(top / "hub"))


def test_a_hub_base_is_found_by_the_marker(base, tmp_path, monkeypatch):
    hub_cache(tmp_path, base, monkeypatch)
    directory = ensure_checkpoint(find_base("someone/tiny", "main"), DUS, tmp_path / "cache")
    assert verify_checkpoint(directory).base == "someone/tiny"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, tmp_path / "someone" / "tiny")
    with pytest.raises(CheckpointError, match="from someone/tiny on the hub, but a local directory has the same name"):
        verify_checkpoint(directory)


def test_a_trained_model_is_explained(base, tmp_path):
    """What Axolotl saves: the config with our record, weights, and no marker."""
    directory = ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")
    (directory / MARKER).unlink()
    result = invoke(directory, "--base", base)
    assert result.exit_code == 1
    assert "has no solar_plan.json, but its config.json says that it was upscaled." in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_no_checkpoint_at_all(base, tmp_path):
    for directory, message in (
        (base, "so it is not a finished checkpoint"),
        (tmp_path / "x", "does not exist"),
    ):
        result = invoke(directory, "--base", base)
        assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
        assert message in result.stderr


def test_the_comparisons_are_pure():
    assert files_difference({"a": 1}, {"a": 1}) is None
    assert files_difference({"a": 1, "b": 1}, {"a": 1}) == Difference("the file b", "it to exist", "nothing")
    assert values_difference({"a": float("nan")}, {"a": float("nan")}) is None
    assert values_difference({"a": 1}, {"a": True}) == Difference("'a'", "1", "true")
    assert values_difference({}, {"a": None}) == Difference("'a'", "nothing", "null")
    assert tensors_difference({"x": ("F32", [2], 8)}, {"x": ("F32", [2], 8)}) is None
    assert tensors_difference({"x": ("F32", [2], 8)}, {"x": ("F32", [2], 16)}) == Difference(
        "tensor 'x'", "F32 [2] from byte 8", "F32 [2] from byte 16"
    )
    assert tensors_difference({}, {"y": ("U8", [], 8)}) == Difference(
        "tensor 'y'", "no such tensor", "U8 [] from byte 8"
    )
    index = {"metadata": {}, "weight_map": {"a": "f", "b": "f"}}
    assert index_difference(index, index) is None
    assert index_difference(index, {"weight_map": {"a": "f"}}) == Difference(
        "the place of tensor 'b'", '"f"', "nothing"
    )
    assert index_difference(index, {"weight_map": 3, "metadata": {}}).what == "'weight_map'"


def test_memory_does_not_grow_with_the_model(tmp_path):
    """A tensor of 300 MB, sparse on the disk, is compared with zeros in a process of its own."""
    script = """
import sys
from pathlib import Path
from solar_plugins.storage.safetensors import PlannedTensor, Shard, StoredTensor, shard_header
from solar_plugins.upscaling.verify import _data_difference
size, path = 300_000_000, Path(sys.argv[1])
shard = Shard(path.name, (PlannedTensor("x", StoredTensor(path, "U8", (size,), 0, size), zeroed=True),))
with path.open("wb") as file:
    file.write(shard_header(shard))
    file.truncate(file.tell() + size)
assert _data_difference(shard, path, None, lambda count: None) is None
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    peak = subprocess.run([sys.executable, "-c", script, tmp_path / "x"], check=True, stdout=subprocess.PIPE).stdout
    assert int(peak) < 100_000, "kilobytes, of which Python and click are half"


def test_transformers_finds_a_stale_depth_alias(tmp_path, monkeypatch):
    """A fault in the table is in the checkpoint and in what it is compared with, but not in transformers."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=16, n_layer=8, n_head=2, vocab_size=32, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 8}))
    right = ensure_checkpoint(find_base(str(path.parent)), DUS, tmp_path / "cache")
    assert verify_checkpoint(right, str(path.parent)).config.endswith("reads 12 layers in agreement with the plan")
    monkeypatch.setattr(spellings, "DEPTH_KEYS", frozenset())
    wrong = ensure_checkpoint(find_base(str(path.parent)), DUS, tmp_path / "other")
    with pytest.raises(CheckpointError, match="reads a depth of 8, and 8 for the base"):
        verify_checkpoint(wrong, str(path.parent))
