import json
import os
import shutil

import pytest

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.base_tensors import INDEX


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_single_file_and_shards_hold_the_same_tensors(base, made_bases):
    single, sharded = find_base(str(base)), find_base(str(made_bases / "llama-sharded"))
    assert single.num_layers == sharded.num_layers == 8
    assert single.tensors.keys() == sharded.tensors.keys()
    assert len({tensor.file for tensor in sharded.tensors.values()}) > 1


def test_a_single_file_beside_an_index_is_refused(sharded_base, made_bases):
    shutil.copy(made_bases / "llama" / "model.safetensors", sharded_base)
    with pytest.raises(CheckpointError, match=r"holds both model.safetensors and model.safetensors.index.json"):
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
    index["weight_map"]["model.extra.weight"] = index["weight_map"]["lm_head.weight"]
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
        (damage_missing_shard, "names the shard model-00003-of-.*, which is missing"),
        (damage_path_outside, "'../secret.safetensors', which is no plain file name"),
        (damage_absolute_path, "'/etc/passwd', which is no plain file name"),
        (damage_index_names_an_absent_tensor, "'model.extra.weight' should be in .*, but is not"),
        (damage_index_puts_a_tensor_elsewhere, "'lm_head.weight' lies in .*, but the index says"),
        (damage_index_is_no_json, "not valid JSON"),
        (damage_weight_map_is_a_list, "weight_map is not a map"),
        (damage_only_pickles, r"the weights are pickles \(pytorch_model.bin\)"),
        (damage_no_weights, "no weights; expected model.safetensors"),
    ],
)
def test_damaged_weights_are_refused(sharded_base, damage, message):
    damage(sharded_base)
    with pytest.raises(CheckpointError, match=message):
        _ = find_base(str(sharded_base)).tensors
