"""`solar sdpo-order`, the loss of `solar report`, and `solar probe`, each beside a plain loop over the same rows.

    python scripts/benchmarks/stage_models.py MODEL FOLDER OUTPUT.jsonl [--rounds 1]

MODEL is a Llama; slices with a few of its layers are written into FOLDER. Each plain loop is what a user of
transformers would write: batches of the same number of tokens, sorted by length and padded, the same dtype and threads,
log-probabilities in float32. In each round the two run in random order in one process, without the loading of the
model. Their results are compared.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from stage_rows import sentences
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from solar_plugins.data.encoder import make_encoder
from solar_plugins.data.row_encoder import RowEncoder
from solar_plugins.data.template import template_text
from solar_plugins.evaluation.log_probabilities import batches
from solar_plugins.evaluation.measure import held_out_loss, token_windows
from solar_plugins.evaluation.models import load_model
from solar_plugins.evaluation.probe.candidates import every_repeat
from solar_plugins.evaluation.probe.probe import Probe, Settings
from solar_plugins.evaluation.sdpo_order import _evaluated, find_file
from solar_plugins.upscaling.base_model import find_base

OURS, PLAIN = "solar_plugins", "plain loop"
SDPO, REPORT, PROBE = "solar sdpo-order", "solar report, held-out loss", "solar probe"
LAYERS = 4
BATCH_TOKENS, MAX_LENGTH, WINDOW = 4096, 1024, 256
PAIRS, TOKENS, DEPTHS = (8, 16, 32), (1024, 2048, 4096), (5, 8, 12)
PROBE_DOCUMENTS, PROBE_LENGTH, PROBE_BATCH_TOKENS, SAMPLED_PLANS = 9, 64, 2048, 8


def write_slice(model: Path, folder: Path, layers: int) -> Path:
    """The model's first layers, as a checkpoint."""
    path = folder / f"layers-{layers}"
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    whole.model.layers = whole.model.layers[:layers]
    whole.config.num_hidden_layers = layers
    whole.save_pretrained(path)
    AutoTokenizer.from_pretrained(model).save_pretrained(path)
    return path


def text(chooser: random.Random, pool: Sequence[str], count: int) -> str:
    return " ".join(chooser.choice(pool) for _ in range(count))


def write_pairs(path: Path, number: int) -> None:
    chooser, pool = random.Random(0), sentences()
    with path.open("w") as file:
        for _ in range(number):
            prompt, *answers = (text(chooser, pool, chooser.randint(1, 4)) for _ in range(3))
            file.write(json.dumps({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}) + "\n")


def write_texts(path: Path, number: int) -> None:
    chooser, pool = random.Random(1), sentences()
    path.write_text("".join(json.dumps({"text": text(chooser, pool, 40)}) + "\n" for _ in range(number)))


def plain_preferences(model: Any, tokenizer: Any, path: Path) -> int:
    """In how many pairs of a file the model prefers the chosen answer."""
    texts, starts = [], []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        messages = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(
            messages, chat_template=template_text(), tokenize=False, add_generation_prompt=True
        )
        for answer in (row["chosen"], row["rejected"]):
            texts.append(tokenizer(prompt + answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"])
            starts.append(len(tokenizer(prompt, add_special_tokens=False)["input_ids"]))
    totals = [0.0] * len(texts)
    with torch.inference_mode():
        for indices in batches(list(map(len, texts)), BATCH_TOKENS):
            padded = tokenizer.pad({"input_ids": [texts[index] for index in indices]}, return_tensors="pt")
            ids, mask = padded["input_ids"], padded["attention_mask"]
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
            picked = logits.gather(2, ids[:, 1:, None]).squeeze(2) - logits.logsumexp(2)
            for row, index in enumerate(indices):
                totals[index] = picked[row, starts[index] - 1 : len(texts[index]) - 1].sum().item()
    return sum(chosen > rejected for chosen, rejected in zip(totals[::2], totals[1::2], strict=True))


def plain_loss(model: Any, windows: Sequence[Sequence[int]]) -> float:
    """Nats per token of windows that are evaluated one by one, as `solar report` does."""
    nats = tokens = 0.0
    with torch.inference_mode():
        for window in windows:
            ids = torch.tensor([window])
            nats += model(input_ids=ids, labels=ids, use_cache=False).loss.item() * (len(window) - 1)
            tokens += len(window) - 1
    return nats / tokens


def plain_probe(model: Any, probe: Probe, places: Sequence[int]) -> dict[int, float]:
    """Nats per token of some plans on the documents of the race, each as a full model in padded batches."""
    layers, found = list(model.model.layers), {}
    texts = [document.ids for document in probe.documents.race]
    with torch.inference_mode():
        for place in places:
            sources = [layer.source for layer in probe.candidates[place].plan.layers]
            model.model.layers = nn.ModuleList([layers[source] for source in sources])
            model.config.num_hidden_layers = len(sources)
            nats = 0.0
            for indices in batches(list(map(len, texts)), PROBE_BATCH_TOKENS):
                longest = max(len(texts[index]) for index in indices)
                rows = [[*texts[index], *[0] * (longest - len(texts[index]))] for index in indices]
                ids = torch.tensor(rows)
                mask = torch.tensor([[n < len(texts[index]) for n in range(longest)] for index in indices])
                logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[:, :-1].float()
                picked = logits.gather(2, ids[:, 1:, None]).squeeze(2) - logits.logsumexp(2)
                nats -= picked[mask[:, 1:]].sum().item()
            found[place] = nats / sum(len(one) - 1 for one in texts)
    return found


class Recorder:
    """Times tools in random order, and appends each run to a file."""

    def __init__(self, output: Path) -> None:
        self.output = output

    def compare(
        self, subject: str, size: float, number: int, units: float, tools: dict[str, tuple[Callable[[], Any], float]]
    ) -> dict[str, Any]:
        """Run each tool once; ``units`` are what all of them process, and a tool's factor scales its time to that."""
        results = {}
        for tool in random.sample(list(tools), len(tools)):
            run, factor = tools[tool]
            begin, before = time.perf_counter(), sum(os.times()[:2])
            results[tool] = run()
            seconds, cpu_seconds = time.perf_counter() - begin, sum(os.times()[:2]) - before
            line = {
                "subject": subject,
                "tool": tool,
                "size": size,
                "round": number,
                "units": units,
                "seconds": seconds * factor,
                "cpu_seconds": cpu_seconds * factor,
            }
            with self.output.open("a") as file:
                file.write(json.dumps(line) + "\n")
        return results


def measure_sdpo(recorder: Recorder, directory: Path, folder: Path, number: int, sizes: Sequence[int]) -> None:
    model, tokenizer = load_model(directory), AutoTokenizer.from_pretrained(directory)
    encoder = make_encoder(tokenizer, "the model")
    for size in sizes:
        path = folder / f"pairs-{size}.jsonl"
        write_pairs(path, size)
        file = find_file(path, None)
        rows = RowEncoder(file.formatter, encoder, MAX_LENGTH, truncate=True)
        pairs = [rows.pair(json.loads(line), index) for index, line in enumerate(path.read_text().splitlines())]
        tokens = sum(len(one.tokens.input_ids) for pair in pairs for one in (pair.chosen, pair.rejected))
        every = frozenset(range(size))
        found = recorder.compare(SDPO, size, number, tokens, {
            OURS: (partial(_evaluated, model, rows, file, every, BATCH_TOKENS), 1),
            PLAIN: (partial(plain_preferences, model, tokenizer, path), 1),
        })  # fmt: skip
        if found[OURS].preferred != found[PLAIN]:
            raise RuntimeError(f"{SDPO}: {found[OURS].preferred} pairs, and {found[PLAIN]} with the plain loop")


def measure_report(recorder: Recorder, directory: Path, folder: Path, number: int, sizes: Sequence[int]) -> None:
    model, tokenizer = load_model(directory), AutoTokenizer.from_pretrained(directory)
    write_texts(folder / "held-out.jsonl", 12)
    texts = [json.loads(line)["text"] for line in (folder / "held-out.jsonl").read_text().splitlines()]
    for size in sizes:
        windows = token_windows(tokenizer, texts, WINDOW, size)
        found = recorder.compare(REPORT, size, number, sum(len(window) - 1 for window in windows), {
            OURS: (partial(held_out_loss, model, windows), 1),
            PLAIN: (partial(plain_loss, model, windows), 1),
        })  # fmt: skip
        if abs(found[OURS].nats_per_token - found[PLAIN]) > 1e-4:
            raise RuntimeError(f"{REPORT}: {found[OURS].nats_per_token}, and {found[PLAIN]} with the plain loop")


def measure_probe(recorder: Recorder, model: Path, folder: Path, number: int, sizes: Sequence[int]) -> None:
    write_texts(folder / "texts.jsonl", PROBE_DOCUMENTS)
    for size in sizes:
        directory = folder / f"layers-{size}"
        if not directory.exists():
            write_slice(model, folder, size)
        candidates = every_repeat(size)
        settings = Settings(PROBE_LENGTH, None, 2_000_000_000, None)
        probe = Probe(find_base(str(directory)), candidates, [folder / "texts.jsonl"], settings)
        sampled = sorted(random.Random(number).sample(range(len(candidates)), SAMPLED_PLANS))
        layers = [len(one.plan) for one in candidates]
        factor = sum(layers) / sum(layers[place] for place in sampled)
        loaded, record = load_model(directory), folder / "record.jsonl"
        record.unlink(missing_ok=True)
        tokens = len(candidates) * sum(document.predicted for document in probe.documents.race)
        found = recorder.compare(PROBE, size, number, tokens, {
            OURS: (partial(probe.run, record), 1),
            PLAIN: (partial(plain_probe, loaded, probe, sampled), factor),
        })  # fmt: skip
        for place, loss in found[PLAIN].items():
            ours = found[OURS].plans[place].loss
            if len(ours.window_nats) == len(probe.documents.race) and abs(ours.nats_per_token - loss) > 1e-4:
                raise RuntimeError(f"{PROBE}: {ours.nats_per_token}, and {loss} with the plain loop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--largest", type=int, default=3, help="how many of the three sizes to measure")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    options.folder.mkdir(parents=True, exist_ok=True)
    directory, recorder = write_slice(options.model, options.folder, LAYERS), Recorder(options.output)
    for number in range(options.rounds):
        measure_sdpo(recorder, directory, options.folder, number, PAIRS[: options.largest])
        measure_report(recorder, directory, options.folder, number, TOKENS[: options.largest])
        measure_probe(recorder, options.model, options.folder, number, DEPTHS[: options.largest])


if __name__ == "__main__":
    main()
