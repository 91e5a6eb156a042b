"""Identity layers of every model type that the table allows them for, and why types with a norm behind stay out."""

import pytest
import torch
import yaml
from rearranged import stack_of
from tiny_decoders import NUM_LAYERS, VARIANTS, tiny_config
from tiny_models import compare, load, logits, make_base
from transformers import logging

from solar_plugins.errors import CheckpointError
from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling import decoder
from solar_plugins.upscaling.architectures.table import ARCHITECTURES, COMPOSITES
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import write_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.mergekit import MERGEKIT_TYPES, passthrough_merge
from solar_plugins.upscaling.strategies import plan_of
from solar_plugins.upscaling.strategies.block_expansion import BlockExpansionArgs, plan_block_expansion

pytestmark = pytest.mark.slow

PLAN = plan_block_expansion(NUM_LAYERS, BlockExpansionArgs(new_layers=3))
SCALED = plan_of(
    InitArgs(strategy="dus", drop_layers=3, duplicates={"initializer": "scaled", "factor": 0.3}), NUM_LAYERS
)
TOKENS = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(3))


def writers(model_type, **changes):
    try:
        return decoder.Decoder.of(tiny_config(model_type, **changes).to_dict()).architecture.residual_writers
    except CheckpointError:  # a variant that is refused altogether
        return ()


ROWS = {model_type: (model_type, {}) for model_type, row in ARCHITECTURES.items() if row.residual_writers}
CASES = {
    **ROWS,
    **{name: case for name, case in VARIANTS.items() if case[0] in ROWS and writers(case[0], **case[1])},
    **{model_type: (model_type, {}) for model_type in COMPOSITES if writers(model_type)},
    "gpt_neox, MLP after attention": ("gpt_neox", {"use_parallel_residual": False}),
}
"""Name -> (model type, config): every row of the table that has `residual_writers`, and further models of those."""

MERGED = sorted(MERGEKIT_TYPES & ROWS.keys() - {"llama", "mistral"})
"""Those two are compared with mergekit in `tests/axolotl/test_new_layers.py`."""
NORM_BEHIND = ("exaone4", "gemma2", "gemma3_text", "glm4", "olmo2", "olmo3")
"""Types with a norm between the projections and the residual stream."""
LARGEST_GRADIENT = 5
"""Of what an identity layer has as zero, in units of the largest one of the same modules in the base's layers."""


@pytest.fixture(autouse=True)
def quiet():
    logging.set_verbosity_error()


def expanded(base, out):
    write_checkpoint(find_base(str(base)), PLAN, out)
    return load(out)


def written_in(model, model_type, **changes):
    """The parameters of the modules that write to the residual stream, new layers' and old ones', by name."""
    layers = f"{stack_of(model, len(PLAN))}."
    modules = tuple(f".{module}." for module in writers(model_type, **changes))
    new, old = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for name, parameter in model.named_parameters():
        if name.startswith(layers) and any(module in name for module in modules):
            position = int(name.removeprefix(layers).partition(".")[0])
            (new if PLAN.layers[position].initialization == "identity" else old)[name] = parameter
    return new, old


def relative_gradient(model, new, old):
    """The largest norm of a gradient in the new layers' parameters, by the largest in the old ones'."""
    model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    assert all(parameter.grad.norm() > 0 for parameter in new.values()), "what is zero must be able to learn"
    return max(p.grad.norm().item() for p in new.values()) / max(p.grad.norm().item() for p in old.values())


@pytest.mark.parametrize("name", CASES)
def test_the_expanded_model_equals_its_base_and_trains(name, tmp_path):
    """LLaMA Pro (arXiv:2401.02415, sec. 3.2): the same logits, bit by bit; plain copies in those places change them."""
    model_type, changes = CASES[name]
    base = make_base(model_type, changes, tmp_path / "base")
    model = expanded(tmp_path / "base", tmp_path / "expanded")
    assert torch.equal(logits(model, TOKENS), logits(base, TOKENS))
    write_checkpoint(
        find_base(str(tmp_path / "base")), LayerPlan.from_sources(NUM_LAYERS, PLAN.sources), tmp_path / "copied"
    )
    assert not compare(logits(load(tmp_path / "copied"), TOKENS), logits(base, TOKENS)).equal
    new, old = written_in(model, model_type, **changes)
    assert len(old) == NUM_LAYERS * len(new) / 3 > 0
    assert not any(parameter.any() for parameter in new.values()), "weights and biases are zero"
    assert relative_gradient(model, new, old) < LARGEST_GRADIENT


@pytest.mark.parametrize("model_type", NORM_BEHIND)
def test_a_norm_after_the_projection_is_rejected_for_identity_layers(model_type, tmp_path, monkeypatch):
    """Why such types have no row: logits alone would not tell, the gradient does."""
    make_base(model_type, {}, tmp_path / "base")
    with pytest.raises(
        CheckpointError, match=f"identity and scaled layers are not tested for model_type '{model_type}'"
    ):
        expanded(tmp_path / "base", tmp_path / "expanded")
    row = ARCHITECTURES[model_type]._replace(residual_writers=("self_attn.o_proj", "mlp.down_proj"))
    monkeypatch.setattr(decoder, "ARCHITECTURES", {**ARCHITECTURES, model_type: row})
    model = expanded(tmp_path / "base", tmp_path / "expanded")
    assert torch.equal(logits(model, TOKENS), logits(load(tmp_path / "base"), TOKENS))
    assert relative_gradient(model, *written_in(model, model_type)) > 10 * LARGEST_GRADIENT


@pytest.mark.parametrize("model_type", MERGED)
@pytest.mark.parametrize("plan", [PLAN, SCALED], ids=["identity", "scaled"])
def test_the_exported_merge_makes_the_same_model(model_type, plan, tmp_path, run_warm):
    """Weights and biases, to the bit where a layer is scaled."""
    make_base(model_type, {}, tmp_path / "base")
    base = find_base(str(tmp_path / "base"))
    write_checkpoint(base, plan, tmp_path / "expanded")
    ours = load(tmp_path / "expanded")
    merge = passthrough_merge(str(tmp_path / "base"), base.decoder, plan)
    (tmp_path / "merge.yml").write_text(yaml.safe_dump(merge))
    merged = run_warm("mergekit-yaml", tmp_path / "merge.yml", tmp_path / "merged")
    assert merged.returncode == 0, merged.stderr
    theirs = load(tmp_path / "merged").state_dict()
    assert theirs.keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())
