"""The check by transformers' own config classes, which shares no rule with the writer."""

import json
import subprocess
import sys

import pytest
from tiny_decoders import NUM_LAYERS, tiny_config

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling import config_check
from solar_plugins.upscaling.architectures.table import ARCHITECTURES, COMPOSITES
from solar_plugins.upscaling.config_check import check_by_transformers
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.upscaled_config import upscale_config

PLAN = LayerPlan.from_sources(NUM_LAYERS, [*range(6), *range(3, 9)])


@pytest.fixture
def check(tmp_path):
    """Write two configs, and check them."""

    def run(base, upscaled, plan=PLAN, trusted=()):
        folders = tmp_path / "base", tmp_path / "upscaled"
        for folder, config in zip(folders, (base, upscaled), strict=True):
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text(json.dumps(config))
        return check_by_transformers([folders[0]], folders[1], upscaled["model_type"], plan, trusted)

    return run


def tiny(model_type):
    return json.loads(tiny_config(model_type).to_json_string(use_diff=False))


@pytest.mark.parametrize("model_type", [*ARCHITECTURES, *COMPOSITES])
def test_transformers_reads_every_type_as_the_plan_says(model_type, check):
    base = tiny(model_type)
    assert "reads 12 layers" in check(base, upscale_config(Decoder.of(base), PLAN))


@pytest.mark.parametrize(
    ("model_type", "change", "message"),
    [
        ("gpt2", {"num_hidden_layers": 9}, "reads a depth of 9, and 9 for the base"),
        ("llama", {"num_hidden_layers": 11}, "reads a depth of 11"),
        ("longcat_flash", {"num_hidden_layers": 12}, "reads a depth of 12, and 18 for the base"),
        ("gemma2", {"layer_types": ["sliding_attention", "full_attention"] * 6}, "reads layer_types as"),
        ("jamba", {"attn_layer_offset": 0}, "reads layer_types as"),
        ("bamba", {"attn_layer_indices": [2, 4, 7]}, "reads attn_layer_indices as"),
        ("recurrent_gemma", {"block_types": ["recurrent"]}, "reads layers_block_type as"),
        ("qwen3_moe", {"mlp_only_layers": [1, 2]}, "reads mlp_only_layers as"),
        ("llama", {"num_attention_heads": "four"}, "can read the base's config, but not this one"),
    ],
)
def test_a_wrong_config_is_found(model_type, change, message, check):
    base = tiny(model_type) | ({"mlp_only_layers": [1, 2, 6]} if model_type == "qwen3_moe" else {})
    upscaled = upscale_config(Decoder.of(base), PLAN)
    assert "reads 12 layers" in check(base, upscaled)
    with pytest.raises(CheckpointError, match=message):
        check(base, upscaled | change)


def test_trusted_keys_are_kept_unchanged(check):
    base = tiny("llama") | {"some_layers": [1, 2], "kinds": ["a"] * 9}
    upscaled = upscale_config(Decoder.of(base, ["some_layers", "kinds"]), PLAN)
    assert "reads 12 layers in agreement" in check(base, upscaled, trusted=["some_layers", "kinds"])
    with pytest.raises(CheckpointError, match="reads kinds as"):
        check(base, upscaled, trusted=["some_layers"])


def test_what_is_not_checked_is_said(check, monkeypatch):
    base = tiny("llama")
    own = base | {"model_type": "mine"}
    assert "does not support model_type 'mine'" in check(own, own)
    odd = base | {"num_attention_heads": "four"}
    assert "cannot read the base's" in check(odd, odd)
    monkeypatch.setattr(config_check, "find_spec", lambda name: None)
    assert check(base, base) == "config.json was not checked with transformers, which is not installed"


WITHOUT_TORCH = """
import json, sys
from pathlib import Path
from solar_plugins.upscaling.config_check import check_by_transformers, import_less
from solar_plugins.upscaling.layer_plan import LayerPlan

import_less()
for line in sys.stdin:
    base, upscaled, model_type, plan = json.loads(line)
    print(check_by_transformers([Path(base)], Path(upscaled), model_type, LayerPlan.from_dict(plan)))
"""


def test_no_config_class_needs_torch(tmp_path):
    requests, expected = [], []
    for model_type in (*ARCHITECTURES, *COMPOSITES):
        base = tiny(model_type)
        folders = tmp_path / model_type / "base", tmp_path / model_type / "upscaled"
        for folder, config in zip(folders, (base, upscale_config(Decoder.of(base), PLAN)), strict=True):
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps(config))
        requests.append(json.dumps([*map(str, folders), model_type, PLAN.to_dict()]) + "\n")
        expected.append(check_by_transformers([folders[0]], folders[1], model_type, PLAN))
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], input="".join(requests), capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == expected


@pytest.fixture
def check_elsewhere(check, monkeypatch):
    """The same, as in a process that has not loaded transformers."""

    def run(sources, *rest):
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "transformers")
            with config_check.config_check(sources, *rest) as result:
                return result()

    monkeypatch.setitem(globals(), "check_by_transformers", run)
    return check


def test_the_check_in_another_process(check_elsewhere, monkeypatch):
    base = tiny("llama")
    upscaled = upscale_config(Decoder.of(base), PLAN)
    monkeypatch.setattr(config_check, "_require_depth", None)  # Here it would fail.
    assert "reads 12 layers in agreement" in check_elsewhere(base, upscaled)
    with pytest.raises(CheckpointError, match="reads a depth of 11"):
        check_elsewhere(base, upscaled | {"num_hidden_layers": 11})


def checked_here(*_):
    return "checked here"


@pytest.mark.parametrize("broken", ["/no/such/python", "false"])
def test_without_another_process_the_check_runs_here(broken, check_elsewhere, monkeypatch):
    monkeypatch.setattr(sys, "executable", broken)
    monkeypatch.setattr(config_check, "check_by_transformers", checked_here)
    assert check_elsewhere(tiny("llama"), tiny("llama")) == "checked here"
