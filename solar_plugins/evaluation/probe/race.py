"""Which plans are worth further documents: those that may still be the best of their size. Pure.

After each round a plan stops if it is worse than the best of its size by more than `STANDARD_ERRORS` of the paired
difference. Of those that are left the best few of each size go on, fewer in each round (successive halving, Karnin et
al. 2013): plans whose blocks differ by one layer would be undecided for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from solar_plugins.evaluation.loss import Loss, difference

STANDARD_ERRORS = 3.0
MIN_SEGMENTS = 8
"""With fewer segments a standard error is too uncertain to decide by."""
FIRST_CAP, LAST_CAP = 24, 2
"""How many plans of a size go on at most after the first round, half as many after each further one, and at least."""


def rounds(num_documents: int, first: int = 1) -> list[range]:
    """The documents of each round: as many in each as in all rounds before.

    >>> rounds(16)
    [range(0, 1), range(1, 2), range(2, 4), range(4, 8), range(8, 16)]
    >>> rounds(3, first=2)
    [range(0, 2), range(2, 3)]
    """
    found, start, end = list[range](), 0, first
    while start < num_documents:
        found.append(range(start, min(end, num_documents)))
        start, end = end, 2 * end
    return found


def still_racing(
    losses: Mapping[int, Loss], groups: Iterable[Sequence[int]], keep: frozenset[int], turn: int
) -> set[int]:
    """The plans that go on.

    Args:
        losses: Of each plan, on the same segments of text.
        groups: Places of the plans of one size.
        keep: Plans that always go on.
        turn: How many rounds are over, less one.

    Example:
        >>> near, far = Loss((10.0, 21.0) * 4, (9,) * 8), Loss((19.0, 31.0) * 4, (9,) * 8)
        >>> sorted(still_racing({0: near, 1: near, 2: far}, [[0, 1, 2]], frozenset(), 0))
        [0, 1]
    """
    going, cap = set(keep), max(LAST_CAP, FIRST_CAP >> turn)
    for group in groups:
        ordered = sorted(group, key=lambda place: losses[place].nats_per_token)
        leader = losses[ordered[0]]
        going.update(place for place in ordered[:cap] if not _surely_worse(losses[place], leader))
    return going


def _surely_worse(loss: Loss, leader: Loss) -> bool:
    excess, error = difference(loss, leader)
    return len(loss.window_nats) >= MIN_SEGMENTS and error is not None and excess > STANDARD_ERRORS * error
