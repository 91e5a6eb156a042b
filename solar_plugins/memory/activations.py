"""Bytes that one token takes between forward and backward pass, in a Llama-type decoder of transformers. Pure.

The method is that of Korthikanti et al. 2022 (arXiv:2205.05198, sec. 4.1): add up what each operation keeps for its
backward pass. Their equations are for GPT's layer; these are for the Llama layer: two RMS norms that compute in fp32,
grouped keys, attention that keeps no score matrix, and a gated MLP. ``e`` is the width of an activation in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from solar_plugins.upscaling.decoder import DecoderWidths
from solar_plugins.upscaling.estimates import Shape

FP32 = 4


def layer_input(widths: DecoderWidths, e: int) -> int:
    """What gradient checkpointing keeps of a layer."""
    return e * widths.hidden


def trained_layer(widths: DecoderWidths, e: int) -> int:
    """What the backward pass of a layer needs whose weights are trained.

    Of each norm its input in fp32, the normalised input and the output, which the linear maps take; queries, keys,
    values and the attention's output; gate, up, activated gate and product of the MLP; the attention's log-sum and the
    norms' factors in fp32.
    """
    norms = 2 * (FP32 + 2 * e) * widths.hidden
    attention = 2 * e * (widths.queries + widths.keys)
    mlp = 4 * e * widths.intermediate
    return norms + attention + mlp + FP32 * (widths.heads + 2)


def adapted_layer(widths: DecoderWidths, e: int, maps: Sequence[Shape], rank: int, dropout: float) -> int:
    """What the backward pass of a layer needs whose weights are frozen, with LoRA on ``maps`` (outputs, inputs).

    A frozen map keeps no input. LoRA keeps a copy of the input for each map, its mask if there is dropout, and the
    narrow product.
    """
    frozen = 2 * FP32 * widths.hidden + 2 * e * (widths.queries + widths.keys) + 3 * e * widths.intermediate
    inputs = sum(shape[1] for shape in maps)
    lora = (e + (1 if dropout else 0)) * inputs + e * rank * len(maps)
    return frozen + lora + FP32 * (widths.heads + 2)


def layer_gradients(widths: DecoderWidths, e: int) -> int:
    """Gradients of activations inside a layer: at the widest place, two of the MLP's width."""
    return 2 * e * widths.intermediate


def loss(widths: DecoderWidths, e: int) -> int:
    """The loss from whole logits: three fp32 matrices as wide as the vocabulary, and what the last norm keeps.

    The log-probabilities, the gradient by them, and the gradient by the logits exist at once (torch's nll_loss_backward
    and log_softmax_backward).
    """
    return 3 * FP32 * widths.vocabulary + last_norm(widths, e)


def pair_loss(widths: DecoderWidths, e: int, wide: bool) -> int:
    """The loss from the logits of policy and reference, at most.

    TRL's log-probabilities and their backward pass, run on tensors without data, took 8.3 bytes for each logit in 16
    bits, and 16.2 in fp32, which accelerate's autocast makes of them.
    """
    return (17 if wide else 9) * widths.vocabulary + last_norm(widths, e)


def last_norm(widths: DecoderWidths, e: int) -> int:
    """What the last norm keeps, and the head its input."""
    return (FP32 + 2 * e) * widths.hidden
