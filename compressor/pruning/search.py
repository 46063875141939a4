"""The ratio of channels to remove for a target in multiply-adds or parameters."""

import math
from collections.abc import Callable

from torch import nn

SEARCH_STEPS = 10  # of bisection: a thousandth of the channels
LARGEST_RATIO = 0.99


def largest_within(
    limit: float, pruned: Callable[[float], nn.Module], kept: Callable[[nn.Module], float]
) -> tuple[nn.Module | None, float]:
    """Bisect the ratio for the largest network that keeps at most `limit`.

    Args:
        limit: the share to keep at most.
        pruned: makes the network without a ratio of the channels.
        kept: what share a network keeps.

    Returns:
        The network, or None if the limit is out of reach; and the smallest share seen.
    """
    best: nn.Module | None = None
    reached, smallest = -1.0, math.inf
    low, high = 0.0, LARGEST_RATIO
    for step in range(SEARCH_STEPS + 1):
        ratio = high if step == 0 else (low + high) / 2  # the far end first: is the target in reach at all?
        network = pruned(ratio)
        share = kept(network)
        smallest = min(smallest, share)
        if share <= limit:
            high = ratio
            if share > reached:
                best, reached = network, share
        elif step == 0:
            break
        else:
            low = ratio
    return best, smallest
