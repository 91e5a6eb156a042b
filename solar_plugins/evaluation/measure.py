"""What is measured of a model: its losses on held-out data, and how it goes on with a prompt. One model at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solar_plugins.data.encoder import Encoded
from solar_plugins.data.row_encoder import EncodedPair
from solar_plugins.evaluation.chat_measures import JudgedPairs, answers_loss, judged_pairs
from solar_plugins.evaluation.loss import Loss
from solar_plugins.evaluation.models import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """One model's figures.

    Args:
        name: ``base``, ``upscaled``, then ``trained`` or the names of the stages.
        num_layers: Its depth.
        num_parameters: Shared (tied) ones counted once.
        loss: On the held-out windows.
        continuations: Of the prompts, in their order.
        seconds: Loading included.
        answers: Its loss on held-out answers, where a stage names any.
        pairs: How it judges held-out pairs, where a stage names any.
    """

    name: str
    num_layers: int
    num_parameters: int
    loss: Loss
    continuations: tuple[str, ...]
    seconds: float
    answers: Loss | None = None
    pairs: JudgedPairs | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What is measured of every model, the same for all.

    Args:
        windows: `token_windows` of the held-out text.
        prompts: What the models go on with.
        tokenizer: For the prompts. Its end token ends what a model says.
        max_new_tokens: The longest continuation.
        answers: Held-out answers with their prompts.
        pairs: Held-out pairs.
        trust_remote_code: Whether code that comes with a checkpoint is run.
    """

    windows: Sequence[Sequence[int]]
    prompts: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    answers: Sequence[Encoded] = ()
    pairs: Sequence[EncodedPair] = ()
    trust_remote_code: bool = False


def token_windows(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], sequence_tokens: int, num_tokens: int
) -> list[list[int]]:
    """Windows of whole texts, in order and without overlap, until ``num_tokens`` tokens are there to be predicted.

    A text is cut every ``sequence_tokens`` tokens; no window holds parts of two texts, and none is padded. Where the
    tokenizer begins a text with a beginning-of-sequence token, every window begins with it.
    """
    start, windows, found = _start_tokens(tokenizer), list[list[int]](), 0
    step = sequence_tokens - len(start)
    for text in texts:
        tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for position in range(0, len(tokens), step):
            if found >= num_tokens:
                return windows
            window = start + tokens[position : position + step]
            if len(window) > 1:  # The first token has nothing that predicts it.
                windows.append(window)
                found += len(window) - 1
    return windows


def _start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    bos = tokenizer.bos_token_id
    begins: list[int] = tokenizer("a")["input_ids"][:1]
    return [bos] if bos is not None and begins == [bos] else []


def held_out_loss(model: PreTrainedModel, windows: Sequence[Sequence[int]], description: str = "held-out loss") -> Loss:
    """The next-token cross-entropy of a model on `token_windows`, the first token of each not counted.

    Args:
        model: In evaluation mode.
        windows: At least one; each of two tokens or more.
        description: What the progress bar says.
    """
    import torch
    from tqdm import tqdm

    nats = []
    with (
        torch.inference_mode(),
        tqdm(
            total=sum(len(window) - 1 for window in windows),
            desc=description,
            unit="tok",
            unit_scale=True,
            mininterval=0.5,
        ) as bar,
    ):
        for window in windows:
            tokens = torch.tensor([window], device=model.device)
            logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
            targets = tokens[0, 1:].to(logits.device)
            nats.append(torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item())
            bar.update(len(window) - 1)
    return Loss(tuple(nats), tuple(len(window) - 1 for window in windows))


def continuation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int) -> str:
    """How a model goes on with a prompt: always its likeliest token (greedy), without the prompt itself."""
    import torch

    tokens = _start_tokens(tokenizer) + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    inputs = torch.tensor([tokens], device=model.device)
    end = tokenizer.eos_token_id
    generate: Any = model.generate
    output = generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=end,
        pad_token_id=end or 0,
    )
    text = tokenizer.decode(output[0, len(tokens) :], skip_special_tokens=True)
    return text if isinstance(text, str) else text[0]


def measure_model(name: str, directory: Path, task: Task) -> MeasuredModel:
    """Load a checkpoint, measure it, and let go of it.

    Raises:
        CheckpointError: The checkpoint cannot be loaded whole.
    """
    from tqdm import tqdm

    start = time.monotonic()
    model = load_model(directory, trust_remote_code=task.trust_remote_code)
    loss = held_out_loss(model, task.windows, f"{name}: held-out loss")
    answers = answers_loss(model, task.answers, f"{name}: held-out answers") if task.answers else None
    pairs = judged_pairs(model, task.pairs, f"{name}: held-out pairs") if task.pairs else None
    bar = tqdm(task.prompts, desc=f"{name}: continuations", unit="prompt")
    continuations = tuple(continuation(model, task.tokenizer, prompt, task.max_new_tokens) for prompt in bar)
    return MeasuredModel(
        name=name,
        num_layers=int(model.config.get_text_config().num_hidden_layers),
        num_parameters=model.num_parameters(),
        loss=loss,
        continuations=continuations,
        seconds=time.monotonic() - start,
        answers=answers,
        pairs=pairs,
    )
