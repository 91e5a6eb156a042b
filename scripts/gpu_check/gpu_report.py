"""The page of the GPU check, from the JSON files of its steps: tables, and what they show."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from gpu_curves import Run, best_rate, best_runs, crossing, curve, kinds, mean_curve, same_seeds
from study_arms import BASE, SOLAR

from solar_plugins.evaluation.loss import Difference, difference

Step = Mapping[str, Any]

PICTURE, PAGE, NOTES = "recovery.png", "gpu.md", "notes.txt"
GIGA = 1e9
HEAD = """\
# On a GPU

Written by `make gpu-check` (`scripts/gpu_check/`), which measured every number in the tables; raw metrics are in the
`.json` files next to this page.
"""
TINY_HEAD = """\
# Rehearsal of the GPU check

Written by `scripts/gpu_check/gpu_check.py --tiny`, with random models of a few million parameters. It only shows that
the check runs. **The numbers below say nothing about a real model or a GPU.**
"""


def write_report(output: Path) -> Path:
    """Write the page and the picture from the steps in a folder, and return the page's path."""
    steps = {name: json.loads((output / f"{name}.json").read_text())
             for name in SECTIONS if (output / f"{name}.json").is_file()}  # fmt: skip
    page = output / PAGE
    notes = output / NOTES
    page.write_text(page_text(steps, notes.read_text() if notes.is_file() else ""))
    if "recovery" in steps and _comparable(steps["recovery"]):
        from gpu_picture import draw_recovery  # loads matplotlib: only after everything is measured

        recovery = steps["recovery"]
        draw_recovery(list(recovery["runs"].values()), recovery["settings"]["seeds"], output / PICTURE)
    return page


def page_text(steps: Mapping[str, Step], notes: str = "") -> str:
    """The page in Markdown, with notes written by hand below its head."""
    tiny = any(step["settings"]["tiny"] for step in steps.values())
    parts = [TINY_HEAD if tiny else HEAD, *filter(None, [notes])]
    for name, step in steps.items():
        parts.append(SECTIONS[name](step))
        if step["failures"]:
            parts.append("\n".join(f"- **{run} failed**: {_one_line(text)}" for run, text in step["failures"].items()))
        if not step["finished"]:
            parts.append("This step is not complete.")
        parts.append(_conditions(step))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())[-300:]


def _conditions(step: Step) -> str:
    settings = step["settings"]
    devices = sorted({run["device"] for run in step["runs"].values() if "device" in run})
    packages = ", ".join(f"{name} {number}" for name, number in settings["packages"].items())
    driver = f", driver: {settings['driver']}" if settings["driver"] else ""
    return f"Device: {', '.join(devices) or 'none'}{driver}. Python {settings['python']}, {packages}."


def _table(head: str, rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def _gigabytes(num_bytes: float | None) -> str:
    return "not measured" if num_bytes is None else f"{num_bytes / GIGA:.2f} GB"


def upscale_section(step: Step) -> str:
    """Time of upscaling, and the result of loading."""
    lines = ["## Upscaling and loading", ""]
    written, loaded = step["runs"].get("upscale"), step["runs"].get("load")
    if written:
        lines.append(
            f"`solar upscale` wrote {_gigabytes(written['bytes'])} in {written['seconds']:.1f} s, "
            f"{written['bytes_per_second'] / GIGA:.2f} GB/s, with {written['host_peak_bytes'] / 1e6:.0f} MB of memory. "
            "The base is random, with the widths in the settings of `upscale.json`."
        )
    if loaded:
        lines.append(
            f"`AutoModelForCausalLM` loaded it in {loaded['load_seconds']:.1f} s as {', '.join(loaded['dtypes'])}: "
            f"{loaded['parameters']:,} parameters, {loaded['num_layers']} layers, no missing or unexpected keys or "
            "wrong shapes. The exact checksum of each layer is that of the base layer in the plan, and the logits of a "
            f"forward pass are finite. Peak GPU memory of loading and forward pass: "
            f"{_gigabytes(loaded['peak_bytes'])}."
        )
    return "\n".join(lines)


def _memory_rows(runs: Mapping[str, Run]) -> list[list[str]]:
    return [
        [
            name,
            f"{run['parameters']:,}",
            _gigabytes((run["train_peak"] or {}).get("allocated")),
            _gigabytes((run["train_peak"] or {}).get("reserved")),
            _gigabytes(run["estimate"]["peak_bytes"]),
            f"{run['measured_over_estimated']:.2f}" if run["measured_over_estimated"] else "",
            _gigabytes((run["load_peak"] or {}).get("allocated")),
        ]
        for name, run in runs.items()
    ]


MEMORY_HEAD = (
    "| setup | parameters | peak, allocated | peak, reserved | `solar plan --memory` | allocated / estimate "
    "| peak while loading |"
)


def qlora_section(step: Step) -> str:
    """Losses and memory of QLoRA."""
    said = [
        f"Axolotl loaded the upscaled checkpoint with {run['four_bit_tensors']} tensors in 4 bits and trained "
        f"adapters over it; the losses of its steps were {', '.join(f'{loss:.3f}' for loss in run['losses'])}."
        for run in step["runs"].values()
    ]
    return "\n".join([
        "## QLoRA",
        "",
        *said,
        "",
        _table(MEMORY_HEAD, _memory_rows(step["runs"])),
    ])  # fmt: skip


def memory_section(step: Step) -> str:
    """Measured peaks against the estimates."""
    return "\n".join([
        "## Memory: measured and estimated",
        "",
        _table(MEMORY_HEAD, _memory_rows(step["runs"])),
        "",
        "Allocated: peak of the tensors in training. Reserved: peak of torch's allocator. None of them, nor the "
        "estimate, includes the CUDA context.",
    ])  # fmt: skip


def throughput_section(step: Step) -> str:
    """With and without the plugin, and the range of each."""
    rows = []
    for way in ("with", "without"):
        runs = [run for name, run in step["runs"].items() if name.rpartition(" ")[0] == way]
        if runs:
            rows.append([
                f"{way} the plugin",
                str(len(runs)),
                _spread([run["tokens_per_second"] for run in runs], ",.0f"),
                _spread([run["startup_seconds"] for run in runs], ".1f"),
            ])  # fmt: skip
    settings, gap = step["settings"], _largest_gap(step["runs"].values())
    same = f" The losses of single steps differ by at most {gap:.1g} between all runs." if gap is not None else ""
    head = "| Axolotl | runs | tokens per second | seconds from start to first step |"
    return "\n".join([
        "## Throughput",
        "",
        _table(head, rows),
        "",
        f"Median (min to max), alternating runs. {settings['batch']} x {settings['sequence_tokens']} tokens per step, "
        f"{settings['throughput_steps']} steps without the first {settings['warm_up_steps']}. The upscaled checkpoint "
        "and the tokens are cached. Without the plugin, its entry point is hidden, and the upscaled checkpoint is the "
        f"base_model.{same}",
    ])  # fmt: skip


def _largest_gap(runs: Iterable[Run]) -> float | None:
    """The largest difference of a step's loss between runs; None for a single run."""
    losses = [run["losses"] for run in runs]
    return max(max(of_step) - min(of_step) for of_step in zip(*losses, strict=True)) if len(losses) > 1 else None


def _spread(values: Sequence[float], form: str) -> str:
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _comparable(step: Step) -> bool:
    """Whether the base and another arm were trained with the first seed."""
    best = best_runs(list(step["runs"].values()), step["settings"]["seeds"])
    return BASE in best and len(best) > 1


def recovery_section(step: Step) -> str:
    """Each arm at its best rate against the base and DUS, then every run."""
    runs, seeds, settings = list(step["runs"].values()), step["settings"]["seeds"], step["settings"]
    names = kinds(runs[0]) if runs else []
    head = "| arm | learning rate | seed | training tokens | loss before | loss after |"
    head += "".join(f" after: {name} |" for name in names)
    every = [
        [
            run["arm"],
            f"{run['learning_rate']:.0e}",
            str(run["seed"]),
            f"{run['step_tokens'][-1]:,}",
            *(f"{curve(run)[index].loss.nats_per_token:.3f}" for index in (0, -1)),
            *(f"{curve(run, kind)[-1].loss.nats_per_token:.3f}" for kind in names),
        ]
        for run in runs
    ]
    picture = f"![Held-out loss of each arm over training tokens, and its difference from the base]({PICTURE})\n\n"
    lines = [
        "## Recovery",
        "",
        (picture if _comparable(step) else "") + _table(ARMS_HEAD, _arm_rows(runs, seeds)),
        "",
        "The arms are those of [the study](../study.md). All saw the same tokens in the same order with the same "
        "schedule (a hash of the batches is compared), "
        f"{settings['recovery_batch']} x {settings['sequence_tokens']} tokens per step; *equal compute* means more "
        "steps, by the ratio of the parameters of DUS and the base. Losses are in nats per token on held-out documents "
        "that were used neither for training nor for choosing settings; each arm's learning rate was chosen on other "
        "held-out documents, with the first seed. Differences are paired on documents, over the seeds that both arms "
        "have; ± is one standard error over documents. *Below the base from*: the tokens after which the loss stays "
        "below that of the base trained on as many tokens. In the picture each arm has its best rate and the mean of "
        "its seeds; bands are two standard errors.",
        "",
        "Every run:",
        "",
        _table(head, every),
    ]
    return "\n".join(lines)


ARMS_HEAD = (
    "| arm | layers | parameters, trained | learning rate (tried) | loss before | loss after, by seed | "
    "vs. base, equal tokens | vs. DUS | below the base from |"
)


def _arm_rows(runs: Sequence[Run], seeds: Sequence[int]) -> list[list[str]]:
    best, rows = best_runs(runs, seeds), []
    for arm, by_seed in best.items():
        rate, run = best_rate(runs, arm, seeds[0]), by_seed[seeds[0]]
        assert rate is not None
        tried = ", ".join(f"{value:.0e}" for value in rate.tried)
        rows.append([
            arm,
            str(run["num_layers"]),
            f"{run['parameters'] / 1e6:.0f} M, {run['trained_parameters'] / 1e6:.0f} M",
            f"{rate.value:.0e} ({tried})",
            f"{curve(run)[0].loss.nats_per_token:.3f}",
            ", ".join(f"{curve(run)[-1].loss.nats_per_token:.3f}" for run in by_seed.values()),
            *(_over(by_seed, best[other]) if arm != other and other in best else "" for other in (BASE, SOLAR)),
            _passed(by_seed, best[BASE]) if arm != BASE and BASE in best else "",
        ])  # fmt: skip
    return rows


def _over(runs: Mapping[int, Run], others: Mapping[int, Run]) -> str:
    """The final loss of an arm minus another's."""
    seeds = same_seeds(runs, others)
    return signed(difference(mean_curve(runs, seeds)[-1].loss, mean_curve(others, seeds)[-1].loss))


def signed(found: Difference) -> str:
    """A difference with its error, for example ``+0.123 ± 0.004``."""
    error = f" ± {found.standard_error:.3f}" if found.standard_error is not None else ""
    return f"{found.nats_per_token:+.3f}{error}"


def _passed(runs: Mapping[int, Run], base: Mapping[int, Run]) -> str:
    """From when on the arm is below the base; empty if their tokens differ."""
    seeds = same_seeds(runs, base)
    points, reference = mean_curve(runs, seeds), mean_curve(base, seeds)
    if [point.tokens for point in points] != [point.tokens for point in reference]:
        return ""
    tokens = crossing(reference, points)
    return "never" if tokens is None else f"{tokens / 1e6:.2f} M tokens"


SECTIONS: dict[str, Callable[[Step], str]] = {
    "upscale": upscale_section,
    "qlora": qlora_section,
    "memory": memory_section,
    "throughput": throughput_section,
    "recovery": recovery_section,
}
