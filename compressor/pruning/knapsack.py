"""The multiple-choice knapsack: one option of each class, the least loss within a limit of time."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TICKS = 5000  # that the limit is cut into; times are rounded up to whole ones

Figures = NDArray[np.float64]


def least_loss(times: Sequence[Figures], losses: Sequence[Figures], limit: float) -> list[int] | None:
    """The index of the option to take of each class, so that the sum of losses is the least possible.

    Exact for times in ticks, by dynamic programming over the time that is spent (Sinha and Zoltners 1979 state the
    problem).

    Args:
        times: of the options of each class, at least one, `[options]`, none negative.
        losses: likewise.
        limit: the largest sum of times.

    Returns:
        None if the fastest options take longer than the limit.
    """
    if limit <= 0:
        return None
    least = np.zeros(TICKS + 1)  # loss of the classes so far, by the ticks that they may take
    taken: list[NDArray[np.intp]] = []
    in_ticks = [np.ceil(own * TICKS / limit - 1e-6).astype(int) for own in times]
    for ticks, own in zip(in_ticks, losses, strict=True):
        reached = np.full((len(own), TICKS + 1), np.inf)
        for option, (cost, loss) in enumerate(zip(ticks, own, strict=True)):
            if cost <= TICKS:
                reached[option, cost:] = least[: TICKS + 1 - cost] + loss
        best = reached.argmin(axis=0)
        least = reached[best, np.arange(TICKS + 1)]
        taken.append(best)
    if not np.isfinite(least[TICKS]):
        return None
    left = TICKS
    options: list[int] = []
    for ticks, best in zip(reversed(in_ticks), reversed(taken), strict=True):
        options.append(int(best[left]))
        left -= int(ticks[options[-1]])
    return options[::-1]
