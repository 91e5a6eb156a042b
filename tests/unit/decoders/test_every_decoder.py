"""Every causal LM type that transformers knows: upscaled from its files, and compared with its rearranged modules.

The types are taken from transformers' own mapping, so a new release extends the test. What comes out is the table
`docs/architectures.md`; `make architectures` writes it anew.
"""

import os
from pathlib import Path

import pytest
import torch
from rearranged import plain_attributes, rearranged, stack_of
from tiny_decoders import EVERY_TYPE, NUM_LAYERS, VARIANTS
from tiny_models import Comparison, compare, load, logits, make_base
from transformers import logging
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from solar_plugins.errors import CheckpointError
from solar_plugins.evaluation.probe.replay import LayerReplay
from solar_plugins.evaluation.probe.schedule import schedule
from solar_plugins.upscaling.architectures.table import ARCHITECTURES, COMPOSITES, REFUSED
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import write_checkpoint
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan

pytestmark = pytest.mark.slow

TABLE = Path(__file__).parents[3] / "docs" / "architectures.md"
PLANS = {
    "dus": [*range(6), *range(3, 9)],
    "slices": [*range(7), *range(2, 9)],
    "odd": [*range(8), 4, 5, 7, 8],
}
"""``dus`` with m = 3; two overlapping slices; and a plan that breaks every period and moves the last layers apart."""

RESULTS: dict[str, dict[str, str]] = {}
ALIASES = {"gpt-sw3": "gpt2"}
"""Names in the mapping that share another type's config."""


@torch.no_grad()
def cache_difference(model, tokens):
    """Logits of greedy generation with and without cache; the error's name where the model cannot generate so."""
    model.generation_config.eos_token_id = None
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "output_logits": True}
    try:
        steps = [
            torch.stack(model.generate(tokens, use_cache=cache, return_dict_in_generate=True, **settings).logits)
            for cache in (True, False)
        ]
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return type(error).__name__
    return compare(*steps)


def check_layers(deeper, base, sources):
    """Tensors and attributes of each new layer are those of its source."""
    new, old = (
        model.get_submodule(stack_of(model, depth)) for model, depth in ((deeper, len(sources)), (base, NUM_LAYERS))
    )
    for position, source in enumerate(sources):
        theirs = old[source].state_dict()
        ours = new[position].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), f"layer {position}"
        assert plain_attributes(new[position]) == plain_attributes(old[source]), f"layer {position} from {source}"


def check_config(deeper, base, sources):
    """Every list of the base's config that has an entry a layer follows the plan."""
    ours, theirs = deeper.config.get_text_config().to_dict(), base.config.get_text_config().to_dict()
    lists = {key for key, value in theirs.items() if isinstance(value, list) and len(value) == NUM_LAYERS}
    for key in lists - {"attention_types", "eos_token_id"}:
        if all(isinstance(entry, int) for entry in theirs[key]) and theirs[key] == list(range(NUM_LAYERS)):
            assert ours[key] == list(range(len(sources)))  # a list of layer numbers that names them all
        else:
            assert ours[key] == [theirs[key][source] for source in sources], key


INTERLEAVED = [layer for layer in range(NUM_LAYERS) for _ in range(2)]
NOT_PROBED = {
    "gemma4": "shared_kv_states",
    "gemma4_text": "shared_kv_states",
    "gemma4_text, keys shared": "shared_kv_states",
    "gemma4_unified": "shared_kv_states",
    "gemma4_unified_text": "shared_kv_states",
    "glm_moe_dsa": "prev_topk_indices depends on the layers before it",
    "hy_v4": "prev_topk_indices depends on the layers before it",
    "reformer": "prev_attn_output depends on the layers before it",
    "rwkv": "the input of layer",
    "zaya": "an argument of layer 1 depends on the layers before it",
    "xlnet": "hidden states have the shape",
}
"""Types whose layers pass on more than a hidden state, and what `solar probe` says of them."""


def replay_of(name, base, ids):
    """The base's layers as `solar probe` runs them; None where it refuses the type with the reason in `NOT_PROBED`."""
    replay = LayerReplay(base, NUM_LAYERS, 4096, 10**6)
    if name not in NOT_PROBED:
        replay.check(ids)
        return replay
    with pytest.raises(CheckpointError, match=NOT_PROBED[name]):
        replay.check(ids)
    return None


def check_probe(replay, ids, plan, model):
    """What the probe measures of a plan is the loss of the model that the plan makes."""
    recording = replay.record(ids)
    ((_, state),) = replay.run(recording, schedule([plan]), lambda count: None)
    ((nats,),) = replay.document_nats(recording, [state])
    likely = torch.log_softmax(logits(model, ids)[0, :-1].double(), dim=-1)
    expected = -likely.gather(1, ids[0, 1:, None]).mean().item()
    assert nats / (ids.shape[1] - 1) == pytest.approx(expected, abs=1e-5)


def upscale_and_compare(directory, base, sources, out, replay):
    """``equal``, perhaps with a note; or why it was refused."""
    plan = LayerPlan.from_sources(NUM_LAYERS, sources)
    try:
        write_checkpoint(find_base(str(directory)), plan, out)
    except CheckpointError as error:
        assert not out.exists()
        return f"refused: {error}"
    deeper = load(out)
    check_layers(deeper, base, sources)
    check_config(deeper, base, sources)
    tokens = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(3))
    reference = rearranged(base, sources, NUM_LAYERS)
    ours = logits(deeper, tokens)
    assert compare(ours, logits(reference, tokens)).equal
    assert not compare(ours, logits(load(directory), tokens)).equal, "the plan must matter"
    if replay is not None:
        with torch.inference_mode():
            check_probe(replay, tokens[:1], plan, deeper)
    cached = cache_difference(deeper, tokens[:1, :7])
    if isinstance(cached, Comparison) and cached.difference <= 1e-3 * max(1.0, cached.scale):
        return "equal"
    of_base = cache_difference(load(directory), tokens[:1, :7])
    if isinstance(of_base, str):
        assert cached == of_base
        return "equal; the base cannot generate with and without cache either"
    assert not of_base.equal, f"generation differs with the cache: {cached}, the base: {of_base}"
    return "equal; the base's own cache is not exact either"


NAMES = {
    **{name: (name, {}) for name in EVERY_TYPE if name not in REFUSED and name not in ALIASES},
    **VARIANTS,
}


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_the_rearranged_modules_or_refused(name, tmp_path):
    logging.set_verbosity_error()
    model_type, changes = NAMES[name]
    assert model_type in ARCHITECTURES or model_type in COMPOSITES, (
        f"transformers has the new type {model_type}: give it a row in ARCHITECTURES, or a reason in REFUSED"
    )
    base = make_base(model_type, changes, tmp_path / "base")
    ids = torch.randint(3, 100, (1, 24), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        replay = replay_of(name, load(tmp_path / "base"), ids)  # RWKV's forward changes its weights.
        if replay is not None:
            plan = LayerPlan.from_sources(NUM_LAYERS, INTERLEAVED)
            check_probe(replay, ids, plan, rearranged(base, INTERLEAVED, NUM_LAYERS))
    RESULTS[name] = {
        plan: upscale_and_compare(tmp_path / "base", base, sources, tmp_path / plan, replay)
        for plan, sources in PLANS.items()
    }


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_its_reason(name):
    assert name in EVERY_TYPE, "transformers does not know it any more: remove it"
    with pytest.raises(CheckpointError, match="cannot be upscaled"):
        Decoder.of({"model_type": name, "num_hidden_layers": NUM_LAYERS})


def table():
    """`docs/architectures.md`."""
    numbers: dict[str, int] = {}

    def cell(result):
        if result == "equal":
            return "equal"
        short = result.split(": ", 1)[-1] if result.startswith("refused") else result.split("; ", 1)[-1]
        number = numbers.setdefault(short.removeprefix("config.json: "), len(numbers) + 1)
        return f"{result.split()[0].rstrip(';:')} [{number}]"

    rows = [f"| {name} | " + " | ".join(cell(RESULTS[name][plan]) for plan in PLANS) + " |" for name in RESULTS]
    refused = [f"| {name} | {reason} |" for name, reason in REFUSED.items()]
    notes = [f"{number}. {text}" for text, number in numbers.items()]
    equal = sum(results["dus"].startswith("equal") for results in RESULTS.values())
    return "\n".join(
        [
            *HEAD.format(equal=equal, all=len(RESULTS), refused=len(REFUSED)).splitlines(),
            *rows,
            "",
            *notes,
            "",
            "## Refused",
            "",
            "| model type | why |",
            "|---|---|",
            *refused,
            "",
        ]
    )


HEAD = """\
# Architectures

Made by `tests/unit/decoders/test_every_decoder.py` (`make architectures`); do not edit.

Each row is a tiny random model with 9 layers, saved by transformers, upscaled from its files and loaded by
`AutoModelForCausalLM`. *Equal*: nothing was missing, unexpected or newly initialized; each layer's tensors, flags and
per-layer config fields are those of its source; the logits are those of the real modules rearranged in memory; and
generation gives the same with and without the cache. `dus` drops 3 layers of each copy, `slices` stacks [0, 7) and
[2, 9), `odd` stacks [0, 8), 4, 5, 7, 8, which breaks every period. With `dus` {equal} of {all} models are equal.
What is refused is never written. {refused} further model types are refused whatever the plan, with the reasons below.

| model | dus | slices | odd |
|---|---|---|---|"""


def test_the_table_in_the_docs_is_what_was_found():
    if len(RESULTS) < len(NAMES):
        pytest.skip("only some types were run (-k), so there is no whole table to compare; CI runs all of them")
    if os.environ.get("SOLAR_WRITE_DOCS"):
        TABLE.write_text(table())
    assert TABLE.read_text() == table(), "run `make architectures` and look at the difference"


def test_every_type_of_the_mapping_is_decided():
    decided = ARCHITECTURES.keys() | COMPOSITES.keys() | REFUSED.keys() | ALIASES.keys()
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) <= decided
