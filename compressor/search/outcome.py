"""What a trial came to, and which trials are better than others."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from compressor.config.spec import first_problem
from compressor.errors import ArtifactError
from compressor.evaluation import Accuracy, Count, Factor, Figures, Latency, Paired, Share
from compressor.search.settings import Goal
from compressor.storage import files

Kept = TypeVar("Kept", bound=Figures)

TRIALS, SPEC, OUTCOME = "trials", "pipeline.yaml", "trial.json"
CLOSE = 1.15  # times the latency of the fastest, by one session each
FEW = 6


class Moment(Figures):
    """Validation accuracy once this share of a stage's training is done."""

    share: Share
    accuracy: Share


class Shipped(Figures):
    """The file that a trial ships, judged on the validation images; its latency is against the search's reference."""

    accuracy: Accuracy
    baseline: Accuracy
    versus_baseline: Paired
    latency: Latency
    parameters: Count
    macs: Count
    size_bytes: Count

    def drop(self, confidence: float) -> float:
        """The points of accuracy that it loses at most, with this confidence."""
        return -100 * self.versus_baseline.at_least(confidence)


class Outcome(Figures):
    """How a trial ended: complete, stopped since it could not win any more, or failed, and why.

    `expected_share` is its latency as a share of the reference's, as far as it was known in training; `curves` are
    those of its trainings by the id of the stage.
    """

    number: Count
    values: dict[str, Any]
    state: Literal["complete", "stopped", "failed"]
    reason: str = ""
    shipped: Shipped | None = None
    expected_share: Factor | None = None
    curves: dict[str, tuple[Moment, ...]] = {}
    seconds: float

    @property
    def latency_share(self) -> float | None:
        """Its latency as a share of the reference's: as measured, or else as expected."""
        return 1 / self.shipped.latency.speedup if self.shipped is not None else self.expected_share

    @property
    def accuracy(self) -> float | None:
        """Its accuracy on the validation images; of a trial that was stopped, the last of its curve."""
        if self.shipped is not None:
            return self.shipped.accuracy.value
        last = [curve[-1].accuracy for curve in self.curves.values() if curve]
        return last[-1] if last else None

    def keeps(self, goal: Goal) -> bool:
        """Whether it is complete and within the contract."""
        return self.shipped is not None and (goal.max_drop is None or self.drop(goal) <= goal.max_drop)

    def drop(self, goal: Goal) -> float:
        """The points of accuracy that it loses at most, as sure as the goal asks; infinite if it is not complete."""
        return self.shipped.drop(goal.confidence) if self.shipped is not None else math.inf

    def save(self, folder: Path) -> None:
        """Write it into the folder of the trial, which is over with that."""
        files.write_json(folder / OUTCOME, self.model_dump(mode="json"))


def folder_of(search: Path, number: int) -> Path:
    """The folder of a trial in that of its search."""
    return search / TRIALS / str(number)


def outcome_in(folder: Path) -> Outcome | None:
    """How the trial in this folder ended; None if it has not.

    Raises:
        ArtifactError: what is there cannot be read.
    """
    return read(Outcome, folder / OUTCOME, "a trial")


def read(kind: type[Kept], path: Path, of: str) -> Kept | None:
    """What a search has written as JSON; None if it has not yet.

    Raises:
        ArtifactError: it cannot be read, or is of another version.
    """
    try:
        return kind.model_validate_json(files.read_bytes(path, files.MAX_TEXT_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ArtifactError(f"{path}: is not of {of} of this version: {first_problem(error)}") from error


def front(
    outcomes: Iterable[Outcome], share_of: Callable[[Outcome], float | None] = lambda each: each.latency_share
) -> list[Outcome]:
    """The complete trials that no other beats in both accuracy and latency, the fastest first.

    Args:
        outcomes: of trials.
        share_of: the latency of each.
    """
    complete = [each for each in outcomes if each.shipped is not None]
    complete.sort(key=lambda each: (share_of(each), -(each.accuracy or 0), each.number))
    kept, best = list[Outcome](), -math.inf
    for each in complete:
        if each.accuracy is not None and each.accuracy > best:
            kept.append(each)
            best = each.accuracy
    return kept


def as_fast(goal: Goal, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The trials within the contract that may be its fastest, as far as one session tells, the fastest first.

    If they are many, the fastest and those that lose least.
    """
    kept = sorted((each for each in outcomes if each.keeps(goal)), key=_share)
    close = [each for each in kept if _share(each) <= CLOSE * _share(kept[0])]
    least = sorted(close[1:], key=lambda each: each.drop(goal))[: FEW - 1]
    return sorted([*close[:1], *least], key=_share)


def _share(outcome: Outcome) -> float:
    return outcome.latency_share or 0.0
