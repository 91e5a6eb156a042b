"""The parts of a GPU's memory in training, each with its arithmetic and its reason. Pure.

Sizes of what is stored are exact. Buffers of DeepSpeed and FSDP2 are upper bounds, from what their code allocates.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, prod
from typing import Literal, NamedTuple

from solar_plugins.memory import activations
from solar_plugins.memory.parameters import (
    HeldTensor,
    Model,
    adapted_maps_of_a_layer,
    held_tensors,
    is_layer_map,
)
from solar_plugins.memory.training_setup import TrainingSetup

Moment = Literal["loss", "layer", "step"]

MOMENTS: dict[Moment, str] = {
    "loss": "at the loss",
    "layer": "in a layer's backward pass",
    "step": "in the optimizer's step",
}
"""When memory is at its highest: one of these three."""

ALWAYS: tuple[Moment, ...] = ("loss", "layer", "step")
IN_PASS: tuple[Moment, ...] = ("loss", "layer")


class Part(NamedTuple):
    """A part of the memory of one GPU, or of its share of the host's."""

    name: str
    num_bytes: int
    moments: tuple[Moment, ...]
    arithmetic: str
    reason: str
    on_host: bool = False


def memory_parts(model: Model, setup: TrainingSetup) -> list[Part]:
    """Every part that is not empty."""
    held = held_tensors(model, setup)
    parts = [
        _weights(held, setup),
        _reference(model, setup),
        *_training_states(held, setup),
        _gathered(model, held, setup),
        _gradients_under_way(model, held, setup),
        *_activations(model, setup),
        _step(held, setup),
    ]
    return [part for part in parts if part.num_bytes]


def peaks(parts: list[Part]) -> dict[Moment, int]:
    """What a GPU holds at each of the three moments."""
    return {moment: sum(p.num_bytes for p in parts if moment in p.moments and not p.on_host) for moment in MOMENTS}


def _weights(held: list[HeldTensor], setup: TrainingSetup) -> Part:
    total = sum(tensor.elements * tensor.weight_bytes for tensor in held)
    reasons = {
        "zero3": "each GPU keeps its part in 16 bits (Rajbhandari et al. 2020, sec. 5.3; stage3.py)",
        "fsdp2": "each GPU keeps its part; Axolotl 0.21 loads it in bf16 and makes no fp32 copy of what is trained "
        "(monkeypatch/accelerate/fsdp2.py; seen in a run of two CPU ranks)",
    }
    reason = reasons.get(setup.sharding, "whole on each GPU")
    if setup.adapter:
        reason += "; the frozen base, and the adapters"
    shards = setup.shards if setup.shards_weights else 1
    widths = dict.fromkeys(tensor.weight_bytes for tensor in held)
    terms = {width: sum(t.elements for t in held if t.weight_bytes == width) for width in sorted(widths)}
    return Part("weights", ceil(total / shards), ALWAYS, _sum(terms, shards), reason, setup.offload_weights)


def _reference(model: Model, setup: TrainingSetup) -> Part:
    shards = setup.shards if setup.shards_weights else 1
    width = setup.element_bytes
    total = model.parameters * width if setup.reference else 0
    reason = "preference training compares with a frozen copy of the model, sharded like it (trl/models/utils.py)"
    if setup.sharding in ("zero1", "zero2"):
        reason = "preference training compares with a frozen copy, whole on each GPU below ZeRO-3 (trl/models/utils.py)"
    return Part("reference model", ceil(total / shards), ALWAYS, _sum({width: model.parameters}, shards), reason)


def _training_states(held: list[HeldTensor], setup: TrainingSetup) -> Iterator[Part]:
    """Gradients, master weights and optimizer states of what is trained."""
    trained = _trained_by_width(held)
    on_host = setup.offload_optimizer or setup.offload_weights
    shards = setup.shards if setup.sharding in ("zero2", "zero3", "fsdp2") else 1
    gradients = _gradient_terms(trained, setup)
    yield Part(
        "gradients",
        _total(gradients, shards),
        ALWAYS,
        _sum(gradients, shards),
        "kept over the steps of an accumulation, as wide as the weights"
        + (" (ZeRO-1 divides optimizer states only)" if setup.sharding == "zero1" else ""),
        on_host,
    )
    master = {4.0: sum(trained.values())} if _has_master(setup) else {}
    yield Part(
        "master weights",
        _total(master, setup.shards),
        ALWAYS,
        _sum(master, setup.shards),
        "DeepSpeed updates fp32 copies of what is trained (Rajbhandari et al. 2020, sec. 3.1)",
        on_host,
    )
    states = _state_terms(trained, setup)
    sharded = setup.shards if setup.sharding != "none" else 1
    yield Part(
        "optimizer states",
        _total(states, sharded),
        ALWAYS,
        _sum(states, sharded),
        f"{setup.optimizer.name}: {setup.optimizer.states} for each trained parameter"
        + ("" if setup.optimizer.state_bytes else ", as wide as the weights that it updates"),
        on_host,
    )


def _gathered(model: Model, held: list[HeldTensor], setup: TrainingSetup) -> Part:
    width = setup.element_bytes
    if setup.sharding == "zero3":
        live = min(setup.buffers.max_live, sum(tensor.elements for tensor in held))
        models = 2 if setup.reference else 1
        terms: dict[float, int] = {width: models * live}
        reason = "whole layers at work: at most stage3_max_live_parameters elements of a model (stage3.py)"
    elif setup.sharding == "fsdp2":
        terms = {width: 3 * model.layer_parameters + model.outer_parameters}
        reason = (
            "embeddings and head, the layer at work, the next one, and the buffer of an all-gather (torch fully_shard)"
        )
    else:
        terms, reason = {}, ""
    return Part("gathered weights", _total(terms), IN_PASS, _sum(terms), reason)


def _gradients_under_way(model: Model, held: list[HeldTensor], setup: TrainingSetup) -> Part:
    """Gradients that are computed, and not yet added, reduced or divided."""
    trained = _trained_by_width(held)
    largest = max((tensor.elements for tensor in held if tensor.trained), default=0)
    width = max(trained, default=0.0)
    # "auto" is the hidden width squared (transformers/integrations/deepspeed.py).
    bucket = setup.buffers.reduce_bucket or model.widths.hidden**2
    moments: tuple[Moment, ...] = ("layer",)
    if setup.sharding == "none" and setup.gpus > 1:
        gradients = _gradient_terms(trained, setup)
        terms = {w: n + (largest if w == width else 0) for w, n in gradients.items()}
        moments, reason = ALWAYS, "DDP copies all gradients into buckets (torch, gradient_as_bucket_view off)"
    elif setup.sharding in ("zero1", "zero2"):
        terms = {width: (2 if setup.buffers.overlap else 1) * bucket + largest}
        reason = "buckets of reduce_bucket_size, two with overlap_comm, and the largest gradient (stage_1_and_2.py)"
    elif setup.sharding == "zero3":
        terms = {width: bucket + 2 * largest}
        reason = "a bucket of reduce_bucket_size, and two gradients (stage3.py)"
    elif setup.sharding == "fsdp2" and not setup.adapter:
        terms = {width: 2 * max(model.layer_parameters, model.outer_parameters)}
        reason = "the gradients of the largest unit, and its buffer of the reduce-scatter (torch fully_shard)"
    else:
        terms, reason = {width: largest}, "the largest one, before it is added to what is kept"
    return Part("gradients under way", _total(terms), moments, _sum(terms), reason)


def _activations(model: Model, setup: TrainingSetup) -> Iterator[Part]:
    widths, e, tokens = model.widths, setup.element_bytes, setup.tokens
    if setup.adapter:
        maps = adapted_maps_of_a_layer(model, setup.adapter)
        layer = activations.adapted_layer(widths, e, maps, setup.adapter.rank, setup.adapter.dropout)
    else:
        layer = activations.trained_layer(widths, e)
    at_work = activations.layer_gradients(widths, e)
    source = "what each operation of a Llama layer keeps (method of Korthikanti et al. 2022, sec. 4.1)"
    if setup.checkpointing:
        kept = activations.layer_input(widths, e)
        yield _by_token(
            "inputs of the layers", kept * model.num_layers, tokens, IN_PASS, f"{kept:,} x {model.num_layers} layers",
            "gradient checkpointing keeps no more of a layer, and computes it again", setup.offload_activations,
        )  # fmt: skip
        at_work += layer
    else:
        yield _by_token(
            "activations of the layers", layer * model.num_layers, tokens, IN_PASS,
            f"{layer:,} x {model.num_layers} layers", source,
        )  # fmt: skip
    reason = f"{source}, and the gradients of two MLP activations" if setup.checkpointing else "two MLP activations"
    yield _by_token("layer at work", at_work, tokens, ("layer",), f"{at_work:,}", reason)
    if setup.full_logits and setup.sequences == 2:
        wide = setup.sharding == "none" or not setup.half
        loss, reason = activations.pair_loss(widths, e, wide), "policy's and reference's logits, at most"
    elif setup.full_logits:
        loss, reason = activations.loss(widths, e), "three fp32 matrices of the vocabulary's width, and the last norm"
    else:
        loss, reason = activations.last_norm(widths, e), "the last norm; the loss is fused with the head"
    yield _by_token("logits and loss", loss, tokens, ("loss",), f"{loss:,}", reason)
    if setup.adapter and setup.adapter.bits < 16:
        largest = max(prod(shape) for name, shape in model.shapes.items() if is_layer_map(name, shape))
        terms = {float(e): largest}
        yield Part("dequantised map", _total(terms), ("layer",), _sum(terms), "the largest frozen map, for its product")


def _by_token(
    name: str, each: int, tokens: int, moments: tuple[Moment, ...], arithmetic: str, reason: str, on_host: bool = False
) -> Part:
    return Part(name, each * tokens, moments, f"{arithmetic} x {tokens:,} tokens", reason, on_host)


def _step(held: list[HeldTensor], setup: TrainingSetup) -> Part:
    """What exists during the optimizer's step only."""
    trained = _trained_by_width(held)
    copies = setup.optimizer.step_copies
    if setup.deepspeed:
        local = ceil(sum(trained.values()) / setup.shards)
        at_once = min(local, setup.buffers.sub_group) if setup.sharding == "zero3" else local
        gradient = max(_gradient_terms(trained, setup), default=0.0)
        # In 32 bits the flattened copy is itself what the optimizer takes.
        terms = {gradient + (4 if setup.half else 0) + 4 * copies: at_once}
        shards, reason = (
            1,
            "gradients flattened, then in fp32" + ("; sub_group_size at a time" if setup.sharding == "zero3" else ""),
        )
    else:
        terms = {width * copies: count for width, count in trained.items()} if copies else {}
        shards, reason = (setup.shards if setup.sharding == "fsdp2" else 1), ""
    if copies:
        reason = "; ".join(filter(None, [reason, f"a square root of {setup.optimizer.name}'s states (torch foreach)"]))
    on_host = setup.offload_optimizer or setup.offload_weights
    return Part("copies of the step", _total(terms, shards), ("step",), _sum(terms, shards), reason, on_host)


def _has_master(setup: TrainingSetup) -> bool:
    return setup.deepspeed and setup.half


def _trained_by_width(held: list[HeldTensor]) -> dict[float, int]:
    """Trained elements by the bytes of one."""
    widths = sorted({tensor.weight_bytes for tensor in held if tensor.trained})
    return {w: sum(t.elements for t in held if t.trained and t.weight_bytes == w) for w in widths}


def _gradient_terms(trained: dict[float, int], setup: TrainingSetup) -> dict[float, int]:
    said = setup.buffers.gradient_bytes if setup.deepspeed else None
    return {said: sum(trained.values())} if said else trained


def _state_terms(trained: dict[float, int], setup: TrainingSetup) -> dict[float, int]:
    """Elements by bytes of all states of one."""
    terms: dict[float, int] = {}
    for width, count in trained.items():
        updated = 4.0 if _has_master(setup) else width
        each = setup.optimizer.states * (setup.optimizer.state_bytes or updated)
        if each:
            terms[each] = terms.get(each, 0) + count
    return terms


def _total(terms: dict[float, int], shards: int = 1) -> int:
    return ceil(sum(width * count for width, count in terms.items()) / shards)


def _sum(terms: dict[float, int], shards: int = 1) -> str:
    """The terms as a line of arithmetic, such as ``2 x 10,731,524,096 / 8``."""
    text = " + ".join(f"{width:.4g} x {count:,}" for width, count in terms.items())
    if shards == 1:
        return text
    return f"({text}) / {shards}" if len(terms) > 1 else f"{text} / {shards}"
