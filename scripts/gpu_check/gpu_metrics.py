"""Axolotl plugin for the GPU check that records a run's memory, seconds, tokens, losses and row order.

The recipes of the GPU check list it in ``plugins:``. It does not affect what is measured: it synchronizes with the GPU
at each step, as the Trainer also does to check for non-finite losses. ``GPU_CHECK_METRICS`` is the file that it writes,
and ``GPU_CHECK_LAUNCHED`` the start time of the process. With ``GPU_CHECK_HELD_OUT``, a folder written by gpu_texts.py,
the model is evaluated before the first step and every ``GPU_CHECK_EVAL_EVERY`` steps.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

WINDOW_TOKENS = 512


class MetricsPlugin(BasePlugin):
    def get_training_args(self, cfg):
        """Mixed precision where the weights are in fp32, which no key of Axolotl's asks for; without a GPU, the CPU."""
        autocast = {} if cfg.bf16 or cfg.fp16 else {"bf16": True}
        return autocast | ({} if torch.cuda.is_available() else {"use_cpu": True})

    def add_callbacks_post_trainer(self, cfg, trainer):
        return [Recorder(cfg, trainer)]


class Recorder(TrainerCallback):
    """Collect the metrics of a run, and write them when training ends."""

    def __init__(self, cfg, trainer):
        self.trainer, self.base_model = trainer, str(cfg.base_model)
        self.step_seconds: list[float] = []
        self.step_tokens: list[int] = []
        self.evaluations: list[dict[str, Any]] = []
        self.order, self.tokens = hashlib.sha256(), 0
        self.metrics: dict[str, Any] = {}
        self.mark = 0.0
        self._watch_batches()

    def _watch_batches(self):
        step = self.trainer.training_step

        def watched(model, inputs, *args, **kwargs):
            ids = inputs["input_ids"].cpu()
            self.order.update(ids.numpy().tobytes())
            # Padding is not counted.
            self.tokens += int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else ids.numel()
            return step(model, inputs, *args, **kwargs)

        self.trainer.training_step = watched

    def on_train_begin(self, args, state, control, **kwargs):
        self.metrics["load_peak"] = peak_memory()
        self._evaluate(0, "test.jsonl")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.mark = now()

    def on_step_begin(self, args, state, control, **kwargs):
        self.metrics.setdefault("startup_seconds", time.time() - float(os.environ["GPU_CHECK_LAUNCHED"]))

    def on_step_end(self, args, state, control, **kwargs):
        self._note_peak()
        self.step_seconds.append(now() - self.mark)
        self.step_tokens.append(self.tokens)
        every = int(os.environ.get("GPU_CHECK_EVAL_EVERY", "0"))
        if every and (state.global_step % every == 0 or state.global_step == state.max_steps):
            self._evaluate(state.global_step, "test.jsonl")
        self.mark = now()

    def on_train_end(self, args, state, control, **kwargs):
        self._note_peak()
        self._evaluate(state.global_step, "validation.jsonl")
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        metrics = self.metrics | {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            # The checkpoint's name without its private path.
            "base_model": Path(self.base_model).name,
            "mixed_precision": self.trainer.accelerator.mixed_precision,
            "num_layers": model.config.num_hidden_layers,
            "parameters": model.num_parameters(),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "four_bit_tensors": sum(type(parameter).__name__ == "Params4bit" for parameter in model.parameters()),
            "plugin_loaded": "solar_plugins" in sys.modules,
            "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "losses": [entry["loss"] for entry in state.log_history if "loss" in entry],
            "step_seconds": self.step_seconds,
            "step_tokens": self.step_tokens,
            "evaluations": self.evaluations,
        }
        Path(os.environ["GPU_CHECK_METRICS"]).write_text(json.dumps(metrics))

    def _note_peak(self):
        """Keep the highest peak of all steps: Axolotl resets torch's counter whenever it logs."""
        found, known = peak_memory(), self.metrics.get("train_peak") or {}
        self.metrics["train_peak"] = found and {key: max(value, known.get(key, 0)) for key, value in found.items()}

    def _evaluate(self, step: int, file: str) -> None:
        if "GPU_CHECK_HELD_OUT" not in os.environ:
            return
        begin, model = now(), self.trainer.model
        model.eval()
        documents = held_out_documents(model, self.trainer.processing_class, os.environ["GPU_CHECK_HELD_OUT"], file)
        model.train()
        self.evaluations.append(
            {
                "step": step,
                "tokens": self.tokens,
                "order_sha256": self.order.hexdigest(),
                "file": file,
                "seconds": now() - begin,
                "documents": documents,
            }
        )


def held_out_documents(model, tokenizer, folder: str, file: str) -> dict[str, dict[str, Any]]:
    """Summed cross-entropy in nats, and number of tokens, per held-out document."""
    from gpu_texts import read_rows

    from solar_plugins.evaluation.measure import held_out_loss, token_windows

    rows = read_rows(Path(folder) / file)
    windows = [token_windows(tokenizer, [row["text"]], WINDOW_TOKENS, sys.maxsize) for row in rows]
    loss = held_out_loss(model, [window for of_row in windows for window in of_row], file)
    owners = [row for row, of_row in zip(rows, windows, strict=True) for _ in of_row]
    documents: dict[str, dict[str, Any]] = {}
    for row, nats, tokens in zip(owners, loss.window_nats, loss.window_tokens, strict=True):
        found = documents.setdefault(row["document"], {"kind": row["kind"], "nats": 0.0, "tokens": 0})
        found["nats"] += nats
        found["tokens"] += tokens
    return documents


def now() -> float:
    """The time in seconds, after the GPU has finished its queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory() -> dict[str, int] | None:
    """Peak bytes allocated by tensors and reserved by the allocator since the last reset."""
    if not torch.cuda.is_available():
        return None
    return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
