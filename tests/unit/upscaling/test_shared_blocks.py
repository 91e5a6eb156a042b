"""Upscaled checkpoints on disks that share blocks: the same promises, without the space and the time."""

import errno
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
from contextlib import suppress

import huggingface_hub
import pytest
from fault_runner import content, make_base, times
from shared_disks import SHARING, disk

from solar_plugins.errors import CheckpointError
from solar_plugins.storage import reflink
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import MARKER, cache_name, ensure_checkpoint, write_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.verify import verify_checkpoint

pytestmark = pytest.mark.slow

SPARE = 60_000_000
"""Bytes that stay free on a disk that is filled; Btrfs keeps some for metadata."""

LAYERS, HIDDEN = 4, 1024
PLAN = LayerPlan.from_sources(LAYERS, [0, 1, 2, 1, 2, 3])
MIXED = LayerPlan(LAYERS, (*PLAN.layers, PlannedLayer(3, "identity")))


@pytest.fixture(params=SHARING)
def shared_disk(request):
    with disk(request.param) as folder:
        yield folder


def model(folder, name="base", **sizes):
    """A base of 58 MB in three files, none of whose widths is a multiple of a block with its header."""
    return make_base(folder / name, **{"layers": LAYERS, "hidden": HIDDEN, "vocabulary": 500} | sizes)


def marker(directory):
    return json.loads((directory / MARKER).read_text())


def used(folder):
    subprocess.run(["sync", "-f", str(folder)], check=True)
    return shutil.disk_usage(folder).used


def weights(directory):
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


@pytest.mark.parametrize("plan", [PLAN, MIXED], ids=["copies", "with identity"])
def test_a_result_that_takes_no_space_equals_the_copied_one(shared_disk, plan, caplog):
    caplog.set_level(logging.INFO, "axolotl.solar_plugins")
    base = find_base(str(model(shared_disk)))
    before = used(shared_disk)
    assert write_checkpoint(base, plan, shared_disk / "shared")
    taken = used(shared_disk) - before
    (line,) = [record.message for record in caplog.records if "shared with the base" in record.message]
    assert "du counts shared blocks twice" in line
    identity = 0 if plan is PLAN else 7 * 2 * HIDDEN**2
    assert taken < 3_000_000 + identity < weights(shared_disk / "shared") / 4
    assert marker(shared_disk / "shared")["shared_block"] == 4096
    assert verify_checkpoint(shared_disk / "shared", str(base.directory)).note == ""
    assert write_checkpoint(base, plan, shared_disk / "copied", copy=True)
    assert "shared_block" not in marker(shared_disk / "copied")
    assert loaded(shared_disk / "shared") == loaded(shared_disk / "copied")


def loaded(directory):
    from safetensors import safe_open

    tensors = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors |= {name: bytes(file.get_tensor(name).view(dtype=_bytes()).numpy()) for name in file.keys()}  # noqa: SIM118
    return tensors


def _bytes():
    import torch

    return torch.uint8


def test_the_result_survives_its_base(shared_disk):
    path = model(shared_disk)
    base = find_base(str(path))
    directory = ensure_checkpoint(base, PLAN, shared_disk / "cache")
    before = content(directory)
    (first, second, third) = sorted(path.glob("*.safetensors"))
    first.write_bytes(os.urandom(first.stat().st_size))
    with second.open("r+b") as file:
        file.truncate(5000)
    third.unlink()
    os.sync()
    assert content(directory) == before
    shutil.rmtree(path)
    assert content(directory) == before


def test_the_base_stays_untouched(shared_disk):
    path = model(shared_disk)
    before = (content(path), times(path))
    ensure_checkpoint(find_base(str(path)), PLAN, shared_disk / "cache")
    assert (content(path), times(path)) == before


def test_verify_finds_one_changed_bit(shared_disk):
    path = model(shared_disk)
    directory = ensure_checkpoint(find_base(str(path)), PLAN, shared_disk / "cache")
    shard = max(directory.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(CheckpointError, match=r"at byte .* does not match"):
        verify_checkpoint(directory, str(path))


def test_a_disk_with_less_space_than_the_result_needs_no_more(shared_disk, tmp_path):
    base = find_base(str(model(shared_disk, layers=6, hidden=1024, vocabulary=20_000)))
    with suppress(OSError), (shared_disk / "filler").open("wb") as file:
        while shutil.disk_usage(shared_disk).free > SPARE:
            file.write(bytes(4_000_000))
            os.fsync(file.fileno())
    os.truncate(shared_disk / "filler", max(0, (shared_disk / "filler").stat().st_size - SPARE // 2))
    used(shared_disk)  # Waits until the file system has freed it.
    assert shutil.disk_usage(shared_disk).free < weights(base.directory)
    with pytest.raises(CheckpointError, match=r"free, but the upscaled checkpoint needs \d+(\.\d+)? MB"):
        write_checkpoint(base, LayerPlan.from_sources(6, [*range(5), *range(1, 6)]), shared_disk / "copied", copy=True)
    plan = LayerPlan.from_sources(6, [*range(5), *range(1, 6)])
    assert write_checkpoint(base, plan, shared_disk / "shared")
    assert verify_checkpoint(shared_disk / "shared", str(base.directory)).note == ""


def test_a_base_on_another_disk_is_copied_without_a_warning(shared_disk, tmp_path, caplog):
    base = find_base(str(model(tmp_path)))
    directory = ensure_checkpoint(base, PLAN, shared_disk / "cache")
    assert "shared_block" not in marker(directory)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    verify_checkpoint(directory, str(base.directory))


def test_a_base_in_the_hub_cache(shared_disk, monkeypatch):
    """Its weights are links to blobs."""
    path = model(shared_disk)
    repository = shared_disk / "hub" / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    for number, file in enumerate(path.iterdir()):
        file.rename(repository / "blobs" / f"{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(shared_disk / "hub"))
    write_checkpoint(find_base("someone/tiny", "main"), PLAN, shared_disk / "out")
    assert marker(shared_disk / "out")["shared_block"] == 4096
    assert verify_checkpoint(shared_disk / "out").base == "someone/tiny"


def test_a_donor_on_another_disk_is_copied_and_the_base_shared(shared_disk, tmp_path):
    from solar_plugins.solar_block import InitArgs
    from solar_plugins.upscaling.strategies import plan_of

    path, donor = model(shared_disk), model(tmp_path, "donor")
    for folder in (path, donor):
        (folder / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
    init = InitArgs.model_validate({"strategy": "slices", "slices": [[0, 3], {"model": str(donor), "layers": [1, 4]}]})
    found = find_base(str(path))
    base, plan = found.with_donors(plan_of(init, found.num_layers, where=""), init)
    before = used(shared_disk)
    write_checkpoint(base, plan, shared_disk / "out")
    taken = used(shared_disk) - before
    assert 0.3 * weights(shared_disk / "out") < taken < 0.6 * weights(shared_disk / "out")
    verify_checkpoint(shared_disk / "out", str(path), donors=[str(donor)])


def test_a_file_system_that_changes_its_mind_is_copied(shared_disk, monkeypatch):
    """Sharing was possible when it was tried, and then is not: as with an immutable or encrypted source file."""
    real, calls = fcntl.ioctl, []

    def fails_later(*arguments):
        calls.append(arguments)
        if len(calls) > 2:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(*arguments)

    monkeypatch.setattr(reflink.fcntl, "ioctl", fails_later)
    base = find_base(str(model(shared_disk)))
    directory = ensure_checkpoint(base, PLAN, shared_disk / "cache")
    assert len(calls) > 3
    verify_checkpoint(directory, str(base.directory))


def test_the_recipe_key_and_the_option_force_plain_copies(shared_disk):
    path = model(shared_disk)
    base = find_base(str(path))
    assert cache_name(base, PLAN) != cache_name(base, PLAN, copy=True)
    command = [sys.executable, "-c", "from solar_plugins.cli import solar; solar()", "upscale", str(path)]
    for options, block in (([], 4096), (["--copy"], None)):
        out = shared_disk / f"out{len(options)}"
        subprocess.run([*command, str(out), "--drop-layers", "1", *options], check=True, capture_output=True)
        assert marker(out).get("shared_block") == block
