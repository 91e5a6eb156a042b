"""The rule must be transformers' own: what it refuses to save without these keys, and saves after."""

import json
import logging

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig

from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.generation_config import savable_copy, unread_keys, warning
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.verify import verify_checkpoint

VICUNA = {"bos_token_id": 1, "do_sample": False, "eos_token_id": 2, "temperature": 0.9, "top_p": 0.6}
MODES = [{}, {"do_sample": True}, {"num_beams": 4}, {"return_dict_in_generate": True}, {"use_cache": False}]
VALUES = (0, -1, 0.5, 1, 1.0, 2, 50, True, False, "static", "never", [1], None)


def refused(config):
    """The keys that transformers names, or None where it cannot even load the config."""
    try:
        loaded = GenerationConfig(**config)
    except (ValueError, TypeError):
        return None
    try:
        loaded.validate(strict=True)
    except ValueError as error:
        return {line.split("`")[1] for line in str(error).splitlines() if line.startswith("- `")}
    return set()


@pytest.mark.parametrize("key", sorted(GenerationConfig().to_dict().keys() - {"watermarking_config"}))
def test_every_key_is_judged_as_transformers_judges_it(key):
    for mode in MODES:
        for value in VALUES:
            config = mode | {key: value}
            theirs = refused(config)
            if theirs is None:
                continue
            assert set(unread_keys(config)) == theirs, config
            rest = {name: kept for name, kept in config.items() if name not in theirs}
            assert refused(rest) == set()


DUS = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])


def test_the_upscaled_model_can_be_saved_and_the_keys_are_named(base, tmp_path, caplog):
    (base / "generation_config.json").write_text(json.dumps(VICUNA))
    with pytest.raises(ValueError, match="temperature"):
        AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path / "again")
    with caplog.at_level(logging.WARNING):
        directory = ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")
    assert "generation_config.json: temperature (0.9), top_p (0.6): without effect" in caplog.text
    deeper = AutoModelForCausalLM.from_pretrained(directory)
    deeper.save_pretrained(tmp_path / "again")
    assert (deeper.generation_config.do_sample, deeper.generation_config.eos_token_id) == (False, 2)
    verify_checkpoint(directory, str(base))


def test_a_file_without_such_keys_is_copied_to_the_byte(tmp_path):
    path = tmp_path / "generation_config.json"
    for text in (json.dumps(VICUNA | {"do_sample": True}), "{}", "not JSON", "[1]"):
        path.write_text(text)
        assert savable_copy(path) is None
        assert warning(path, {}) is None


def test_keys_in_config_json_are_named_if_there_is_no_file(tmp_path):
    path = tmp_path / "generation_config.json"
    assert "config.json: temperature (0.9)" in warning(path, {"temperature": 0.9})
    path.write_text("{}")
    assert warning(path, {"temperature": 0.9}) is None
