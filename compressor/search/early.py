"""Stopping trials that cannot win: there is a faster one that keeps the contract, or that learns better.

A trial is compared with complete ones at the same share of the same stage's training, so epochs and schedules may
differ. (The median rule of Golovin et al. 2017 compares curves alone; it would stop every small, fast network.)
"""

import math
from collections.abc import Iterable

from compressor.search.outcome import Moment, Outcome
from compressor.search.settings import Goal

SLOWER = 1.1  # by this factor, since latency is expected from a file that is made in seconds
EARLIEST = 0.25  # of a training: curves say little before
DEVIATIONS = 2.0  # between two accuracies, to be more than chance


class CannotWinError(Exception):
    """Ends a trial; the message says why."""


def beaten_in_latency(expected_share: float, goal: Goal, rivals: Iterable[Outcome]) -> str | None:
    """Why a trial cannot win even if it learns perfectly; None if it may.

    Args:
        expected_share: its latency as a share of the reference's.
        goal: of the search.
        rivals: trials that are over.
    """
    if goal.max_drop is None:
        return None
    for rival in rivals:
        share = rival.latency_share
        if rival.keeps(goal) and share is not None and SLOWER * share < expected_share:
            return f"trial {rival.number} keeps the contract, and is {expected_share / share:.2f}x faster"
    return None


def beaten_in_training(
    stage: str, now: Moment, expected_share: float, images: int, rivals: Iterable[Outcome]
) -> str | None:
    """Why a trial cannot win as it learns; None if it may.

    Args:
        stage: the id of the stage that trains.
        now: how far it is.
        expected_share: its latency as a share of the reference's.
        images: the validation images.
        rivals: trials that are over.
    """
    if now.share < EARLIEST:
        return None
    for rival in rivals:
        share = rival.latency_share
        if rival.shipped is None or share is None or share > expected_share:
            continue
        before = [moment.accuracy for moment in rival.curves.get(stage, ()) if moment.share <= now.share]
        if before and before[-1] - now.accuracy > DEVIATIONS * _deviation(before[-1], now.accuracy, images):
            return (
                f"trial {rival.number} is no slower, and had {before[-1]:.2%} of the validation images right, not "
                f"{now.accuracy:.2%}, when {now.share:.0%} of {stage} was done"
            )
    return None


def _deviation(one: float, other: float, images: int) -> float:
    """The standard deviation of the difference between two accuracies on so many images each."""
    return math.sqrt((one * (1 - one) + other * (1 - other)) / images)
