"""The checkpoint and the exported merge against the real `mergekit-yaml`."""

import json

import pytest
import yaml

from solar_plugins.merging import passthrough_merge
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer

pytestmark = pytest.mark.slow

DUS = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
EXPANDED = LayerPlan(8, (*(PlannedLayer(i) for i in range(8)), PlannedLayer(7, "identity")))


def tensor_bytes(directory):
    tensors = find_base(str(directory)).tensors
    return {name: (t.dtype, t.shape, t.file.read_bytes()[t.start : t.end]) for name, t in tensors.items()}


@pytest.mark.parametrize("plan", [DUS, EXPANDED], ids=["dus", "identity"])
def test_bit_equal_to_mergekit(any_base, tmp_path, run, plan):
    base = find_base(str(any_base))
    (tmp_path / "merge.yml").write_text(yaml.safe_dump(passthrough_merge(str(any_base), base.config, plan)))
    merged = run("mergekit-yaml", tmp_path / "merge.yml", tmp_path / "merged", "--out-shard-size", "40K")
    assert merged.returncode == 0, merged.stderr
    ours, theirs = tensor_bytes(ensure_checkpoint(base, plan, tmp_path / "cache")), tensor_bytes(tmp_path / "merged")
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == theirs[name], name
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["num_hidden_layers"] == len(plan)


def test_what_the_command_prints_is_accepted(base, tmp_path, run):
    (tmp_path / "recipe.yml").write_text(f"base_model: {base}\nsolar: {{init: {{strategy: dus, drop_layers: 2}}}}\n")
    printed = run("solar", "mergekit", tmp_path / "recipe.yml")
    (tmp_path / "merge.yml").write_text(printed.stdout)
    merged = run("mergekit-yaml", tmp_path / "merge.yml", tmp_path / "merged")
    assert merged.returncode == 0, merged.stderr
    assert tensor_bytes(tmp_path / "merged") == tensor_bytes(
        ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "c")
    )
