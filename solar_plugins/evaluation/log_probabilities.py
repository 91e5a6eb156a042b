"""Log-probabilities of answers under a model: the quantity that DPO compares."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import batched
from typing import TYPE_CHECKING, NamedTuple

from solar_plugins.data.encoder import Encoded
from solar_plugins.data.row_encoder import EncodedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AnswerScore(NamedTuple):
    """The log-probability of an answer.

    Args:
        total: Sum over its tokens, EOS included, given the prompt: log pi(y | x) of DPO
            (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), in nats.
        tokens: Number of these tokens.
    """

    total: float
    tokens: int

    @property
    def per_token(self) -> float:
        """The mean over the tokens, which does not favor short answers."""
        return self.total / self.tokens


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of texts of similar length, in batches of at most ``batch_tokens`` tokens, padding included.

    A text that is longer than that gets a batch of its own.

    >>> list(batches([2, 9, 3, 2], 9))
    [[1], [2, 0, 3]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def answer_scores(model: PreTrainedModel, answers: Sequence[Encoded], batch_tokens: int) -> list[AnswerScore]:
    """The scores of answers, in order.

    Args:
        model: In eval mode.
        answers: Ids and labels; labels of zero or more mark the answer. At least one token has one, but not the first.
        batch_tokens: Maximum tokens per batch, padding included.
    """
    import torch

    scores: dict[int, AnswerScore] = {}
    with torch.inference_mode():
        for indices in batches([len(answer.input_ids) for answer in answers], batch_tokens):
            batch = [answers[index] for index in indices]
            longest = len(batch[0].input_ids)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, answer in enumerate(batch):
                ids[row, : len(answer.input_ids)] = torch.tensor(answer.input_ids)
                mask[row, : len(answer.input_ids)] = 1
            ids, mask = ids.to(model.device), mask.to(model.device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for row, index in enumerate(indices):
                labels = torch.tensor(batch[row].labels)
                targets = (labels >= 0).nonzero().flatten()
                # Only one answer's logits in float32 at a time; the entire batch would need several times the memory.
                log_probs = torch.log_softmax(logits[row, targets - 1].float(), dim=-1)
                picked = log_probs.gather(1, labels[targets].to(log_probs.device).unsqueeze(1))
                scores[index] = AnswerScore(picked.double().sum().item(), len(targets))
    return [scores[index] for index in range(len(answers))]


def pair_scores(
    model: PreTrainedModel, pairs: Sequence[EncodedPair], batch_tokens: int
) -> Iterator[tuple[EncodedPair, AnswerScore, AnswerScore]]:
    """Each pair, and the scores of its chosen and its rejected answer.

    Args:
        model: In eval mode.
        pairs: Encoded as for `answer_scores`.
        batch_tokens: Maximum tokens per batch, padding included.
    """
    tokens = [answer.tokens for pair in pairs for answer in (pair.chosen, pair.rejected)]
    scores = answer_scores(model, tokens, batch_tokens)
    for pair, (chosen, rejected) in zip(pairs, batched(scores, 2), strict=True):
        # Answers that are truncated to the same tokens are a tie; in two batches their sums may differ by rounding.
        yield pair, chosen, chosen if pair.chosen.tokens == pair.rejected.tokens else rejected


def share_standard_error(preferred: int, pairs: int) -> float:
    """The standard error of the share ``preferred / pairs``.

    Computed with two more pairs of either kind (Agresti and Coull 1998), so that 3 of 3 is not treated as certain.

    >>> round(share_standard_error(3, 3), 3)
    0.171
    """
    share = (preferred + 2) / (pairs + 4)
    return math.sqrt(share * (1 - share) / (pairs + 4))
