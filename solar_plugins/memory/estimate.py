"""The memory of one GPU in training by parts, each with its arithmetic and its reason. Pure.

Sizes of stored tensors are exact. Buffers of DeepSpeed and FSDP2 are upper bounds, from what their code allocates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil, prod
from typing import Any, Literal, NamedTuple

from solar_plugins.memory import activations
from solar_plugins.memory.parameters import (
    HeldTensor,
    Model,
    adapted_maps_of_a_layer,
    held_tensors,
    is_layer_map,
)
from solar_plugins.memory.training_setup import OPTIMIZERS, Adapter, TrainingSetup

Phase = Literal["loss", "layer", "step"]

PHASES: dict[Phase, str] = {
    "loss": "at the loss",
    "layer": "in a layer's backward pass",
    "step": "in the optimizer step",
}
"""Memory peaks in one of these three."""

ALWAYS: tuple[Phase, ...] = ("loss", "layer", "step")
IN_PASS: tuple[Phase, ...] = ("loss", "layer")

STATES = ("weights", "gradients", "master weights", "optimizer states")
"""Names of the parts that are kept between steps."""

LORA_RANK = 16
"""Of the setups that `common_setups` and `smaller_setups` choose."""


class Part(NamedTuple):
    """A part of the memory of one GPU."""

    name: str
    num_bytes: int
    phases: tuple[Phase, ...]
    """When it is held."""
    arithmetic: str
    reason: str


def memory_parts(model: Model, setup: TrainingSetup) -> list[Part]:
    """Every part that is not empty."""
    held = held_tensors(model, setup)
    parts = [
        _weights(held, setup),
        _reference(model, setup),
        *_training_states(held, setup),
        _gathered(model, held, setup),
        _in_flight_gradients(model, held, setup),
        *_activations(model, setup),
        _step_buffers(held, setup),
    ]
    return [part for part in parts if part.num_bytes]


def peaks(parts: Sequence[Part]) -> dict[Phase, int]:
    """The bytes that a GPU holds in each of the three phases."""
    return {phase: sum(part.num_bytes for part in parts if phase in part.phases) for phase in PHASES}


def peak(model: Model, setup: TrainingSetup) -> int:
    """The most bytes that a GPU holds at once."""
    return max(peaks(memory_parts(model, setup)).values())


# --- parts ----------------------------------------------------------------------------------------------------------


def _part(name: str, terms: Mapping[float, int], phases: tuple[Phase, ...], reason: str, shards: int = 1) -> Part:
    """A part from its elements by their bytes, with arithmetic such as ``2 x 10,731,524,096 / 8``."""
    num_bytes = ceil(sum(width * count for width, count in terms.items()) / shards)
    arithmetic = " + ".join(f"{width:.4g} x {count:,}" for width, count in terms.items())
    if shards > 1:
        arithmetic = f"({arithmetic}) / {shards}" if len(terms) > 1 else f"{arithmetic} / {shards}"
    return Part(name, num_bytes, phases, arithmetic, reason)


def _weights(held: list[HeldTensor], setup: TrainingSetup) -> Part:
    reasons = {
        "zero3": "each GPU keeps its shard in 16 bits (Rajbhandari et al. 2020, sec. 5.3; stage3.py)",
        "fsdp2": "each GPU keeps its shard; Axolotl 0.21 loads it in bf16 and makes no fp32 copy of trained weights "
        "(monkeypatch/accelerate/fsdp2.py; seen in a run of two CPU ranks)",
    }
    reason = reasons.get(setup.sharding, "complete on each GPU")
    if setup.adapter:
        reason += "; the frozen base, and the adapters"
    widths = sorted({tensor.weight_bytes for tensor in held})
    terms = {width: sum(t.elements for t in held if t.weight_bytes == width) for width in widths}
    return _part("weights", terms, ALWAYS, reason, setup.shards if setup.shards_weights else 1)


def _reference(model: Model, setup: TrainingSetup) -> Part:
    where = "complete on each GPU" if not setup.shards_weights else "sharded like the trained model"
    terms = {float(setup.element_bytes): model.parameters} if setup.reference else {}
    reason = f"preference training compares with a frozen copy of the model, {where} (trl/models/utils.py)"
    return _part("reference model", terms, ALWAYS, reason, setup.shards if setup.shards_weights else 1)


def _training_states(held: list[HeldTensor], setup: TrainingSetup) -> Iterator[Part]:
    """Gradients, master weights and optimizer states of the trained parameters."""
    trained = _trained_by_width(held)
    shards = 1 if setup.sharding in ("none", "zero1") else setup.shards
    reason = "kept over gradient accumulation, as wide as the weights" + (
        " (ZeRO-1 shards only optimizer states)" if setup.sharding == "zero1" else ""
    )
    yield _part("gradients", trained, ALWAYS, reason, shards)
    master = {4.0: sum(trained.values())} if setup.has_master_weights else {}
    reason = "DeepSpeed updates fp32 copies of the trained weights (Rajbhandari et al. 2020, sec. 3.1)"
    yield _part("master weights", master, ALWAYS, reason, setup.shards)
    states: dict[float, int] = {}
    for width, count in (master or trained).items():
        state_bytes = setup.optimizer.states * (setup.optimizer.state_bytes or width)
        states[state_bytes] = states.get(state_bytes, 0) + count
    reason = f"{setup.optimizer.name}: {setup.optimizer.states} per trained parameter" + (
        "" if setup.optimizer.state_bytes else ", as wide as the weights that it updates"
    )
    yield _part("optimizer states", states, ALWAYS, reason, setup.shards if setup.sharding != "none" else 1)


def _gathered(model: Model, held: list[HeldTensor], setup: TrainingSetup) -> Part:
    terms, reason = dict[float, int](), ""
    if setup.sharding == "zero3":
        live = min(setup.buffers.max_live or _largest(held), sum(tensor.elements for tensor in held))
        terms = {setup.element_bytes: live * (2 if setup.reference else 1)}
        reason = "full layers while they run: at most stage3_max_live_parameters elements of a model (stage3.py)"
    elif setup.sharding == "fsdp2":
        terms = {setup.element_bytes: 3 * model.layer_parameters + model.outer_parameters}
        reason = "embeddings and head, the active layer, the next layer, and the all-gather buffer (torch fully_shard)"
    return _part("gathered weights", terms, IN_PASS, reason)


def _in_flight_gradients(model: Model, held: list[HeldTensor], setup: TrainingSetup) -> Part:
    """Gradients that are computed, and not yet accumulated, reduced or sharded."""
    trained = _trained_by_width(held)
    largest = _largest([tensor for tensor in held if tensor.trained])
    width = max(trained, default=0.0)
    # "auto" is the square of the hidden size (transformers/integrations/deepspeed.py).
    bucket = setup.buffers.reduce_bucket or model.widths.hidden**2
    phases: tuple[Phase, ...] = ("layer",)
    if setup.sharding == "none" and setup.gpus > 1:
        terms = {w: n + (largest if w == width else 0) for w, n in trained.items()}
        phases, reason = ALWAYS, "DDP copies all gradients into buckets (torch, gradient_as_bucket_view off)"
    elif setup.sharding in ("zero1", "zero2"):
        terms = {width: (2 if setup.buffers.overlap else 1) * bucket + largest}
        reason = "buckets of reduce_bucket_size, two with overlap_comm, and the largest gradient (stage_1_and_2.py)"
    elif setup.sharding == "zero3":
        terms = {width: bucket + 2 * largest}
        reason = "a bucket of reduce_bucket_size, and two gradients (stage3.py)"
    elif setup.sharding == "fsdp2" and not setup.adapter:
        terms = {width: 2 * max(model.layer_parameters, model.outer_parameters)}
        reason = "the gradients of the largest unit, and its reduce-scatter buffer (torch fully_shard)"
    else:
        terms, reason = {width: largest}, "the largest gradient, before it is added to the accumulated one"
    return _part("in-flight gradients", terms, phases, reason)


def _activations(model: Model, setup: TrainingSetup) -> Iterator[Part]:
    widths, e, tokens = model.widths, setup.element_bytes, setup.tokens
    if setup.adapter:
        maps = adapted_maps_of_a_layer(model, setup.adapter)
        layer = activations.adapted_layer(widths, e, maps, setup.adapter.rank, setup.adapter.dropout)
    else:
        layer = activations.trained_layer(widths, e)
    active = activations.layer_gradients(widths, e)
    source = "what each operation of a Llama layer saves (method of Korthikanti et al. 2022, sec. 4.1)"

    def part(name: str, token_bytes: int, phases: tuple[Phase, ...], reason: str, layers: int = 1) -> Part:
        arithmetic = f"{token_bytes:,}" + (f" x {layers} layers" if layers > 1 else "") + f" x {tokens:,} tokens"
        return Part(name, token_bytes * layers * tokens, phases, arithmetic, reason)

    if setup.checkpointing:
        kept, reason = activations.layer_input(widths, e), "all that gradient checkpointing keeps of a layer"
        yield part("layer inputs", kept, IN_PASS, reason, model.num_layers)
        reason = f"{source}, recomputed, and the gradients of two MLP activations"
        yield part("active layer", active + layer, ("layer",), reason)
    else:
        yield part("layer activations", layer, IN_PASS, source, model.num_layers)
        yield part("active layer", active, ("layer",), "the gradients of two MLP activations")
    if not setup.full_logits:
        loss, reason = activations.last_norm(widths, e), "the last norm; the loss is fused with the head"
    elif setup.sequences == 2:
        fp32_logits = setup.sharding == "none" or setup.compute_bits == 32
        loss, reason = activations.pair_loss(widths, e, fp32_logits), "logits of policy and reference, an upper bound"
    else:
        loss, reason = activations.loss(widths, e), "three fp32 matrices of the vocabulary's width, and the last norm"
    yield part("logits and loss", loss, ("loss",), reason)
    if setup.adapter and setup.adapter.bits < 16:
        largest = max(prod(shape) for name, shape in model.shapes.items() if is_layer_map(name, shape))
        yield _part("dequantized weight", {e: largest}, ("layer",), "the largest frozen map, for its matrix product")


def _step_buffers(held: list[HeldTensor], setup: TrainingSetup) -> Part:
    """What exists only during the optimizer step."""
    trained = _trained_by_width(held)
    copies = setup.optimizer.step_copies
    terms, reasons = {width * copies: count for width, count in trained.items()} if copies else {}, list[str]()
    shards = setup.shards if setup.sharding == "fsdp2" else 1
    if setup.deepspeed:
        at_once = ceil(sum(trained.values()) / setup.shards)
        reasons.append("flattened gradients, then a copy in fp32")
        if setup.sharding == "zero3":
            at_once = min(at_once, setup.buffers.sub_group or ceil(_largest(held) / setup.shards))
            reasons.append("sub_group_size elements at a time")
        # With fp32 weights, the optimizer uses the flattened copy itself.
        gradients = max(trained, default=0.0) + (4 if setup.compute_bits == 16 else 0)
        terms = {gradients + 4 * copies: at_once}
    if copies:
        reasons.append(f"a square root of {setup.optimizer.name}'s states (torch foreach)")
    return _part("optimizer step buffers", terms, ("step",), "; ".join(reasons), shards)


def _trained_by_width(held: list[HeldTensor]) -> dict[float, int]:
    """Trained elements by their bytes."""
    widths = sorted({tensor.weight_bytes for tensor in held if tensor.trained})
    return {w: sum(t.elements for t in held if t.trained and t.weight_bytes == w) for w in widths}


def _largest(held: Sequence[HeldTensor]) -> int:
    return max((tensor.elements for tensor in held), default=0)


# --- common setups, for `solar plan` without a recipe's own settings ------------------------------------------------

NOTE = (
    f"micro_batch_size 1, gradient checkpointing, AdamW, LoRA of rank {LORA_RANK} on all linear layers of the decoder; "
    "solar plan RECIPE --memory uses the recipe's own settings and prints the arithmetic"
)


class SetupMemory(NamedTuple):
    """The bytes that one GPU holds in one setup."""

    setup: str
    gpus: int
    state_bytes: int
    """Weights, gradients, master weights and optimizer states."""
    total_bytes: int
    """At the peak."""


def common_setups(model: Model, sequence_tokens: int) -> list[SetupMemory]:
    """The memory of a model in common setups."""

    def setup(gpus: int = 1, adapter: Adapter | None = None, **keys: Any) -> TrainingSetup:
        return TrainingSetup(gpus=gpus, shards=gpus, adapter=adapter, sequence_tokens=sequence_tokens, **keys)

    setups = {
        "full, ZeRO-3, 8 GPUs": setup(8, sharding="zero3"),
        "full, ZeRO-3, 64 GPUs": setup(64, sharding="zero3"),
        "full, FSDP2 in pure bf16, 8 GPUs": setup(8, sharding="fsdp2"),
        "LoRA, bf16, 1 GPU": setup(adapter=Adapter(LORA_RANK)),
        "QLoRA, 4 bit, 1 GPU": setup(adapter=Adapter(LORA_RANK, bits=4)),
        "full, fp32, 1 CPU": setup(compute_bits=32),
    }
    return [_setup_memory(name, model, one) for name, one in setups.items()]


def _setup_memory(name: str, model: Model, setup: TrainingSetup) -> SetupMemory:
    parts = memory_parts(model, setup)
    states = sum(part.num_bytes for part in parts if part.name in STATES)
    return SetupMemory(name, setup.gpus, states, max(peaks(parts).values()))


# --- changes that make a recipe fit ---------------------------------------------------------------------------------


class Change(NamedTuple):
    """A change of a recipe, on top of the changes before it.

    Args:
        keys: As written in the recipe.
        peak_bytes: The most that a GPU then holds.
    """

    keys: str
    peak_bytes: int


def smaller_setups(model: Model, setup: TrainingSetup, peak_bytes: int) -> Iterator[Change]:
    """Changes that lower a GPU's peak, the least costly first.

    Recomputation, smaller micro-batches and sharding do not change the result; optimizer states in 8 bits change it
    slightly; adapters train something else.

    Args:
        model: The model that is trained.
        setup: How the recipe trains.
        peak_bytes: The most that a GPU holds now.
    """
    while True:
        for keys, changed in _changes(setup):
            changed_peak = peak(model, changed)
            if changed_peak < peak_bytes:
                setup, peak_bytes = changed, changed_peak
                yield Change(keys, peak_bytes)
                break
        else:
            return


def _changes(setup: TrainingSetup) -> Iterator[tuple[str, TrainingSetup]]:
    """Every single change that is possible, in order."""
    if not setup.checkpointing:
        yield "gradient_checkpointing: true", replace(setup, checkpointing=True)
    if setup.micro_batch_size > 1:
        yield "micro_batch_size: 1, and more gradient_accumulation_steps", replace(setup, micro_batch_size=1)
    if setup.gpus > 1 and setup.adapter is None and not setup.shards_weights:
        keys = "deepspeed: recipes/deepspeed/zero3_bf16.json"
        yield keys, replace(setup, sharding="zero3", shards=setup.gpus, fp32_embeddings_and_norms=False)
    if not setup.deepspeed and setup.optimizer.state_bytes is None and setup.optimizer.states == 2:
        yield "optimizer: adamw_bnb_8bit", replace(setup, optimizer=OPTIMIZERS["adamw_bnb_8bit"])
    if setup.adapter is None and not setup.unfrozen:
        keys = f"adapter: lora, lora_r: {LORA_RANK}, lora_target_linear: true"
        lora = replace(setup, adapter=Adapter(LORA_RANK), fp32_embeddings_and_norms=False, reference=False)
        yield keys, lora
    if setup.adapter is not None and setup.adapter.bits == 16:
        alone = "" if setup.sharding == "none" else ", no deepspeed or fsdp_config"
        yield (
            f"adapter: qlora, load_in_4bit: true{alone}",
            replace(setup, adapter=replace(setup.adapter, bits=4), sharding="none", shards=1),
        )
