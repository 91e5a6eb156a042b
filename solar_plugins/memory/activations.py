"""Bytes per token that a Llama-type decoder of transformers keeps from the forward pass for the backward pass. Pure.

The method of Korthikanti et al. 2022 (arXiv:2205.05198, sec. 4.1): add up what each operation saves for its backward
pass. Their equations are for a GPT layer; these are for a Llama layer: two RMS norms that compute in fp32,
grouped-query attention without a stored score matrix, and a gated MLP. ``e`` is the size of an activation in bytes.
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
    """What the backward pass needs of a layer with trained weights.

    For each norm: its input in fp32, the normalized input and the output, which the linear layers read. For attention:
    queries, keys, values and the output. For the MLP: gate, up, activated gate and product. In fp32 besides: the
    attention's log-sum-exp and the norms' scaling factors.
    """
    norms = 2 * (FP32 + 2 * e) * widths.hidden
    attention = 2 * e * (widths.queries + widths.keys)
    mlp = 4 * e * widths.intermediate
    return norms + attention + mlp + FP32 * (widths.heads + 2)


def adapted_layer(widths: DecoderWidths, e: int, maps: Sequence[Shape], rank: int, dropout: float) -> int:
    """What the backward pass needs of a layer with frozen weights and LoRA on ``maps`` (outputs, inputs).

    A frozen map saves no input. LoRA saves a copy of the input of each map, a mask if there is dropout, and the
    low-rank product.
    """
    frozen = 2 * FP32 * widths.hidden + 2 * e * (widths.queries + widths.keys) + 3 * e * widths.intermediate
    inputs = sum(shape[1] for shape in maps)
    lora = (e + (1 if dropout else 0)) * inputs + e * rank * len(maps)
    return frozen + lora + FP32 * (widths.heads + 2)


def layer_gradients(widths: DecoderWidths, e: int) -> int:
    """Activation gradients inside a layer at their peak: two of the MLP's width."""
    return 2 * e * widths.intermediate


def loss(widths: DecoderWidths, e: int) -> int:
    """The loss from full logits: three fp32 matrices of the vocabulary's width, and what the last norm keeps.

    The log-probabilities, their gradient and the gradient of the logits exist at the same time (torch's
    nll_loss_backward and log_softmax_backward).
    """
    return 3 * FP32 * widths.vocabulary + last_norm(widths, e)


def pair_loss(widths: DecoderWidths, e: int, fp32_logits: bool) -> int:
    """The loss from the logits of policy and reference; an upper bound.

    TRL's log-probabilities and their backward pass, run on tensors without data, took 8.3 bytes per logit in 16 bits,
    and 16.2 in fp32, to which accelerate's autocast converts them.
    """
    return (17 if fp32_logits else 9) * widths.vocabulary + last_norm(widths, e)


def last_norm(widths: DecoderWidths, e: int) -> int:
    """What the last norm keeps, and the input of the head."""
    return (FP32 + 2 * e) * widths.hidden
