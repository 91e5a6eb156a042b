"""The output of ``solar plan RECIPE --memory``, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from types import MappingProxyType
from typing import Any

from solar_plugins.memory.estimate import PHASES, Change, Part, memory_parts, peaks, smaller_setups
from solar_plugins.memory.recipe_model import FoundModel, model_of
from solar_plugins.memory.recipe_setup import Devices, devices_of, not_estimated, setup_of
from solar_plugins.memory.training_setup import SHARDING_NAMES, TrainingSetup
from solar_plugins.recipe import read_recipe
from solar_plugins.tables import lines, table
from solar_plugins.text import format_bytes
from solar_plugins.upscaling.estimates import COUNTED_TYPES
from solar_plugins.upscaling.trained_layers import training_keys

LINE_WIDTH = 100

FREE_SHARE = 0.15
"""Share of a GPU that must stay free for what is not estimated."""

ASSUMPTIONS = (
    "GB are 10^9 bytes. Not estimated: the CUDA context and NCCL (1 to 3 GB), allocator fragmentation, evaluation and "
    f"saving. A recipe fits if {FREE_SHARE:.0%} of each GPU stay free for them",
    "all sequences have sequence_len tokens (with sample packing they do; without it this is the worst batch)",
    "attention stores no score matrix (flash attention, sdpa)",
    "stored tensors are exact; activations were compared with transformers' Mistral on a CPU and, at the full size of "
    "SOLAR, on tensors without data; buffers of DeepSpeed and FSDP2 are upper bounds from their code, not measured",
    "on one H200, training took 0.98 to 1.05 times the estimate with gradient checkpointing (LoRA and QLoRA of 10.7B, "
    "full training of 0.2B), and 1.14 to 1.17 times without: leave more free there (docs/gpu/gpu.md)",
)


@dataclass(frozen=True)
class MemoryReport:
    """The memory of each GPU in the training of a recipe."""

    recipe: str
    found: FoundModel
    devices: Devices
    setup: TrainingSetup
    parts: list[Part]
    notes: list[str]

    @property
    def peak_bytes(self) -> int:
        """The most bytes that a GPU holds at once."""
        return max(peaks(self.parts).values())

    @property
    def share(self) -> float | None:
        """Peak over a GPU's memory; None if that is not known."""
        return self.peak_bytes / self.devices.memory_bytes if self.devices.memory_bytes else None

    @property
    def verdict(self) -> str:
        """Whether it fits."""
        if self.share is None:
            return "unknown: give the GPU's memory with --gpu-memory"
        if self.share > 1:
            return "does not fit"
        return "fits" if self.share <= 1 - FREE_SHARE else "tight"

    @property
    def changes(self) -> list[Change]:
        """Changes that would make it fit, each on top of those before it; all known ones if that is not enough."""
        if self.verdict not in ("tight", "does not fit"):
            return []
        room = (1 - FREE_SHARE) * (self.devices.memory_bytes or 0)
        found = list[Change]()
        for change in smaller_setups(self.found.model, self.setup, self.peak_bytes):
            found.append(change)
            if change.peak_bytes <= room:
                break
        return found


def memory_of_recipe(
    path: Path,
    base: str | None,
    gpus: int | None,
    gpu_gigabytes: float | None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> MemoryReport:
    """The memory that each GPU needs for a recipe's training.

    Args:
        path: The recipe.
        base: Replaces the ``base_model`` at the start of its chain of stages.
        gpus: GPUs of all nodes; None: ``WORLD_SIZE`` of them, or one.
        gpu_gigabytes: Memory of each GPU; None: not known, so there is no verdict.
        overrides: Keys of the recipe with other values.

    Raises:
        SolarError: The recipe or its base cannot be used, or the memory of its training is not estimated.
    """
    recipe = read_recipe(path, overrides)
    found = model_of(recipe, base)
    if recipe.solar is not None and recipe.solar.train is not None:
        recipe = recipe.model_copy(update=training_keys(recipe, recipe.solar.train, found.decoder, found.plan))
    devices = devices_of(gpus, gpu_gigabytes)
    setup = setup_of(recipe, devices.gpus)
    notes = [f"not estimated: the effect of {setting}; the real memory differs" for setting in not_estimated(recipe)]
    if found.model.model_type not in COUNTED_TYPES:
        notes.append(f"a layer of {found.model.model_type} is treated as a Llama layer with the same widths")
    return MemoryReport(str(path), found, devices, setup, memory_parts(found.model, setup), notes)


def as_json(report: MemoryReport) -> dict[str, Any]:
    """The report as JSON-ready values, sizes in bytes."""
    setup = report.setup
    return {
        "recipe": report.recipe,
        "stages": list(report.found.stages),
        "already_grown": report.found.already_grown,
        "parameters": report.found.model.parameters,
        "num_layers": report.found.model.num_layers,
        "gpus": report.devices.gpus,
        "gpus_from": report.devices.gpus_from,
        "gpu_memory_bytes": report.devices.memory_bytes,
        "sharding": setup.sharding,
        "shards": setup.shards,
        "optimizer": setup.optimizer.name,
        "tokens": setup.tokens,
        "parts": [_part_as_json(part) for part in report.parts],
        "moments": peaks(report.parts),
        "peak_bytes": report.peak_bytes,
        "share": report.share,
        "verdict": report.verdict,
        "changes": [change._asdict() for change in report.changes],
        "notes": report.notes,
        "assumptions": list(ASSUMPTIONS),
    }


def _part_as_json(part: Part) -> dict[str, Any]:
    content = part._asdict()
    return {"moments" if key == "phases" else key: value for key, value in content.items()}


def as_text(report: MemoryReport) -> str:
    """The report for a terminal."""
    return "\n".join([*_head(report), "", *_table(report), *_smaller(report), "", *_reasons(report), *_notes(report)])


def _head(report: MemoryReport) -> Iterator[str]:
    model, setup, devices = report.found.model, report.setup, report.devices
    yield f"{report.recipe}: {model.parameters:,} parameters in {model.num_layers} layers"
    upscaled = " (already upscaled by this plan, used as it is)" if report.found.already_grown else ""
    yield f"model       {' -> '.join([report.found.stages[0] + upscaled, *report.found.stages[1:]])}"
    memory = f", {format_bytes(devices.memory_bytes)} each" if devices.memory_bytes else ""
    yield f"GPUs        {devices.gpus}{memory} (from {devices.gpus_from})"
    yield f"training    {', '.join(_training(setup))}"
    pairs = " pairs x 2" if setup.sequences == 2 else ""
    yield f"batch       {setup.micro_batch_size}{pairs} x {setup.sequence_tokens:,} = {setup.tokens:,} tokens per GPU"


def _training(setup: TrainingSetup) -> Iterator[str]:
    over = f" over {setup.shards}" if setup.sharding != "none" else ""
    yield ("DDP" if setup.sharding == "none" and setup.gpus > 1 else SHARDING_NAMES[setup.sharding]) + over
    yield f"{setup.compute_bits} bits"
    yield setup.optimizer.name
    if setup.adapter:
        yield f"LoRA of rank {setup.adapter.rank} on {setup.adapter.bits}-bit weights"
    if setup.unfrozen:
        yield "only unfrozen_parameters"
    yield "gradient checkpointing" if setup.checkpointing else "no gradient checkpointing"


def _table(report: MemoryReport) -> list[str]:
    rows = []
    for part in report.parts:
        when = "always" if len(part.phases) == len(PHASES) else ", ".join(PHASES[phase] for phase in part.phases)
        rows.append((part.name, part.num_bytes, when))
    rows += [(PHASES[phase], held, "") for phase, held in peaks(report.parts).items()]
    rows += [("peak", report.peak_bytes, report.verdict)]
    memory = report.devices.memory_bytes
    cells = [[name, format_bytes(size), _share(size, memory), when] for name, size, when in rows]
    headings = ["memory of each GPU", "bytes", "share", "when"]
    return lines(table(headings, cells, left=(0, 3), rules=(len(report.parts), len(rows) - 1)))


def _smaller(report: MemoryReport) -> Iterator[str]:
    if report.changes:
        memory = report.devices.memory_bytes
        rows = [
            [format_bytes(change.peak_bytes), _share(change.peak_bytes, memory), change.keys]
            for change in report.changes
        ]
        yield "\nto reduce it, each change on top of those above it:"
        yield from lines(table(["peak", "share", "keys"], rows, left=(2,)))


def _share(num_bytes: int, memory: int | None) -> str:
    if not memory:
        return ""
    return "<1%" if 0 < num_bytes / memory < 0.005 else f"{num_bytes / memory:.0%}"


def _reasons(report: MemoryReport) -> Iterator[str]:
    for part in report.parts:
        yield f"{part.name}: {part.arithmetic}"
        yield from wrap(part.reason, LINE_WIDTH, initial_indent="    ", subsequent_indent="    ")


def _notes(report: MemoryReport) -> Iterator[str]:
    yield ""
    for line in (*(f"Note: {note}" for note in report.notes), *(f"- {line}" for line in ASSUMPTIONS)):
        yield from wrap(line, LINE_WIDTH, subsequent_indent="  ")
