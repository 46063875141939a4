"""The search for what to remove, given a target in multiply-adds or parameters."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from compressor.pruning.settings import MAX_RATIO

RATIOS = (MAX_RATIO, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
HALVINGS = 10  # a thousandth of the channels

T = TypeVar("T")  # what is to be removed


def largest_within(
    limit: float,
    candidate: Callable[[float], T],
    kept: Callable[[T], float],
    between: Callable[[T, T], Sequence[T]],
) -> tuple[T | None, float]:
    """What to remove to keep most of a network, but at most `limit`: by bisection of the ratio, then of the layers.

    The largest ratio may remove less than a smaller one if a layer would be left without channels, so the search
    starts from the largest ratio that reaches the limit. Where two ratios that differ by a thousandth lie on both sides
    of the limit, many layers change at once, and some of them are enough.

    Args:
        limit: the largest share to keep.
        candidate: what to remove for a ratio.
        kept: the share that is left without it.
        between: from the first of two candidates to the second, each removing more than the one before.

    Returns:
        What to remove and the share that is left, or None and the smallest share found if that is above the limit.
    """
    smallest = math.inf
    for high in RATIOS:
        best = candidate(high)
        reached = kept(best)
        smallest = min(smallest, reached)
        if reached <= limit:
            break
    else:
        return None, smallest
    low, less = 0.0, candidate(0.0)
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        found = candidate(ratio)
        share = kept(found)
        if share > limit:
            low, less = ratio, found
            continue
        high = ratio
        if share > reached:
            best, reached = found, share
    return _first_within(limit, between(less, best), kept) or (best, reached)


def _first_within(limit: float, candidates: Sequence[T], kept: Callable[[T], float]) -> tuple[T, float] | None:
    """The first candidate that keeps at most `limit`, of those that keep less and less; the last one does."""
    found = None
    low, high = 0, len(candidates) - 1  # the answer lies in low..high
    while low < high:
        middle = (low + high) // 2
        share = kept(candidates[middle])
        if share <= limit:
            high, found = middle, (candidates[middle], share)
        else:
            low = middle + 1
    return found
