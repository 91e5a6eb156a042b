"""What a training run records about itself, so that it can be reproduced: `RECORD_FOLDER` in its output folder.

``run.json`` says on what it ran and what became of the rows of its datasets; ``steps-RANK.jsonl`` has the rows and the
loss of the first `RECORDED_STEPS` optimizer steps; ``log.json`` has what the Trainer logged, also where no checkpoint
keeps it. None of them contains a path.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from solar_plugins.data.row_tally import TOO_LONG, RowTally
from solar_plugins.errors import ArgsError
from solar_plugins.logs import logger
from solar_plugins.storage.atomic import write_file
from solar_plugins.versions import package_versions

LOG = logger("run_record")

RECORD_FOLDER = "solar_run"
RUN_FILE, LOG_FILE, STEPS_FILES = "run.json", "log.json", "steps-*.jsonl"
FORMAT = 1

RECORDED_STEPS = 100
"""Hashing a batch waits for the GPU, so later steps are not recorded."""

STOP_AFTER = "SOLAR_STOP_AFTER_STEPS"
"""Environment variable: end the training after this number of optimizer steps, with the schedule of the entire run."""


def record_run(trainer: Any, output_dir: str, tallies: Sequence[RowTally]) -> None:
    """Make a trainer record its run, and stop where `STOP_AFTER` says.

    Args:
        trainer: Axolotl's.
        output_dir: The recipe's.
        tallies: Of the datasets with our formatters.

    Raises:
        ArgsError: `STOP_AFTER` is not a number of steps.
    """
    recorder = _Recorder(trainer, Path(output_dir) / RECORD_FOLDER, tallies, _stop_after())
    trainer.training_step = recorder.training_step
    trainer.add_callback(_callback(recorder))


def _stop_after() -> int | None:
    text = os.environ.get(STOP_AFTER)
    if text is not None and not (text.isascii() and text.isdigit() and int(text)):
        raise ArgsError(f"{STOP_AFTER}={text!r:.50}; expected a number of optimizer steps, such as 10; or unset it")
    return int(text) if text else None


class _Recorder:
    """Records the run of one process. A run never fails because of its record; `share` says what is missing."""

    def __init__(self, trainer: Any, folder: Path, tallies: Sequence[RowTally], last: int | None) -> None:
        self.trainer, self.folder, self.tallies, self.last = trainer, folder, tallies, last
        self.train = trainer.training_step
        self.steps_file = folder / STEPS_FILES.replace("*", str(trainer.args.process_index))
        self.recorded_steps = RECORDED_STEPS
        self.rows: list[str] = []
        self.losses: list[Any] = []

    def training_step(self, model: Any, inputs: Any, *more: Any, **options: Any) -> Any:
        """The trainer's own, with the rows and the loss kept."""
        try:
            self.rows += row_hashes(inputs)
        except Exception as error:  # A batch of a kind that nobody has seen.
            LOG.warning("the rows of this run are not recorded (%s: %s)", type(error).__name__, error)
            self.trainer.training_step, self.recorded_steps = self.train, 0
        loss = self.train(model, inputs, *more, **options)
        self.losses.append(loss.detach())
        return loss

    def begin(self, state: Any) -> None:
        """A run that does not resume starts a new file of steps."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            if state.global_step == 0:
                self.steps_file.unlink(missing_ok=True)
        self._write(RUN_FILE, _facts(self.trainer, state, self.tallies))

    def end_step(self, state: Any) -> None:
        if state.global_step <= self.recorded_steps:
            rows, losses = self.rows, self.losses
            self.rows, self.losses = [], []
            loss = math.fsum(map(float, losses))
            entry = {"step": state.global_step, "rows": rows, "loss": loss if math.isfinite(loss) else None}
            with suppress(OSError), self.steps_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        if state.global_step >= self.recorded_steps:
            self.trainer.training_step = self.train

    def stop(self, state: Any, control: Any) -> None:
        if self._stops(state):
            control.should_training_stop = True

    def end_epoch(self, state: Any, control: Any) -> None:
        if self._stops(state):  # It is not the end of an epoch.
            control.should_save = control.should_evaluate = False

    def end(self, state: Any) -> None:
        log = {"global_step": state.global_step, "max_steps": state.max_steps, "log_history": state.log_history}
        self._write(LOG_FILE, log)

    def _stops(self, state: Any) -> bool:
        return self.last is not None and state.global_step >= self.last

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        if self.trainer.args.process_index == 0:
            with suppress(OSError):
                write_file(self.folder / name, (json.dumps(content, indent=1) + "\n").encode())


def _callback(recorder: _Recorder) -> Any:
    from transformers import TrainerCallback

    class RunRecord(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            with _only_warns():
                recorder.begin(state)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            with _only_warns():
                recorder.end_step(state)
            recorder.stop(state, control)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            recorder.end_epoch(state, control)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            with _only_warns():
                recorder.end(state)

    return RunRecord()


@contextmanager
def _only_warns() -> Iterator[None]:
    """A fault of the record must not end a training that may have run for days."""
    try:
        yield
    except Exception as error:
        LOG.warning("the record of this run is not complete (%s: %s)", type(error).__name__, error)


def _facts(trainer: Any, state: Any, tallies: Sequence[RowTally]) -> dict[str, Any]:
    import torch

    args = trainer.args

    def size(dataset: Any) -> int | None:
        try:
            return len(dataset)
        except TypeError:  # Streamed, or none.
            return None

    return {
        "format": FORMAT,
        "processes": args.world_size,
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type.upper(),
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "steps": state.max_steps,
        "batch_rows": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "seed": args.seed,
        "train_rows": size(trainer.train_dataset),
        "eval_rows": size(trainer.eval_dataset),
        "versions": package_versions(),
        "datasets": [
            {
                "key": tally.where.partition(" ")[0],  # The rest of ``where`` is a path.
                "formatter": tally.formatter,
                "rows": tally.rows_read,
                "rows_kept": tally.rows_kept,
                "examples": tally.examples,
                "truncated": tally.cut,
                "dropped": tally.bad | tally.nothing_to_learn | ({TOO_LONG: tally.too_long} if tally.too_long else {}),
            }
            for tally in tallies
        ],
    }


def row_hashes(batch: Mapping[str, Any]) -> list[str]:
    """A hash of each row of a batch: of its token ids, labels and masks. Padding does not count.

    Args:
        batch: What the collator gives: tensors by name, with a row for each example or packed sequence.
    """
    tensors = {name: value.cpu() for name, value in sorted(batch.items()) if _is_numbers(value)}
    masks = {
        name: value != 0 for name, value in tensors.items() if name.endswith("attention_mask") and value.dim() == 2
    }
    number = max((len(value) for value in tensors.values()), default=0)
    hashes = [hashlib.blake2b(digest_size=8) for _ in range(number)]
    for name, value in tensors.items():
        mask = masks.get(name.rpartition("input_ids")[0] + "attention_mask", next(iter(masks.values()), None))
        if len(value) != number:
            continue
        for row, found in enumerate(hashes):
            kept = value[row]
            if mask is not None and value.dim() >= 2 and value.shape[:2] == mask.shape:
                kept = kept[mask[row]]
            found.update(f"{name}{list(kept.shape)}".encode() + kept.long().numpy().tobytes())
    return [found.hexdigest() for found in hashes]


def _is_numbers(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and not value.is_floating_point() and value.dim() >= 1
