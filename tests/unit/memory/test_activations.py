"""Activations against what torch saves of transformers' own model."""

import pytest
import torch
from known_models import MISTRAL, SMALL
from torch.autograd.graph import saved_tensors_hooks

from solar_plugins.memory import activations
from solar_plugins.upscaling.decoder import Decoder

BATCH, TOKENS = 2, 256
WIDTHS = Decoder.of(SMALL | {"num_hidden_layers": 1}).widths


def saved_bytes(num_layers, dtype, checkpointing, wrap=None):
    """Bytes that the decoder's forward pass saves for its backward pass, without parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    kind = {key: value for key, value in SMALL.items() if key != "model_type"}
    config = LlamaConfig(**kind, num_hidden_layers=num_layers, attn_implementation="sdpa")
    model = (wrap or (lambda model: model))(LlamaForCausalLM(config).to(dtype).train())
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept, seen = [], {}

    def pack(tensor):
        kept.append(tensor)  # kept alive, so that no two storages share an address
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.zeros(BATCH, TOKENS, dtype=torch.long)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=wrap is not None)
    with autocast, saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return sum(seen.values())


def bytes_of_a_layer(dtype, checkpointing=False, wrap=None):
    """What one more layer adds per token."""
    one, two = (saved_bytes(layers, dtype, checkpointing, wrap) for layers in (2, 3))
    return (two - one) / (BATCH * TOKENS)


@pytest.mark.parametrize(("dtype", "e"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_a_trained_layer(dtype, e):
    assert bytes_of_a_layer(dtype) == pytest.approx(activations.trained_layer(WIDTHS, e), rel=0.005)


@pytest.mark.parametrize(("dtype", "e"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_with_gradient_checkpointing_a_layer_keeps_its_input_only(dtype, e):
    assert bytes_of_a_layer(dtype, checkpointing=True) == activations.layer_input(WIDTHS, e)


def lora(model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.enable_input_require_grads()
    return model


def test_an_adapted_layer():
    maps = [(256, 256), (64, 256), (64, 256), (256, 256), (896, 256), (896, 256), (256, 896)]  # outputs, inputs
    expected = activations.adapted_layer(WIDTHS, 2, maps, rank=16, dropout=0.0)
    assert bytes_of_a_layer(torch.bfloat16, wrap=lora) == pytest.approx(expected, rel=0.03)
    with_mask = activations.adapted_layer(WIDTHS, 2, maps, rank=16, dropout=0.05)
    assert with_mask - expected == 6 * 256 + 896, "CUDA's dropout keeps one byte per input"


def test_mistral_by_hand():
    """Bytes per token: norms 16 x 4096, attention 4 x (4096 + 1024), MLP 8 x 14336, fp32 factors 4 x (32 + 2)."""
    assert activations.trained_layer(Decoder.of(MISTRAL).widths, 2) == 65_536 + 20_480 + 114_688 + 136


def test_the_loss_of_pairs_is_that_of_trl(live_peak):
    """TRL's own functions, with the logits in 16 and in 32 bits; `pair_loss` is a tight upper bound."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from trl.trainer.utils import selective_log_softmax, selective_log_softmax_and_entropy

    vocabulary, rows, tokens = 8192, 2, 256
    for dtype, fp32_logits in ((torch.bfloat16, False), (torch.float32, True)):
        with FakeTensorMode():
            head = torch.empty(vocabulary, 64, dtype=torch.bfloat16, requires_grad=True)
            hidden = torch.empty(rows, tokens, 64, dtype=torch.bfloat16)
            labels = torch.zeros(rows, tokens, dtype=torch.long)

            def loss(head=head, hidden=hidden, labels=labels, dtype=dtype):
                logits = (hidden @ head.T).to(dtype)[:, :-1]
                own, _ = selective_log_softmax_and_entropy(logits, labels[:, 1:], entropy_requires_grad=False)
                with torch.no_grad():
                    reference = (hidden @ head.T).to(dtype)[:, :-1]
                theirs = selective_log_softmax(reference, labels[:, 1:])
                return (own - theirs).sum()

            # When the backward pass begins, only what the loss saved is left, as in TRL's trainer.
            peak = live_peak(lambda loss=loss: loss().backward(), [head, hidden, labels]) / (rows * tokens * vocabulary)
        widths = WIDTHS._replace(hidden=0, vocabulary=vocabulary)
        bound = activations.pair_loss(widths, 2, fp32_logits) / vocabulary
        assert 0.85 * bound < peak <= bound
