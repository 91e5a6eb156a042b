"""A loss per window, and the paired difference of two losses. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Loss:
    """A next-token cross-entropy.

    Args:
        window_nats: The sum over the tokens of each window, or of each answer, in nats.
        window_tokens: The number of predicted tokens of each.
    """

    window_nats: tuple[float, ...]
    window_tokens: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """The number of predicted tokens."""
        return sum(self.window_tokens)

    @property
    def nats_per_token(self) -> float:
        """The mean over all tokens."""
        return math.fsum(self.window_nats) / self.tokens

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean; infinity if that overflows."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf


class Difference(NamedTuple):
    """A loss minus a reference loss on the same windows, with its standard error (None for a single window)."""

    nats_per_token: float
    standard_error: float | None


def difference(loss: Loss, reference: Loss) -> Difference:
    """``loss`` minus ``reference``, both on the same windows, in nats per token.

    The standard error is that of a ratio estimate with independent windows (Cochran, Sampling Techniques, 6.3).

    Example:
        >>> difference(Loss((30.0, 50.0), (10, 10)), Loss((20.0, 30.0), (10, 10)))
        Difference(nats_per_token=1.5, standard_error=0.5)
    """
    excess = [nats - base for nats, base in zip(loss.window_nats, reference.window_nats, strict=True)]
    mean, windows = math.fsum(excess) / loss.tokens, len(excess)
    if windows < 2:
        return Difference(mean, None)
    residuals = [nats - mean * tokens for nats, tokens in zip(excess, loss.window_tokens, strict=True)]
    variance = windows / (windows - 1) * math.fsum(residual**2 for residual in residuals)
    return Difference(mean, math.sqrt(variance) / loss.tokens)
