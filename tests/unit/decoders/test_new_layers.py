"""Layers that do not start as copies, of every decoder: written, loaded, and as `solar probe` runs them."""

import re

import pytest
import torch
from rearranged import rearranged, stack_of
from safetensors.torch import load_file
from test_every_decoder import NAMES, NOT_PROBED, check_probe
from test_identity_layers import CASES, writers
from tiny_decoders import NUM_LAYERS
from tiny_models import compare, load, logits, make_base
from transformers import logging

from solar_plugins.errors import CheckpointError
from solar_plugins.evaluation.probe.replay import LayerReplay, NewWeights
from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import write_checkpoint
from solar_plugins.upscaling.strategies import plan_of
from solar_plugins.upscaling.upscaled_config import upscale_config

pytestmark = pytest.mark.slow

WEIGHTS = "model.safetensors"
TOKENS = torch.randint(3, 100, (1, 24), generator=torch.Generator().manual_seed(4))


@pytest.fixture(autouse=True)
def quiet():
    logging.set_verbosity_error()


def dus(duplicates):
    return plan_of(InitArgs(strategy="dus", drop_layers=3, duplicates=duplicates), NUM_LAYERS)


def replay_of(directory):
    base = find_base(str(directory))
    replay = LayerReplay(load(directory), NUM_LAYERS, 4096, 10**6, NewWeights(base, 10**9))
    replay.check(TOKENS)
    return replay


SCALED = [pytest.param(name, marks=pytest.mark.nightly if number % 3 else ()) for number, name in enumerate(CASES)]


@pytest.mark.parametrize("name", SCALED)
def test_scaled_layers_are_the_rearranged_modules_scaled(name, tmp_path):
    model_type, changes = CASES[name]
    base = make_base(model_type, changes, tmp_path / "base")
    plan = dus({"initializer": "scaled", "factor": 0.3})
    write_checkpoint(find_base(str(tmp_path / "base")), plan, tmp_path / "scaled")
    reference = rearranged(base, plan.sources, NUM_LAYERS)
    layers = reference.get_submodule(stack_of(reference, len(plan)))
    for position in plan.duplicates():
        for module in writers(model_type, **changes):
            for parameter in layers[position].get_submodule(module).parameters():
                parameter.data *= 0.3
    scaled = load(tmp_path / "scaled")
    assert compare(logits(scaled, TOKENS), logits(reference, TOKENS)).equal
    assert not compare(logits(scaled, TOKENS), logits(rearranged(base, plan.sources, NUM_LAYERS), TOKENS)).equal
    with torch.inference_mode():
        check_probe(replay_of(tmp_path / "base"), TOKENS, plan, scaled)


def is_loaded_as_stored(directory):
    """Whether the layers' tensors have the files' own names when they are loaded; experts are put into one."""
    model, stored = load(directory), load_file(directory / WEIGHTS)
    layers = model.get_submodule(stack_of(model, NUM_LAYERS)).state_dict()
    return all(any(name.endswith(f".{own}") for name in stored) for own in layers)


PROBED = [name for name in NAMES if name not in NOT_PROBED]
NIGHTLY = [pytest.param(name, marks=pytest.mark.nightly) for number, name in enumerate(PROBED) if number % 12]


@pytest.mark.parametrize("name", [*PROBED[::12], *NIGHTLY])
def test_noise_is_probed_as_it_is_written_or_refused(name, tmp_path):
    model_type, changes = NAMES[name]
    make_base(model_type, changes, tmp_path / "base")
    base, plan = find_base(str(tmp_path / "base")), dus({"initializer": "noise", "relative": 0.3})
    try:
        upscale_config(base.decoder, dus(None))
    except CheckpointError as error:
        with pytest.raises(CheckpointError, match=re.escape(str(error))):
            upscale_config(base.decoder, plan)
        return
    write_checkpoint(base, plan, tmp_path / "noisy")
    with torch.inference_mode():
        replay = replay_of(tmp_path / "base")
        if is_loaded_as_stored(tmp_path / "base"):
            check_probe(replay, TOKENS, plan, load(tmp_path / "noisy"))
        else:
            with pytest.raises(CheckpointError, match=r"transformers renames or changes .* of a layer"):
                check_probe(replay, TOKENS, plan, None)
