"""What is said of trials and of what a search found."""

from compressor.evaluation import Paired
from compressor.report import percent, setting_name
from compressor.search.found import Best, Found, in_words
from compressor.search.outcome import Outcome, Shipped
from compressor.search.settings import Goal, Search


def ending(outcome: Outcome, search: Search) -> str:
    """One line about a trial that is over."""
    values = ", ".join(f"{name.rpartition('.')[2]} {in_words(value)}" for name, value in outcome.values.items())
    start = f"trial {outcome.number} ({values})"
    shipped = outcome.shipped
    if shipped is None:
        return f"{start}: {outcome.state}: {outcome.reason}"
    said = f"{start}: {percent(shipped.accuracy)} of validation images, {shipped.latency.speedup:.2f}x as fast"
    if search.goal.max_drop is None:
        return said
    return f"{said}; {_loss(shipped, search.goal)}"


def headline(found: Found) -> str:
    """The one line that a user wants."""
    if found.goal.max_drop is None:
        fastest, best = found.best[0], found.best[-1]
        several = (
            f"{len(found.best)} networks are on the front" if len(found.best) > 1 else "One network is on the front"
        )
        ends = dict.fromkeys(_point(found, each) for each in (fastest, best))
        return f"{several}: {' to '.join(ends)}."
    if found.winner is None:
        closest = min(found.complete, key=lambda each: each.drop(found.goal))
        assert closest.shipped is not None
        return (
            f"No network keeps the contract, at most {found.goal.max_drop:g} points lost: the closest, trial "
            f"{closest.number}, {_loss(closest.shipped, found.goal)}."
        )
    winner = next(each for each in found.best if each.number == found.winner)
    judged = next(each for each in found.judged if each.number == found.winner)
    shipped = found.outcome(found.winner).shipped
    assert shipped is not None
    difference = 100 * judged.versus_baseline.difference
    return (
        f"Trial {found.winner} is the fastest within the contract: {winner.latency.speedup:.2f}x as fast as the "
        f"baseline ({setting_name(found.setting)}), {_loss(shipped, found.goal)} on validation images, "
        f"{difference:+.2f} points on the test images."
    )


def hard_to_keep(goal: Goal, images: int) -> str:
    """What is said of a contract that not even the same predictions on all validation images would keep; else ""."""
    if goal.max_drop is None:
        return ""
    least = -100 * Paired.of(0, 0, images).at_least(goal.confidence)
    if least <= goal.max_drop:
        return ""
    return (
        f"on {images} validation images, a network with the very predictions of its baseline loses up to {least:.2f} "
        f"points ({goal.confidence:.0%} sure), over the {goal.max_drop:g} of the contract; take more, or allow more"
    )


def _loss(shipped: Shipped, goal: Goal) -> str:
    drop = shipped.drop(goal.confidence)
    words = f"loses at most {drop:.2f} points" if drop > 0 else f"gains at least {-drop:.2f} points"
    return f"{words} ({goal.confidence:.0%} sure)"


def _point(found: Found, best: Best) -> str:
    shipped = found.outcome(best.number).shipped
    assert shipped is not None
    return f"{percent(shipped.accuracy)} at {best.latency.median_ms:.3g} ms ({best.latency.speedup:.2f}x)"
