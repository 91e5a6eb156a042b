"""A loss with its parts, and the difference of two of the same texts. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Loss:
    """A next-token cross-entropy.

    Args:
        window_nats: Its sum over the tokens of each window, or of each answer.
        window_tokens: How many tokens of each were predicted.
    """

    window_nats: tuple[float, ...]
    window_tokens: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many tokens were predicted."""
        return sum(self.window_tokens)

    @property
    def nats_per_token(self) -> float:
        """The mean over all tokens."""
        return math.fsum(self.window_nats) / self.tokens

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean; infinite where that is too large for a number."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf


class Difference(NamedTuple):
    """How much one loss is above another on the same windows, and the standard error of that (None for one window)."""

    nats_per_token: float
    standard_error: float | None


def difference(loss: Loss, reference: Loss) -> Difference:
    """How much ``loss`` is above ``reference``; both are of the same windows.

    The standard error is that of a ratio estimate, windows taken as independent (Cochran, Sampling Techniques, 6.3).

    Example:
        >>> difference(Loss((30.0, 50.0), (10, 10)), Loss((20.0, 30.0), (10, 10)))
        Difference(nats_per_token=1.5, standard_error=0.5)
    """
    excess = [nats - below for nats, below in zip(loss.window_nats, reference.window_nats, strict=True)]
    mean, windows = math.fsum(excess) / loss.tokens, len(excess)
    if windows < 2:
        return Difference(mean, None)
    residuals = [nats - mean * tokens for nats, tokens in zip(excess, loss.window_tokens, strict=True)]
    variance = windows / (windows - 1) * math.fsum(residual**2 for residual in residuals)
    return Difference(mean, math.sqrt(variance) / loss.tokens)
