"""Measures a model: losses on held-out data, log-probabilities of preference pairs, and sample continuations."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solar_plugins.data.encoder import Encoded
from solar_plugins.data.row_encoder import EncodedPair
from solar_plugins.evaluation.log_probabilities import answer_scores, pair_scores
from solar_plugins.evaluation.loss import Loss
from solar_plugins.evaluation.models import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """The metrics of one model.

    Args:
        name: ``base``, ``upscaled``, then ``trained`` or the names of the stages.
        num_layers: Its depth.
        num_parameters: Tied parameters count once.
        loss: On the held-out windows.
        continuations: Of the prompts, in order.
        seconds: Including loading.
        answers: Its loss on the eval responses, if a stage has any.
        pairs: Its log-probabilities of the eval pairs, if a stage has any.
    """

    name: str
    num_layers: int
    num_parameters: int
    loss: Loss
    continuations: tuple[str, ...]
    seconds: float
    answers: Loss | None = None
    pairs: PairLogProbs | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What is measured of every model, the same for all.

    Args:
        windows: `token_windows` of the held-out text.
        prompts: The prompts to continue.
        tokenizer: For the prompts. Generation stops at its EOS token.
        max_new_tokens: Maximum length of a continuation.
        answers: Eval responses with their prompts.
        pairs: Eval pairs.
        trust_remote_code: Whether to run code that comes with a checkpoint.
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
    """Consecutive windows of the texts, without overlap, until they have ``num_tokens`` tokens to predict.

    A text is split every ``sequence_tokens`` tokens; no window contains parts of two texts, and none is padded. If the
    tokenizer adds BOS, every window starts with it.
    """
    start, windows, found = _start_tokens(tokenizer), list[list[int]](), 0
    step = sequence_tokens - len(start)
    for text in texts:
        tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for position in range(0, len(tokens), step):
            if found >= num_tokens:
                return windows
            window = start + tokens[position : position + step]
            if len(window) > 1:  # The first token is not predicted.
                windows.append(window)
                found += len(window) - 1
    return windows


def _start_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    bos = tokenizer.bos_token_id
    begins: list[int] = tokenizer("a")["input_ids"][:1]
    return [bos] if bos is not None and begins == [bos] else []


def held_out_loss(model: PreTrainedModel, windows: Sequence[Sequence[int]], description: str = "held-out loss") -> Loss:
    """The next-token cross-entropy on `token_windows`, without the first token of each.

    Args:
        model: In eval mode.
        windows: At least one; each of two tokens or more.
        description: For the progress bar.
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
    """The greedy continuation of a prompt, without the prompt."""
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
    """Load a checkpoint, measure it, and free it.

    Raises:
        CheckpointError: The checkpoint cannot be loaded completely.
    """
    from tqdm import tqdm

    start = time.monotonic()
    model = load_model(directory, trust_remote_code=task.trust_remote_code)
    loss = held_out_loss(model, task.windows, f"{name}: held-out loss")
    answers = answers_loss(model, task.answers, f"{name}: eval responses") if task.answers else None
    pairs = pair_log_probs(model, task.pairs, f"{name}: eval pairs") if task.pairs else None
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


AT_ONCE = 16
"""Answers that are batched by length together, for each update of the progress bar."""
BATCH_TOKENS = 2048
"""Maximum tokens per batch. With a vocabulary of 128,000, the logits take 1 GB in float32."""


@dataclass(frozen=True, slots=True)
class PairLogProbs:
    """The log-probabilities of preference pairs under a model.

    Args:
        chosen: Of each chosen answer given its prompt, EOS included, in nats.
        rejected: The same of each rejected answer.
    """

    chosen: tuple[float, ...]
    rejected: tuple[float, ...]

    @property
    def is_finite(self) -> bool:
        """Whether all log-probabilities are finite."""
        return all(map(math.isfinite, self.chosen + self.rejected))

    @property
    def margins(self) -> tuple[float, ...]:
        """Of each pair, the log-probability of the chosen answer minus that of the rejected one."""
        return tuple(chosen - rejected for chosen, rejected in zip(self.chosen, self.rejected, strict=True))

    @property
    def num_preferred(self) -> int | None:
        """The number of pairs whose chosen answer has the higher log-probability; None if one is not finite."""
        return sum(margin > 0 for margin in self.margins) if self.is_finite else None

    def num_rewarded(self, reference: PairLogProbs) -> int | None:
        """The number of pairs with a positive reward margin; divided by all pairs, DPO's reward accuracy.

        Args:
            reference: The log-probabilities of the same pairs under the reference model.

        Returns:
            None if a log-probability of either is not finite.
        """
        if not (self.is_finite and reference.is_finite):
            return None
        return sum(margin > before for margin, before in zip(self.margins, reference.margins, strict=True))


def answers_loss(model: PreTrainedModel, answers: Sequence[Encoded], description: str = "eval responses") -> Loss:
    """The cross-entropy of answers and EOS given the prompts: the loss of instruction tuning.

    Args:
        model: In eval mode.
        answers: At least one; the loss covers tokens with a label of zero or more.
        description: For the progress bar.
    """
    from tqdm import tqdm

    scores = []
    with tqdm(total=len(answers), desc=description, unit="answer", mininterval=0.5) as bar:
        for chunk in batched(answers, AT_ONCE):
            scores += answer_scores(model, chunk, BATCH_TOKENS)
            bar.update(len(chunk))
    return Loss(tuple(-score.total for score in scores), tuple(score.tokens for score in scores))


def pair_log_probs(
    model: PreTrainedModel, pairs: Sequence[EncodedPair], description: str = "eval pairs"
) -> PairLogProbs:
    """The log-probabilities of both answers of each pair.

    Args:
        model: In eval mode.
        pairs: At least one.
        description: For the progress bar.
    """
    from tqdm import tqdm

    chosen, rejected = list[float](), list[float]()
    with tqdm(total=len(pairs), desc=description, unit="pair", mininterval=0.5) as bar:
        for chunk in batched(pairs, AT_ONCE):
            for _, winner, loser in pair_scores(model, chunk, BATCH_TOKENS):
                chosen.append(winner.total)
                rejected.append(loser.total)
            bar.update(len(chunk))
    return PairLogProbs(tuple(chosen), tuple(rejected))
