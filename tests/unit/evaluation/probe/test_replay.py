"""Layers in another order, compared with the loaded upscaled model. Every decoder: tests/unit/decoders."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from solar_plugins.errors import CheckpointError
from solar_plugins.evaluation.probe.candidates import every_repeat, repeat
from solar_plugins.evaluation.probe.replay import LayerReplay, NewWeights, angular_distances, block_influences
from solar_plugins.evaluation.probe.schedule import schedule
from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import write_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.strategies import plan_of

pytestmark = pytest.mark.slow

IDS = torch.randint(3, 100, (1, 70), generator=torch.Generator().manual_seed(3))
PLANS = {
    "dus": repeat(8, 2, 6).plan,
    "repeat": repeat(8, 1, 4).plan,
    "interleaved": LayerPlan.from_sources(8, [layer for layer in range(8) for _ in range(2)]),
    "expanded": LayerPlan(8, tuple(PlannedLayer(i, kind) for i in range(8) for kind in ("copy", "identity"))),
}


NEW = {
    name: plan_of(InitArgs(strategy="dus", drop_layers=2, duplicates=name), 8)
    for name in ("identity", "scaled", "noise", "average")
}
"""Plans whose second occurrences of a layer do not start as copies."""


@pytest.fixture
def model(base):
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def replay_of(model, batch_tokens=4096, logits=10**7):
    return LayerReplay(model, 8, batch_tokens, logits)


def nats_of(replay, plans):
    recording = replay.record(IDS)
    found = dict(replay.run(recording, schedule(plans), lambda count: None))
    return replay.document_nats(recording, [found[place] for place in range(len(plans))])


def expected_nats(directory):
    """As a user would: load it, ask for its loss."""
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return loaded(input_ids=IDS, labels=IDS, use_cache=False).loss.item() * (IDS.shape[1] - 1)


@pytest.mark.parametrize(("kind", "max_bytes"), [("llama-biased", 1), ("mistral", 10**9)])
def test_new_layers_have_the_weights_of_the_written_models(made_bases, tmp_path, kind, max_bytes):
    """Whether they are cached or recomputed for each call."""
    found = find_base(str(made_bases / kind))
    model = AutoModelForCausalLM.from_pretrained(made_bases / kind, dtype=torch.float32).eval()
    plans = NEW | {"plain": PLANS["dus"]}
    replay = LayerReplay(model, 8, 4096, 10**7, NewWeights(found, max_bytes))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    made = {name: sum(nats) for name, nats in zip(plans, nats_of(replay, [*plans.values()]), strict=True)}
    assert len({round(nats, 3) for nats in made.values()}) == len(plans), "each starts otherwise"
    for name, plan in plans.items():
        write_checkpoint(found, plan, tmp_path / name)
        assert made[name] / 69 == pytest.approx(expected_nats(tmp_path / name) / 69, abs=1e-5), name
    assert all(parameter.equal(before[name]) for name, parameter in model.named_parameters())


def test_new_layers_whose_weights_are_renamed_on_loading_are_rejected(model, base):
    """As where transformers puts experts into one tensor when it loads them."""
    replay = LayerReplay(model, 8, 4096, 10**7, NewWeights(find_base(str(base)), 10**9))
    model.model.layers[2].mlp.down_proj.weight.mul_(2)
    with pytest.raises(CheckpointError, match=r"renames or changes mlp\.down_proj\.weight"):
        nats_of(replay, [NEW["scaled"]])


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_the_losses_are_those_of_the_written_models(model, base, tmp_path, batch_tokens):
    replay = replay_of(model, batch_tokens, 70 * 128 * (1 if batch_tokens == 1 else 100))
    replay.check(IDS)
    for (name, plan), nats in zip(PLANS.items(), nats_of(replay, list(PLANS.values())), strict=True):
        write_checkpoint(find_base(str(base)), plan, tmp_path / name)
        assert sum(nats) / 69 == pytest.approx(expected_nats(tmp_path / name) / 69, abs=1e-5), name
        assert len(nats) == 3, "segments of 32 predicted tokens: 32, 32 and 5"


def test_dus_that_drops_half_is_exactly_the_base(model, base):
    replay = replay_of(model)
    half, other = nats_of(replay, [LayerPlan.from_sources(8, range(8)), repeat(8, 0, 8).plan])
    recording = replay.record(IDS)
    assert [half] == replay.document_nats(recording, [recording.states[-1]])
    assert sum(half) / 69 == pytest.approx(expected_nats(base) / 69, abs=1e-6)
    assert half != other


def test_plans_do_not_disturb_each_other(model):
    plans = [one.plan for one in every_repeat(8)]
    together = nats_of(replay_of(model), plans)
    alone = [nats_of(replay_of(model), [plan])[0] for plan in plans]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_model_is_unchanged(model):
    before = model(input_ids=IDS, use_cache=False).logits
    replay = replay_of(model)
    replay.check(IDS)
    nats_of(replay, [PLANS["dus"]])
    assert all("forward" not in vars(layer) for layer in replay.layers)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in replay.layers)
    assert model(input_ids=IDS, use_cache=False).logits.equal(before)


def test_influences_and_angles_of_the_base(model):
    recording = replay_of(model).record(IDS)
    low, high = recording.states[2][0], recording.states[3][0]
    cosines = (low * high).sum(-1) / (low.norm(dim=-1) * high.norm(dim=-1))
    assert block_influences(recording)[2] == pytest.approx(1 - cosines.mean().item(), abs=1e-5)
    angles = angular_distances(recording)
    assert angles.shape == (9, 9)
    assert angles[2, 3].item() == pytest.approx((cosines.arccos() / torch.pi).mean().item(), abs=1e-4)


class Shares:
    """What layers must not do: use state that the previous layer left behind."""

    left = None

    def __init__(self, layer):
        self.layer, self.forward = layer, layer.forward

    def __call__(self, hidden_states, *arguments, **keywords):
        out = self.forward(hidden_states, *arguments, **keywords)
        if Shares.left is not None:
            out = out + 0.1 * Shares.left
        Shares.left = hidden_states
        return out


def test_shared_state_between_layers_is_rejected(model, monkeypatch):
    monkeypatch.setattr(Shares, "left", None)
    for layer in model.model.layers:
        layer.forward = Shares(layer)
    with pytest.raises(CheckpointError, match=r"layer 7 gives another result when it is called again"):
        replay_of(model).check(IDS)


def test_an_argument_from_earlier_layers_is_rejected(model):
    class Carry(torch.nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = layers

        def forward(self, input_ids, use_cache=False):
            hidden = model.model.embed_tokens(input_ids)
            where = torch.arange(hidden.shape[1])[None]
            turned = model.model.rotary_emb(hidden, where)
            for layer in self.layers:
                hidden = layer(hidden, position_embeddings=turned, carried=hidden.mean(-1))

    outer = Carry(model.model.layers)
    with pytest.raises(CheckpointError, match="layer 1's argument carried depends on the layers before it"):
        LayerReplay(outer, 8, 4096, 10**7).check(IDS)


def test_layers_that_cannot_be_found(model):
    with pytest.raises(CheckpointError, match="0 module lists of length 9 could be its layers"):
        LayerReplay(model, 9, 4096, 10**7)
