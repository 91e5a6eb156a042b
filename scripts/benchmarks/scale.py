"""Estimates of start-up, traffic and memory from 1 to 1024 GPUs and from 7B to 400B: docs/scale.md.

    .venv/bin/python scripts/benchmarks/scale.py              # the page, from docs/bench.json and docs/scale.json
    .venv/bin/python scripts/benchmarks/scale.py --measure    # measures docs/scale.json too: three minutes

Measured rates come from those two files. Everything else is computed from them, from the stated assumptions, and with
the formulas of `solar plan --memory`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench import REPOSITORY
from bench_tables import OURS, Device, Run, copy_rate, estimated_seconds, select
from handover import HandOver, measure_hand_over, seconds_of_a_rank

from solar_plugins.memory.estimate import memory_parts, peaks
from solar_plugins.memory.parameters import Model
from solar_plugins.memory.training_setup import TrainingSetup
from solar_plugins.storage.atomic import LONG_WAIT_POLL_SECONDS, POLL_SECONDS
from solar_plugins.storage.safetensors import COPY_THREADS
from solar_plugins.text import format_bytes
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.estimates import shapes_from_config, size_from_config

DOCS = REPOSITORY / "docs"
PROCESSES = (8, 32, 64, 128)
NODES, GPUS_OF_A_NODE = (1, 2, 16, 128), 8
GPUS = (1, 8, 16, 64, 128, 256, 1024)
GPU_BYTES = 80e9
SEQUENCE_TOKENS = 4096
ELEMENT_BYTES = 2

LOCAL = Device("a node's local NVMe drive, 3 GB/s", 3e9)
SHARED = Device("shared file system, 2 GB/s per node", 2e9)
SHARED_BYTES_PER_SECOND = 50e9
"""Of the shared file system, all nodes together."""


class Base(NamedTuple):
    """A published model, and its depth after depth up-scaling."""

    name: str
    decoder: Decoder
    drop_layers: int

    @property
    def depth(self) -> int:
        return 2 * (self.decoder.num_layers - self.drop_layers)

    @property
    def base_bytes(self) -> int:
        return ELEMENT_BYTES * self.parameters(self.decoder.num_layers)

    @property
    def result_bytes(self) -> int:
        return ELEMENT_BYTES * self.parameters(self.depth)

    def parameters(self, num_layers: int) -> int:
        size = size_from_config(self.decoder, num_layers)
        assert size is not None
        return size.parameters

    def model(self) -> Model:
        shapes = shapes_from_config(self.decoder, self.depth)
        assert shapes is not None
        return Model(shapes, self.decoder.widths, self.depth, "llama")


def _base(name: str, layers: int, hidden: int, inner: int, heads: int, vocabulary: int, drop_layers: int) -> Base:
    widths = {"hidden_size": hidden, "intermediate_size": inner, "vocab_size": vocabulary, "num_hidden_layers": layers}
    config = {"model_type": "llama", "num_attention_heads": heads, "num_key_value_heads": 8, **widths}
    return Base(name, Decoder.of(config), drop_layers)


BASES = (
    _base("Mistral 7B", 32, 4096, 14336, 32, 32000, drop_layers=8),
    _base("Llama 3.1 70B", 80, 8192, 28672, 64, 128256, drop_layers=20),
    _base("Llama 3.1 405B", 126, 16384, 53248, 128, 128256, drop_layers=32),
)
"""Widths from their config.json files; about 1.5 times the layers, like SOLAR."""


class Rates(NamedTuple):
    """What was measured."""

    core_bytes_per_second: float
    axolotl_seconds: float
    import_seconds: float
    cached_seconds: float
    rank_seconds: float
    """How long a rank holds the lock to find the checkpoint: the slope over rounds that poll often."""
    long_wait_seconds: float
    """Until the last rank has polled again, after a long wait."""
    writer_bytes: float
    tensor_bytes: float

    @property
    def plugin_seconds(self) -> float:
        """What the plugin adds to every start-up."""
        return self.import_seconds + self.cached_seconds


def measured(bench: dict[str, Any], rounds: Sequence[HandOver]) -> Rates:
    """Medians from docs/bench.json, slope and median from docs/scale.json."""
    runs, startup = [Run(**run) for run in bench["runs"]], bench["startup"]
    largest = max(run.result_bytes for run in runs)
    writer = median(run.peak_bytes for run in select(runs, OURS, largest, "warm"))
    many = bench["many_tensors"]
    return Rates(
        core_bytes_per_second=copy_rate(runs),
        axolotl_seconds=median(wall for wall, _ in startup["runs"]["no plugin"]),
        import_seconds=median(run["import"][0] for run in startup["inside"]),
        cached_seconds=median(run["block"][0] for run in startup["inside"]),
        rank_seconds=seconds_of_a_rank(asking_every(POLL_SECONDS, rounds)),
        long_wait_seconds=median(one.seconds for one in asking_every(LONG_WAIT_POLL_SECONDS, rounds)),
        writer_bytes=writer,
        tensor_bytes=(many["peak_bytes"] - writer) / many["tensors"],
    )


def asking_every(seconds: float, rounds: Sequence[HandOver]) -> list[HandOver]:
    return [one for one in rounds if one.poll_seconds == seconds]


class Start(NamedTuple):
    """The start of a run on some number of nodes, in seconds and in bytes over the shared file system."""

    write_seconds: float
    hand_over_seconds: float
    load_seconds: float
    first_bytes: float
    later_bytes: float


def shared_cache(base: Base, nodes: int, rates: Rates) -> Start:
    """One rank writes for all nodes; every node reads the result."""
    write = estimated_seconds(base.result_bytes, rates.core_bytes_per_second, COPY_THREADS, SHARED)
    read = nodes * base.result_bytes
    hand_over = rates.long_wait_seconds + rates.rank_seconds * nodes * GPUS_OF_A_NODE
    load = base.result_bytes / _of_a_node(nodes)
    return Start(write, hand_over, load, 2 * base.result_bytes + read, read)


def node_caches(base: Base, nodes: int, rates: Rates) -> Start:
    """One rank of each node reads the base from the shared file system and writes to the local drive."""
    copying = base.result_bytes / (rates.core_bytes_per_second * COPY_THREADS)
    reading, writing = base.base_bytes / _of_a_node(nodes), base.result_bytes / LOCAL.bytes_per_second
    write = max(copying, reading, writing)
    hand_over = rates.long_wait_seconds + rates.rank_seconds * GPUS_OF_A_NODE
    return Start(write, hand_over, writing, nodes * base.base_bytes, 0)


def _of_a_node(nodes: int) -> float:
    """Bytes per second that each node gets when all nodes read at once."""
    return min(SHARED.bytes_per_second, SHARED_BYTES_PER_SECOND / nodes)


def start_table(rates: Rates) -> str:
    """One row per base and number of nodes; each cell: with a shared cache / with node-local caches."""
    lines = [
        "| base | nodes x 8 GPUs | write | load | first start | later starts | shared traffic: first | later |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for base in BASES:
        for nodes in NODES:
            starts = (shared_cache(base, nodes, rates), node_caches(base, nodes, rates))
            later = [rates.axolotl_seconds + rates.plugin_seconds + start.load_seconds for start in starts]
            first = [
                time + start.write_seconds + start.hand_over_seconds for time, start in zip(later, starts, strict=True)
            ]
            times = ([start.write_seconds for start in starts], [start.load_seconds for start in starts], first, later)
            traffic = ([start.first_bytes for start in starts], [start.later_bytes for start in starts])
            cells = [base.name, str(nodes), *map(_seconds, times), *(" / ".join(map(format_bytes, t)) for t in traffic)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _seconds(times: Sequence[float]) -> str:
    return " / ".join(f"{time:,.0f}" for time in times) + " s"


def size_table() -> str:
    lines = ["| base | layers | parameters | bytes | upscaled | parameters | bytes |", "|---|---|---|---|---|---|---|"]
    for base in BASES:
        before, after = base.decoder.num_layers, base.depth
        cells = [
            base.name, f"{before}", f"{base.parameters(before):,}", format_bytes(base.base_bytes),
            f"{after} (m = {base.drop_layers})", f"{base.parameters(after):,}", format_bytes(base.result_bytes),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory_of(base: Base, gpus: int) -> tuple[int, int]:
    """Bytes per GPU with ZeRO-3: the peak, and the part that is not sharded."""
    setup = TrainingSetup(gpus=gpus, shards=gpus, sharding="zero3", sequence_tokens=SEQUENCE_TOKENS)
    parts = memory_parts(base.model(), setup)
    divided = ("weights", "gradients", "master weights", "optimizer states", "optimizer step buffers")
    fixed = [part for part in parts if part.name not in divided]
    return max(peaks(parts).values()), max(peaks(fixed).values())


def memory_table() -> str:
    lines = [
        "| upscaled | " + " | ".join(f"{gpus:,}" for gpus in GPUS) + " | not sharded |",
        "|---|" + "---|" * len(GPUS) + "---|",
    ]
    for base in BASES:
        peak = [memory_of(base, gpus)[0] for gpus in GPUS]
        cells = [f"**{format_bytes(size)}**" if size <= 0.85 * GPU_BYTES else format_bytes(size) for size in peak]
        name = f"{base.name} -> {base.parameters(base.depth) / 1e9:,.1f}B"
        lines.append("| " + " | ".join([name, *cells, format_bytes(memory_of(base, GPUS[0])[1])]) + " |")
    return "\n".join(lines)


PAGE = (Path(__file__).parent / "scale_page.md").read_text(encoding="utf-8")


def page(bench: dict[str, Any], rounds: Sequence[HandOver]) -> str:
    """docs/scale.md."""
    rates = measured(bench, rounds)
    ranks = max(NODES) * GPUS_OF_A_NODE
    return PAGE.format(
        rates=rates,
        core_rate=rates.core_bytes_per_second / 1e9,
        threads=COPY_THREADS,
        milliseconds={
            name: 1000 * getattr(rates, f"{name}_seconds") for name in ("import", "cached", "plugin", "rank")
        },
        rounds=_rounds(asking_every(POLL_SECONDS, rounds)),
        long_rounds=_rounds(asking_every(LONG_WAIT_POLL_SECONDS, rounds)),
        first_poll=POLL_SECONDS,
        ranks=ranks,
        poll=LONG_WAIT_POLL_SECONDS,
        polls=ranks / LONG_WAIT_POLL_SECONDS,
        all_hand_over=rates.long_wait_seconds + rates.rank_seconds * ranks,
        writer=format_bytes(rates.writer_bytes),
        tensor=format_bytes(rates.tensor_bytes),
        shared_total=format_bytes(SHARED_BYTES_PER_SECOND),
        devices=f"{LOCAL.name}; {SHARED.name}",
        sizes=size_table(),
        starts=start_table(rates),
        memory=memory_table(),
        tokens=SEQUENCE_TOKENS,
        copying=BASES[-1].result_bytes / (rates.core_bytes_per_second * COPY_THREADS) / 60,
        largest=format_bytes(BASES[-1].result_bytes),
    )


def _rounds(rounds: Sequence[HandOver]) -> str:
    """The medians, such as ``8 in 0.15 s, 32 in 0.27 s``."""
    medians = {count: median(one.seconds for one in rounds if one.processes == count) for count in PROCESSES}
    return ", ".join(f"{count} in {seconds:.2f} s" for count, seconds in medians.items())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the hand-over again")
    options = parser.parse_args(arguments)
    if options.measure:
        folder = Path(tempfile.mkdtemp(prefix="solar-scale-"))
        try:
            found = [
                measure_hand_over(folder, processes, poll)._asdict()
                for poll in (POLL_SECONDS, LONG_WAIT_POLL_SECONDS)
                for _ in range(3)
                for processes in PROCESSES
            ]
        finally:
            shutil.rmtree(folder)
        (DOCS / "scale.json").write_text(json.dumps({"hand_over": found}, indent=1) + "\n", encoding="utf-8")
    (DOCS / "scale.md").write_text(page(*stored()), encoding="utf-8")


def stored() -> tuple[dict[str, Any], list[HandOver]]:
    """The measurements: docs/bench.json and docs/scale.json."""
    bench, scale = (json.loads((DOCS / name).read_text(encoding="utf-8")) for name in ("bench.json", "scale.json"))
    return bench, [HandOver(**one) for one in scale["hand_over"]]


if __name__ == "__main__":
    main()
