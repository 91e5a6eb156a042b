"""Tokenizing a dataset with `axolotl preprocess`: our formatters beside Axolotl's own `type: chat_template`.

Both get the same rows, tokenizer and template and write a prepared dataset, whose ids and labels are compared row by
row. The rows are made of sentences of the Python documentation, with the lengths that Alpaca and UltraChat have.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from processes import run_process
from startup import OFFLINE

from solar_plugins.data.template import template_text

OURS, AXOLOTL = "solar_plugins", "type: chat_template"
ALPACA, TURNS = "Alpaca-shaped", "multi-turn"
REPOSITORY = Path(__file__).parents[2]
SEQUENCE_LEN = 4096
type Row = dict[str, Any]


def sentences() -> list[str]:
    """Sentences of several words, white space and code blocks included."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics.values())
    return [part for part in re.split(r"(?<=[.:])\s+(?=[A-Z])", text) if 4 <= len(part.split()) <= 60]


def _text(chooser: random.Random, pool: Sequence[str], words: float) -> str:
    """Sentences until they have about so many words."""
    wanted, parts, found = chooser.expovariate(1 / words), list[str](), 0
    while found <= wanted:
        parts.append(chooser.choice(pool))
        found += len(parts[-1].split())
    return chooser.choice((" ", "\n")).join(parts)


def rows_of(kind: str, number: int) -> Iterator[Row]:
    """Rows as the dataset has them: Alpaca's columns, or messages of two to four turns, some with a system message."""
    chooser, pool = random.Random(0), sentences()
    for _ in range(number):
        if kind == ALPACA:
            extra = _text(chooser, pool, 15) if chooser.random() < 0.4 else ""
            yield {"instruction": _text(chooser, pool, 8), "input": extra, "output": _text(chooser, pool, 80)}
        else:
            messages = [{"role": "system", "content": _text(chooser, pool, 8)}] if chooser.random() < 0.3 else []
            for _ in range(chooser.randint(2, 4)):
                messages.append({"role": "user", "content": _text(chooser, pool, 25)})
                messages.append({"role": "assistant", "content": _text(chooser, pool, 80)})
            yield {"messages": messages}


def as_messages(row: Row) -> Row:
    """The row as Axolotl's strategy needs it."""
    if "messages" in row:
        return row
    asked = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]}


def make_base(folder: Path) -> None:
    """The config and the tokenizer of a model: Mistral 7B's, from the package mistral_common (Apache-2.0)."""
    from transformers import LlamaTokenizer

    folder.mkdir(parents=True)
    shutil.copy(str(files("mistral_common") / "data" / "tokenizer.model.v1"), folder / "tokenizer.model")
    LlamaTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral", "vocab_size": 32_000}))


def write_rows(folder: Path, kind: str, number: int) -> None:
    """The same rows for both tools."""
    folder.mkdir(parents=True)
    with (folder / "ours.jsonl").open("w") as ours, (folder / "axolotl.jsonl").open("w") as theirs:
        for row in rows_of(kind, number):
            ours.write(json.dumps(row) + "\n")
            theirs.write(json.dumps(as_messages(row)) + "\n")


def recipe(tool: str, kind: str, folder: Path, base: Path, processes: int) -> dict[str, Any]:
    """A recipe that asks both tools for the same examples: one per row, the loss on all answers."""
    mine = tool == OURS
    formatter = "alpaca" if kind == ALPACA else "messages"
    entry = {
        "path": str(folder / ("ours.jsonl" if mine else "axolotl.jsonl")),
        "ds_type": "json",
        "type": f"solar_plugins.{formatter}" if mine else "chat_template",
    }
    ours = {"plugins": ["solar_plugins.SolarPlugin"], "solar": {"data": {"examples_per": "conversation"}}}
    return {
        "base_model": str(base),
        "datasets": [entry],
        "dataset_prepared_path": str(folder / "prepared"),
        "dataset_num_proc": processes,
        "chat_template": "jinja",
        "chat_template_jinja": template_text(),
        "chat_template_kwargs": {"end_answers": True},
        "sequence_len": SEQUENCE_LEN,
        "seed": 42,
        "output_dir": str(folder / "out"),
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 1e-5,
        **(ours if mine else {}),
    }


TIMED = """
import json, os, sys, time
import axolotl.cli.preprocess as command

recipe, output, again = sys.argv[1], sys.argv[2], sys.argv[3] == "again"
load = command.do_preprocess


def timed(*arguments):
    begin, before = time.perf_counter(), os.times()
    load(*arguments)
    spent = [now - then for now, then in zip(os.times()[:4], before[:4])]
    with open(output, "w") as file:
        json.dump([time.perf_counter() - begin, sum(spent)], file)


def as_train_does(cfg, _):
    if not command.PluginManager.get_instance().load_datasets(cfg, preprocess=False):
        command.load_datasets(cfg=cfg)


if again:
    load = as_train_does
    timed(command.load_cfg(recipe), None)
else:
    command.do_preprocess = timed
    sys.argv[1:] = ["--no-download"]
    command.do_cli(recipe)
"""
"""`axolotl preprocess`, or what `axolotl train` does to find its result again, with the seconds and CPU seconds of the
work on the dataset in a file."""


class Preprocessed(NamedTuple):
    """The seconds and CPU seconds of the entire process, and of its work on the dataset alone."""

    seconds: float
    cpu_seconds: float
    loading_seconds: float
    loading_cpu_seconds: float


def preprocess(tool: str, kind: str, folder: Path, base: Path, processes: int, again: bool = False) -> Preprocessed:
    """Prepare the rows in ``folder``, or find the prepared dataset of the run before ``again``."""
    if not again:
        shutil.rmtree(folder / "prepared", ignore_errors=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)
    (folder / "recipe.yml").write_text(json.dumps(recipe(tool, kind, folder, base, processes)))
    mode = "again" if again else "prepare"
    command: list[str | Path] = [sys.executable, "-c", TIMED, folder / "recipe.yml", folder / "loading.json", mode]
    env = {**OFFLINE, "HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": str(REPOSITORY)}
    usage = run_process(command, folder / "log", cwd=folder, env=env)
    return Preprocessed(usage.seconds, usage.cpu_seconds, *json.loads((folder / "loading.json").read_text()))


def prepared_rows(folder: Path) -> Any:
    """The dataset that Axolotl would train on."""
    from datasets import load_from_disk

    (found,) = (path for path in (folder / "prepared").iterdir() if (path / "dataset_info.json").is_file())
    return load_from_disk(str(found))


def differing_rows(ours: Any, theirs: Any) -> int:
    """The number of rows whose ids or labels differ.

    Raises:
        RuntimeError: The datasets have different numbers of rows.
    """
    if len(ours) != len(theirs):
        raise RuntimeError(f"{len(ours)} rows, and {len(theirs)} of Axolotl's")
    pairs = zip(ours, theirs, strict=True)
    return sum((a["input_ids"], a["labels"]) != (b["input_ids"], b["labels"]) for a, b in pairs)


class Encoders(NamedTuple):
    """Functions from rows to ids and labels in one process, without reading and writing."""

    ours: Callable[[Sequence[Row]], dict[str, list[Any]]]
    axolotls: Callable[[Sequence[Row]], dict[str, list[Any]]]


def encoders(kind: str, base: Path) -> Encoders:
    """What both tools pass to `datasets.map`, for batches of rows."""
    from axolotl.prompt_strategies.chat_template import ChatTemplatePrompter, ChatTemplateStrategy
    from transformers import AutoTokenizer

    from solar_plugins.data.encoder import make_encoder
    from solar_plugins.data.formatters import sft_formatters
    from solar_plugins.data.prepared_datasets import TrainingRecords
    from solar_plugins.data.row_encoder import RowEncoder

    tokenizer = AutoTokenizer.from_pretrained(base)
    formatter = sft_formatters()["alpaca" if kind == ALPACA else "messages"]
    rows = RowEncoder(formatter, make_encoder(tokenizer, "the base"), SEQUENCE_LEN, whole_conversations=True)
    kwargs = {"end_answers": True}
    prompter = ChatTemplatePrompter(
        tokenizer, template_text(), max_length=SEQUENCE_LEN + 1, chat_template_kwargs=kwargs
    )
    strategy = ChatTemplateStrategy(
        prompter, tokenizer, train_on_inputs=False, sequence_len=SEQUENCE_LEN, roles_to_train=["assistant"],
        train_on_eos="turn",
    )  # fmt: skip
    read = TrainingRecords(rows).read_batch
    return Encoders(
        lambda batch: read({key: [row[key] for row in batch] for key in batch[0]}, list(range(len(batch)))),
        lambda batch: strategy.tokenize_prompt({"messages": [row["messages"] for row in batch]}),
    )
