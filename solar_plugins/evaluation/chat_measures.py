"""What is measured of a model on answers: their loss, and which of two it holds to be likelier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import batched
from typing import TYPE_CHECKING

from solar_plugins.data.encoder import Encoded
from solar_plugins.data.row_encoder import EncodedPair
from solar_plugins.evaluation.log_probabilities import answer_scores, pair_scores
from solar_plugins.evaluation.loss import Loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AT_ONCE = 16
"""Answers that are sorted by length together; the bar moves as often."""
BATCH_TOKENS = 2048
"""Tokens that a model is given at once. With 128,000 words their logits take 1 GB in float32."""


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """How a model judges pairs of answers.

    Args:
        chosen: The log-probability of each chosen answer given its prompt, end token included, in nats.
        rejected: That of each rejected answer.
    """

    chosen: tuple[float, ...]
    rejected: tuple[float, ...]

    @property
    def preferred(self) -> int:
        """Pairs whose chosen answer has the higher log-probability."""
        return sum(chosen > rejected for chosen, rejected in zip(self.chosen, self.rejected, strict=True))

    @property
    def is_finite(self) -> bool:
        """Whether all of them are finite numbers."""
        return all(map(math.isfinite, self.chosen + self.rejected))

    def gained_on(self, reference: JudgedPairs) -> int:
        """Pairs whose chosen answer gained more over a reference than the rejected one: DPO's reward accuracy.

        Args:
            reference: How another model judges the same pairs.
        """
        margins = [chosen - rejected for chosen, rejected in zip(self.chosen, self.rejected, strict=True)]
        before = [chosen - rejected for chosen, rejected in zip(reference.chosen, reference.rejected, strict=True)]
        return sum(margin > old for margin, old in zip(margins, before, strict=True))


def answers_loss(model: PreTrainedModel, answers: Sequence[Encoded], description: str = "held-out answers") -> Loss:
    """The cross-entropy of answers and their end tokens given the prompts: what instruction tuning lowers.

    Args:
        model: In evaluation mode.
        answers: At least one; what is predicted has a label of zero or more.
        description: What the progress bar says.
    """
    from tqdm import tqdm

    scores = []
    with tqdm(total=len(answers), desc=description, unit="answer", mininterval=0.5) as bar:
        for chunk in batched(answers, AT_ONCE):
            scores += answer_scores(model, chunk, BATCH_TOKENS)
            bar.update(len(chunk))
    return Loss(tuple(-score.total for score in scores), tuple(score.tokens for score in scores))


def judged_pairs(
    model: PreTrainedModel, pairs: Sequence[EncodedPair], description: str = "held-out pairs"
) -> JudgedPairs:
    """The log-probabilities of both answers of each pair.

    Args:
        model: In evaluation mode.
        pairs: At least one.
        description: What the progress bar says.
    """
    from tqdm import tqdm

    chosen, rejected = list[float](), list[float]()
    with tqdm(total=len(pairs), desc=description, unit="pair", mininterval=0.5) as bar:
        for chunk in batched(pairs, AT_ONCE):
            for _, better, worse in pair_scores(model, chunk, BATCH_TOKENS):
                chosen.append(better.total)
                rejected.append(worse.total)
            bar.update(len(chunk))
    return JudgedPairs(tuple(chosen), tuple(rejected))
