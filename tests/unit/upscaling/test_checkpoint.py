import copy
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from solar_plugins.errors import CheckpointError
from solar_plugins.plugins.manager import loaded_plugins
from solar_plugins.storage import safetensors as safetensors_io
from solar_plugins.upscaling import checkpoint, upscaled_tensors
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import MARKER, ensure_checkpoint, is_finished, write_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer

DUS = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
OUT_OF_ORDER = LayerPlan.from_sources(8, [7, 0, 0, 3])
EXPANDED = LayerPlan(8, tuple(PlannedLayer(i, kind) for i in range(8) for kind in ("copy", "identity")))


def rearranged_in_memory(directory, plan):
    """The reference: the base's real modules, deep-copied and put in the plan's order."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    layers = []
    for position, planned in enumerate(plan.layers):
        layer = copy.deepcopy(model.model.layers[planned.source])
        layer.self_attn.layer_idx = position
        if planned.initialization == "identity":
            for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
                for parameter in module.parameters():
                    nn.init.zeros_(parameter)
        layers.append(layer)
    model.model.layers = nn.ModuleList(layers)
    model.config.num_hidden_layers = len(plan)
    return model.eval()


def load(directory):
    model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("plan", [DUS, OUT_OF_ORDER, EXPANDED], ids=["dus", "out of order", "identity"])
def test_the_written_model_is_the_rearranged_one(any_base, tmp_path, plan):
    directory = ensure_checkpoint(find_base(str(any_base)), plan, tmp_path / "cache")
    model, reference = load(directory), rearranged_in_memory(any_base, plan)
    assert model.config.num_hidden_layers == len(plan)
    expected = reference.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    ids = torch.arange(1, 25)[None] * 5 % 128
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)
    cached, uncached, expected_ids = (
        some_model.generate(
            ids, max_new_tokens=8, do_sample=False, use_cache=use_cache, eos_token_id=None, pad_token_id=0
        )
        for some_model, use_cache in ((model, True), (model, False), (reference, True))
    )
    assert torch.equal(cached, uncached)
    assert torch.equal(cached, expected_ids)


def test_an_expanded_model_computes_what_its_base_computes(base, tmp_path):
    """LLaMA Pro: identity layers leave the function unchanged."""
    grown = load(ensure_checkpoint(find_base(str(base)), EXPANDED, tmp_path / "cache"))
    ids = torch.arange(1, 25)[None]
    with torch.no_grad():
        assert torch.equal(grown(ids).logits, load(base)(ids).logits)


def test_half_the_depth_gives_the_base_back_byte_for_byte(base, tmp_path):
    directory = ensure_checkpoint(find_base(str(base)), LayerPlan.from_sources(8, range(8)), tmp_path / "cache")
    old, new = find_base(str(base)).tensors, find_base(str(directory)).tensors
    assert old.keys() == new.keys()
    for name in old:
        a, b = old[name], new[name]
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.file.read_bytes()[a.start : a.end] == b.file.read_bytes()[b.start : b.end]


def test_shards_and_index(sharded_base, tmp_path, monkeypatch):
    monkeypatch.setattr(upscaled_tensors, "MAX_SHARD_BYTES", 40_000)
    directory = ensure_checkpoint(find_base(str(sharded_base)), DUS, tmp_path / "cache")
    assert len(list(directory.glob("model-*.safetensors"))) > 3
    load(directory)


def test_the_files_of_a_checkpoint(base, tmp_path):
    for name in ("tokenizer.json", "chat_template.jinja", "LICENSE.txt"):
        (base / name).write_text(name)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\nA base.\n")
    (base / "optimizer.pt").write_text("x")
    directory = ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")
    assert {path.name for path in directory.iterdir()} == {
        *("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"),
        *("LICENSE.txt", "README.md", MARKER),
    }
    assert (directory / "tokenizer.json").read_text() == "tokenizer.json"
    assert "license: apache-2.0" in (directory / "README.md").read_text()
    config = json.loads((directory / "config.json").read_text())
    assert config["solar_plugins"]["plan"] == DUS.to_dict()
    assert config["solar_plugins"]["base_model"] == "base", "the name of the folder, not its path"
    assert str(tmp_path) not in "".join(path.read_text() for path in directory.glob("*.[jm]*[dn]"))
    assert not list((tmp_path / "cache").glob(".*partial*"))


def test_a_second_call_writes_nothing(base, tmp_path):
    first = ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache") == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before


def test_base_and_plan_each_have_their_own_directory(base, tmp_path):
    cache = tmp_path / "cache"
    first = ensure_checkpoint(find_base(str(base)), DUS, cache)
    other_plan = ensure_checkpoint(find_base(str(base)), OUT_OF_ORDER, cache)
    os.utime(base / "config.json", ns=(1, 1))
    assert len({first, other_plan, ensure_checkpoint(find_base(str(base)), DUS, cache)}) == 3


def test_the_directory_name_says_no_model_family(base, tmp_path):
    """Axolotl takes "llama", "mistral" or "falcon" in a path for the model's type."""
    name = ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache").name
    assert name.startswith("upscaled-8-to-12-")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", MARKER])
def test_a_damaged_checkpoint_is_written_again(base, tmp_path, name):
    found = find_base(str(base))
    directory = ensure_checkpoint(found, DUS, tmp_path / "cache")
    os.truncate(directory / name, 10)
    assert not is_finished(directory, found, DUS)
    assert ensure_checkpoint(found, DUS, tmp_path / "cache") == directory
    load(directory)


def test_a_full_disk_leaves_no_finished_output_and_the_next_run_repairs_it(base, tmp_path, monkeypatch):
    written = []

    def full_after_100_kb(file, data, position):
        written.append(len(data))
        if sum(written) > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_pwrite(file, data, position)

    real_pwrite = os.pwrite
    monkeypatch.setattr(safetensors_io.os, "pwrite", full_after_100_kb)
    monkeypatch.setattr(safetensors_io, "BUFFER_BYTES", 10_000)
    with pytest.raises(CheckpointError, match=r"could not be written .No space left on device") as error:
        ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")
    assert "solar.cache_dir" in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    load(ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache"))


def test_too_little_space_is_found_before_anything_is_written(base, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match=r"1 kB free, but the upscaled checkpoint needs \d+ kB"):
        ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")


def test_a_read_only_output(base, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "cache"))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(CheckpointError, match=r"could not be written .Read-only file system"):
        ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")


def test_a_base_that_changes_while_it_is_copied(base, tmp_path, monkeypatch):
    def change_the_base(*args):
        os.utime(base / "model.safetensors", ns=(1, 1))
        return real_write_shard(*args)

    real_write_shard = checkpoint.write_shard
    monkeypatch.setattr(checkpoint, "write_shard", change_the_base)
    with pytest.raises(CheckpointError, match="the base changed while it was copied"):
        ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


MAKE = """
import logging, os, sys, time
from pathlib import Path
from solar_plugins.storage import safetensors as safetensors_io
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan

base, cache, start, mode = sys.argv[1:]
real_pwrite = os.pwrite

def die(*args):
    real_pwrite(*args)
    os.kill(os.getpid(), 9)

if mode == "die":
    safetensors_io.os.pwrite = die
found = find_base(base)
time.sleep(max(0, float(start) - time.time()))
print(ensure_checkpoint(found, LayerPlan.from_sources(8, [*range(6), *range(2, 8)]), Path(cache)))
"""


def start_process(base, cache, start=0.0, mode="make"):
    """Another process that makes the checkpoint at a given time, or is killed in the middle of the first shard."""
    command = [sys.executable, "-c", MAKE, str(base), str(cache), str(start), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_an_interrupted_attempt_is_repaired(base, tmp_path):
    cache = tmp_path / "cache"
    assert start_process(base, cache, mode="die").wait(60) == -9
    assert list(cache.glob(".*.partial-*")), "the dead process left its half"
    directory = ensure_checkpoint(find_base(str(base)), DUS, cache)
    load(directory)
    assert not list(cache.glob(".*.partial-*"))


@pytest.mark.slow
def test_many_processes_at_once_make_one_checkpoint(base, tmp_path):
    workers = [start_process(base, tmp_path / "cache", start=time.time() + 2) for _ in range(6)]
    directories = {worker.communicate(timeout=60)[0].strip() for worker in workers}
    assert [worker.returncode for worker in workers] == [0] * 6
    made = list((tmp_path / "cache").iterdir())
    assert directories == {str(path) for path in made}
    assert len(made) == 1
    load(made[0])


def test_upscale_writes_where_it_is_told_and_never_over_anything(base, tmp_path):
    found = find_base(str(base))
    assert write_checkpoint(found, DUS, tmp_path / "out") is True
    assert write_checkpoint(found, DUS, tmp_path / "out") is False
    with pytest.raises(CheckpointError, match="exists, but is not this base upscaled by this plan; it was not changed"):
        write_checkpoint(found, OUT_OF_ORDER, tmp_path / "out")
    load(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert write_checkpoint(found, DUS, tmp_path / "empty") is True


def test_the_base_itself_is_rejected_as_output(base, tmp_path):
    before = sorted(base.rglob("*"))
    (tmp_path / "link").symlink_to(base)
    for place in (base, base / "deeper", tmp_path / "link" / "deeper", base / "a" / ".." / "b"):
        with pytest.raises(CheckpointError, match=r"is inside the directory of the base, .* give a directory"):
            write_checkpoint(find_base(str(base)), DUS, place)
    assert sorted(base.rglob("*")) == before
    assert write_checkpoint(find_base(str(base)), DUS, tmp_path / "base-12") is True


def test_an_unwritable_output_is_an_error_and_does_not_wait_forever(base):
    with pytest.raises(CheckpointError, match="/proc/out: the upscaled checkpoint could not be written"):
        write_checkpoint(find_base(str(base)), DUS, Path("/proc/out"))


def test_upscale_leaves_other_partials_and_the_empty_folder_of_a_failure_alone(base, tmp_path):
    live = tmp_path / ".g1.partial-12345678"
    live.mkdir()
    assert write_checkpoint(find_base(str(base)), DUS, tmp_path / "g[1]*") is True
    assert live.is_dir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="it was not changed"):
        write_checkpoint(find_base(str(base)), DUS, tmp_path / "link")


def test_a_tensor_that_all_files_lack_is_an_error(base, tmp_path):
    from safetensors.torch import load_file, save_file

    kept = {k: v for k, v in load_file(base / "model.safetensors").items() if "up_proj" not in k}
    save_file(kept, base / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers.0.mlp.up_proj.weight is missing; expected .* from its config"):
        ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")


def test_the_written_hook_is_called_for_a_new_checkpoint_only(base, tmp_path):
    from solar_plugins.plugins.markers import hookimpl

    heard = []

    class Listener:
        @hookimpl
        def checkpoint_written(self, path, plan):
            heard.append((path, plan))

    class Broken:
        @hookimpl
        def checkpoint_written(self):
            raise RuntimeError("a third party's fault")

    manager = loaded_plugins().manager
    plugins = [Broken(), Listener()]
    for plugin in plugins:
        manager.register(plugin)
    try:
        for _ in range(2):
            directory = ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")
    finally:
        for plugin in plugins:
            manager.unregister(plugin)
    assert heard == [(directory, DUS)]


def test_the_base_is_never_touched(base, tmp_path):
    copy_of_base = shutil.copytree(base, tmp_path / "copy")
    ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")
    for path in copy_of_base.iterdir():
        assert (base / path.name).read_bytes() == path.read_bytes()


def test_a_shard_replaced_by_one_of_the_same_size_and_time_is_detected(base, tmp_path, monkeypatch):
    """Where the samples do not reach, the file's inode and change time tell."""

    def replace(*args):
        path = base / "model.safetensors"
        times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        shutil.copy(path, base / "other")
        os.utime(base / "other", ns=times)
        (base / "other").rename(path)
        return real_write_shard(*args)

    real_write_shard = checkpoint.write_shard
    monkeypatch.setattr(checkpoint, "write_shard", replace)
    with pytest.raises(CheckpointError, match=r"base/model.safetensors: the base changed while it was copied"):
        ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")


def test_a_checkpoint_that_cannot_be_read_is_an_error_and_stays(base, tmp_path, monkeypatch):
    """An I/O error says nothing about the checkpoint; other processes may be using it."""

    def fail(directory):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(directory / MARKER))

    found = find_base(str(base))
    directory = ensure_checkpoint(found, DUS, tmp_path / "cache")
    before = {path.name: path.stat().st_ino for path in directory.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "read_marker", fail)
        with pytest.raises(
            CheckpointError, match=rf"Input/output error, .*{MARKER}.*; a partial one is never used.*see dmesg"
        ):
            ensure_checkpoint(found, DUS, tmp_path / "cache")
    assert {path.name: path.stat().st_ino for path in directory.iterdir()} == before


def test_a_checkpoint_that_another_node_has_just_repaired_is_not_removed(base, tmp_path, monkeypatch):
    found = find_base(str(base))
    directory = ensure_checkpoint(found, DUS, tmp_path / "cache")
    inode = directory.stat().st_ino
    damaged = iter([True, True])  # When it was looked for, and once more with the lock.
    monkeypatch.setattr(
        checkpoint, "is_finished", lambda *args, **named: not next(damaged, False) and is_finished(*args, **named)
    )
    assert ensure_checkpoint(found, DUS, tmp_path / "cache") == directory
    assert directory.stat().st_ino == inode
    assert list(directory.parent.iterdir()) == [directory]


def test_upscale_uses_what_another_node_finished_first(base, tmp_path, monkeypatch):
    def finish_first(*args):
        shutil.copytree(made, tmp_path / "out")
        real_fill(*args)

    found, real_fill = find_base(str(base)), checkpoint._fill
    made = ensure_checkpoint(found, DUS, tmp_path / "cache")
    monkeypatch.setattr(checkpoint, "_fill", finish_first)
    assert write_checkpoint(found, DUS, tmp_path / "out") is False
    assert {path.name for path in tmp_path.iterdir()} == {"base", "cache", "out"}


def test_every_file_is_flushed_before_the_rename(base, tmp_path, monkeypatch):
    """And the directory that holds it, and after the rename the one above."""
    for name in ("tokenizer.json", "LICENSE", "README.md"):
        (base / name).write_text("x")
    events = []

    def fsync(handle):
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        real_fsync(handle)

    def rename(self, target):
        events.append("rename")
        return real_rename(self, target)

    real_fsync, real_rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    directory = ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    assert {path.name for path in directory.iterdir()} <= set(before)
    assert ".partial-" in before[-1], "the directory itself, last"
    assert after == ["cache"]


@pytest.mark.parametrize("name", ["tokenizer.json", "README.md", "model.safetensors", "config.json"])
def test_no_private_file_gets_into_the_model_by_a_link(base, tmp_path, name):
    secret = (base / name).rename(tmp_path / "secret") if (base / name).exists() else tmp_path / "secret"
    if name not in ("model.safetensors", "config.json"):
        secret.write_text("---\nlicense: secret\n---\n")
    (base / name).symlink_to(secret)
    with pytest.raises(CheckpointError, match=rf"base/{name}: a link out of the model's directory, to {secret}"):
        ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").glob("*") if path.is_dir()]


def test_disk_space_used_by_leftovers_is_named(base, tmp_path, monkeypatch):
    found = find_base(str(base))
    left_over = tmp_path / "cache" / f".{checkpoint.cache_name(found, DUS)}.partial-0123abcd-1-1-01234567"
    left_over.mkdir(parents=True)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(CheckpointError, match=f"free disk space, remove {left_over.name} if its writer is dead, or"):
        ensure_checkpoint(found, DUS, tmp_path / "cache")
