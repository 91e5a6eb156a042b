import json
import os
import shutil
from pathlib import Path

import pytest

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.base_model import find_base, find_config
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.weight_files import INDEX


def test_identity_changes_with_any_file_that_is_used(base):
    before = find_base(str(base)).identity
    assert find_base(str(base)).identity == before
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        os.utime(base / name, ns=(1, 1))
        assert find_base(str(base)).identity != before
        before = find_base(str(base)).identity
    (base / "tokenizer.json").write_text("{}")
    assert find_base(str(base)).identity != before


def test_identity_does_not_change_with_files_that_are_not_used(base):
    before = find_base(str(base)).identity
    (base / "checkpoint-5").mkdir()
    for name in ("README.md", "checkpoint-5/tokenizer.json", "model.gguf", ".gitattributes"):
        (base / name).write_text("hello")
    assert find_base(str(base)).identity == before


def test_identity_sees_other_weights_under_the_same_names_sizes_and_times(base, tmp_path):
    other = Path(shutil.copytree(base, tmp_path / "other"))
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    for path in [*base.iterdir(), *other.iterdir()]:
        os.utime(path, ns=(1, 1))
    assert find_base(str(base)).identity != find_base(str(other)).identity


def hub_cache(tmp_path, base, monkeypatch):
    """The layout of huggingface_hub's cache: snapshots/<commit> with links into blobs."""
    import huggingface_hub.constants

    repository = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    snapshot.mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    for path in base.iterdir():
        shutil.copy(path, repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_hub_id_is_found_in_the_offline_cache_and_identified_by_its_commit(tmp_path, base, monkeypatch):
    hub_cache(tmp_path, base, monkeypatch)
    found = find_base("someone/tiny", revision="main")
    assert found.revision == "a" * 40
    assert found.identity == f"hub:someone/tiny@{'a' * 40}"
    assert found.public_name == "someone/tiny"
    assert found.num_layers == 8
    assert found.tensors


def test_a_finished_checkpoint_needs_no_more_of_the_hub_than_the_config(tmp_path, base, monkeypatch):
    hub_cache(tmp_path, base, monkeypatch)
    plan = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
    made = ensure_checkpoint(find_base("someone/tiny"), plan, tmp_path / "cache")
    again = find_base("someone/tiny")
    (again.directory / "model.safetensors").unlink()
    before = (made / "model.safetensors").stat().st_mtime_ns
    assert ensure_checkpoint(again, plan, tmp_path / "cache") == made
    assert (made / "model.safetensors").stat().st_mtime_ns == before


def test_a_tokenizer_added_later_to_an_offline_cache_is_found(tmp_path, base, monkeypatch):
    hub_cache(tmp_path, base, monkeypatch)
    plan = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
    made = ensure_checkpoint(find_base("someone/tiny"), plan, tmp_path / "cache")
    assert not (made / "tokenizer.json").exists()
    (find_base("someone/tiny").directory / "tokenizer.json").write_text("{}")
    assert ensure_checkpoint(find_base("someone/tiny"), plan, tmp_path / "cache") == made
    assert (made / "tokenizer.json").read_text() == "{}"


def test_a_hub_id_that_is_not_in_the_cache(tmp_path, base, monkeypatch):
    hub_cache(tmp_path, base, monkeypatch)
    with pytest.raises(CheckpointError, match="'someone/other' is not a local directory") as error:
        find_base("someone/other")
    assert "HF_HUB_OFFLINE" in str(error.value)


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "missing", "a/b/c", "~/missing", "~nosuchuser/x", ""])
def test_a_missing_directory_is_never_asked_of_the_hub(name):
    with pytest.raises(CheckpointError, match="neither a local directory"):
        find_base(name)


def test_config_alone_suffices_for_planning(base, tmp_path):
    found = find_config(str(base / "config.json"))
    assert found.decoder.num_layers == 8
    assert found.checkpoint is None
    with_weights = find_config(str(base))
    assert with_weights.decoder is with_weights.checkpoint.decoder
    for path in base.glob("*.safetensors"):
        path.unlink()
    assert find_config(str(base)).checkpoint is None


@pytest.mark.parametrize(
    ("content", "message"), [("{", "not valid JSON"), ("[]", "holds a list, expected a JSON object")]
)
def test_a_config_that_is_no_object(base, content, message):
    (base / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        find_base(str(base))


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_single_file_and_shards_hold_the_same_tensors(base, made_bases):
    single, sharded = find_base(str(base)), find_base(str(made_bases / "llama-sharded"))
    assert single.num_layers == sharded.num_layers == 8
    assert single.tensors.keys() == sharded.tensors.keys()
    assert len({tensor.file for tensor in sharded.tensors.values()}) > 1


def test_a_single_file_beside_an_index_is_refused(sharded_base, made_bases):
    shutil.copy(made_bases / "llama" / "model.safetensors", sharded_base)
    with pytest.raises(CheckpointError, match=r"has both model.safetensors and model.safetensors.index.json"):
        _ = find_base(str(sharded_base)).tensors


def damage_truncated(base):
    path = next(base.glob("*.safetensors"))
    os.truncate(path, path.stat().st_size - 1)


def damage_missing_shard(base):
    sorted(base.glob("*.safetensors"))[2].unlink()


def damage_path_outside(base):
    index = json.loads((base / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "../secret.safetensors"
    (base / INDEX).write_text(json.dumps(index))


def damage_absolute_path(base):
    index = json.loads((base / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = "/etc/passwd"
    (base / INDEX).write_text(json.dumps(index))


def damage_index_names_an_absent_tensor(base):
    index = json.loads((base / INDEX).read_text())
    index["weight_map"]["model.layers.7.extra.weight"] = index["weight_map"]["lm_head.weight"]
    (base / INDEX).write_text(json.dumps(index))


def damage_index_puts_a_tensor_elsewhere(base):
    index = json.loads((base / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = sorted(set(index["weight_map"].values()))[-2]
    (base / INDEX).write_text(json.dumps(index))


def damage_index_is_no_json(base):
    (base / INDEX).write_text("{")


def damage_weight_map_is_a_list(base):
    edit_json(base / INDEX, weight_map=["a"])


def damage_only_pickles(base):
    for path in [*base.glob("*.safetensors"), base / INDEX]:
        path.unlink()
    (base / "pytorch_model.bin").write_bytes(b"x")


def damage_no_weights(base):
    for path in [*base.glob("*.safetensors"), base / INDEX]:
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncated, "is truncated"),
        (damage_missing_shard, "lists the shard model-00003-of-.*, which is missing"),
        (damage_path_outside, "'../secret.safetensors'; expected the name of a file"),
        (damage_absolute_path, "'/etc/passwd'; expected the name of a file"),
        (
            damage_index_names_an_absent_tensor,
            "'model.layers.7.extra.weight' is in the index but in no file",
        ),
        (damage_index_puts_a_tensor_elsewhere, "'lm_head.weight' is in .* but the index says"),
        (damage_index_is_no_json, "not valid JSON"),
        (damage_weight_map_is_a_list, "weight_map is not a map"),
        (damage_only_pickles, r"has pytorch_model.bin \(pickles, which can run code"),
        (damage_no_weights, "no weights; expected model.safetensors"),
    ],
)
def test_damaged_weights_are_refused(sharded_base, damage, message):
    damage(sharded_base)
    with pytest.raises(CheckpointError, match=message):
        _ = find_base(str(sharded_base)).tensors
