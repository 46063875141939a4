"""The search for the ratio of channels to remove, given a target in multiply-adds or parameters."""

import math
from collections.abc import Callable

from torch import nn

from compressor.pruning.settings import MAX_RATIO

RATIOS = (MAX_RATIO, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
HALVINGS = 10  # a thousandth of the channels


def largest_within(
    limit: float, pruned: Callable[[float], nn.Module], kept: Callable[[nn.Module], float]
) -> tuple[nn.Module | None, float]:
    """The largest network that keeps at most `limit`, by bisection of the ratio.

    The largest ratio may remove less than a smaller one if a layer would be left without channels, so the search
    starts from the largest ratio that reaches the limit.

    Args:
        limit: the largest share to keep.
        pruned: gives the network without a ratio of its channels.
        kept: gives the share that a network keeps.

    Returns:
        The network and the share that it keeps, or None and the smallest share found if that is above the limit.
    """
    smallest = math.inf
    for high in RATIOS:
        best = pruned(high)
        reached = kept(best)
        smallest = min(smallest, reached)
        if reached <= limit:
            break
    else:
        return None, smallest
    low = 0.0
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        network = pruned(ratio)
        share = kept(network)
        if share > limit:
            low = ratio
            continue
        high = ratio
        if share > reached:
            best, reached = network, share
    return best, reached
