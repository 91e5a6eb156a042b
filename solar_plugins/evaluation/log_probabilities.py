"""How likely a model holds answers to be: the quantity that DPO compares."""

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
        total: Sum over its tokens, the end-of-sequence token included, given the prompt: log pi(y | x) of DPO
            (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), in nats.
        tokens: How many these are.
    """

    total: float
    tokens: int

    @property
    def per_token(self) -> float:
        """The mean over the tokens, which does not favour short answers."""
        return self.total / self.tokens


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Places of texts of like length, so that each batch with its padding has at most ``batch_tokens`` tokens.

    A text that is longer than that has a batch of its own.

    >>> list(batches([2, 9, 3, 2], 9))
    [[1], [2, 0, 3]]
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def answer_scores(model: PreTrainedModel, answers: Sequence[Encoded], batch_tokens: int) -> list[AnswerScore]:
    """The scores of answers, in their order.

    Args:
        model: In evaluation mode.
        answers: Ids and labels; a label of zero or more marks a token of the answer. At least one token has one, and
            the first has none.
        batch_tokens: How many tokens, padding included, the model is given at once.
    """
    import torch

    scores: dict[int, AnswerScore] = {}
    with torch.inference_mode():
        for places in batches([len(answer.input_ids) for answer in answers], batch_tokens):
            batch = [answers[place] for place in places]
            longest = len(batch[0].input_ids)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, answer in enumerate(batch):
                ids[row, : len(answer.input_ids)] = torch.tensor(answer.input_ids)
                mask[row, : len(answer.input_ids)] = 1
            ids, mask = ids.to(model.device), mask.to(model.device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for row, place in enumerate(places):
                labels = torch.tensor(batch[row].labels)
                judged = (labels >= 0).nonzero().flatten()
                # One answer's logits at a time in float32; all of a batch would take several times the memory.
                likely = torch.log_softmax(logits[row, judged - 1].float(), dim=-1)
                picked = likely.gather(1, labels[judged].to(likely.device).unsqueeze(1))
                scores[place] = AnswerScore(picked.double().sum().item(), len(judged))
    return [scores[place] for place in range(len(answers))]


def pair_scores(
    model: PreTrainedModel, pairs: Sequence[EncodedPair], batch_tokens: int
) -> Iterator[tuple[EncodedPair, AnswerScore, AnswerScore]]:
    """Each pair, and the scores of its chosen and its rejected answer.

    Args:
        model: In evaluation mode.
        pairs: As for `answer_scores`.
        batch_tokens: How many tokens, padding included, the model is given at once.
    """
    tokens = [answer.tokens for pair in pairs for answer in (pair.chosen, pair.rejected)]
    scores = answer_scores(model, tokens, batch_tokens)
    for pair, (chosen, rejected) in zip(pairs, batched(scores, 2), strict=True):
        # Cut to the same tokens they are a tie; in two batches their sums may differ in the last digit.
        yield pair, chosen, chosen if pair.chosen.tokens == pair.rejected.tokens else rejected


def share_standard_error(preferred: int, pairs: int) -> float:
    """The standard error of the share ``preferred / pairs``.

    With two more pairs of either kind (Agresti and Coull 1998), so that 3 of 3 is not taken for certain.

    >>> round(share_standard_error(3, 3), 3)
    0.171
    """
    share = (preferred + 2) / (pairs + 4)
    return math.sqrt(share * (1 - share) / (pairs + 4))
