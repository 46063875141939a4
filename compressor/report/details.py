"""What stages report about their results, as far as the report shows it.

An infinite figure, or one that is not a number, is null; plots and sentences leave it out.
"""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic_core import to_jsonable_python

from compressor.evaluation.figures import Count, Figures, Share, Total

Drawn = Annotated[float, Field(ge=-1e100, le=1e100)]


class Epoch(Figures, extra="allow"):
    """An epoch of a training."""

    epoch: Count
    loss: Drawn | None = None
    validation_accuracy: Share | None = None


class Agreement(Figures, extra="allow"):
    """How well an ONNX file agrees with the network it was exported from, on validation images."""

    images: Count
    same_top1: Count
    mean_logit_difference: float | None = None
    largest_logit_difference: float | None = None


class InEngineAgreement(Agreement):
    """The same of a file for another engine, in that or, where it cannot run, in ONNX Runtime."""

    engine: str


class Origin(Figures, extra="allow"):
    """Where the weights come from that a network began with."""

    model: str
    source: str
    license: str


class Candidate(Figures, extra="allow"):
    """What was tried for a latency: the share of the incoming latency that it keeps."""

    predicted: Drawn
    measured: Drawn | None = None
    removed_blocks: Count


class LatencyTarget(Figures, extra="allow"):
    """How a stage met a target of latency."""

    goal: Drawn
    taken: Count | None = None
    tried: tuple[Candidate, ...] = ()

    @model_validator(mode="after")
    def _taken_was_tried(self) -> Self:
        if self.taken is not None and self.taken >= len(self.tried):
            raise ValueError(f"candidate {self.taken} is taken, but {len(self.tried)} were tried")
        return self


class TriedRung(Figures, extra="allow"):
    """A way of mending what integers cost: validation images that are right, and the speed-up over the float file."""

    name: str
    correct: Count
    seconds: Drawn
    speedup: Drawn | None = None


class TriedLadder(Figures, extra="allow"):
    """How a stage kept the accuracy on integers; `kept` names a rung, or is null if the network stays in float."""

    max_drop: Drawn
    images: Total
    correct_in_float: Count
    kept: str | None
    rungs: tuple[TriedRung, ...]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if max([self.correct_in_float, *(rung.correct for rung in self.rungs)]) > self.images:
            raise ValueError(f"more than {self.images} of {self.images} images cannot be correct")
        if self.kept is not None and self.kept not in {rung.name for rung in self.rungs}:
            raise ValueError(f"there is no rung {self.kept!r}")
        return self


class Details(Figures, extra="allow"):
    """The keys that a report reads; others are kept unchanged."""

    curve: tuple[Epoch, ...] = ()
    kept_epoch: Count | None = None
    trained_on: str | None = None
    widths: dict[str, tuple[Count, Count]] = {}
    signal_to_noise_db: dict[str, Drawn | None] = {}
    teacher_weights: tuple[float | None, ...] = ()
    zeros: dict[str, Share | None] = {}
    float_layers: dict[str, Share] = {}
    float_batch_norms: Count = 0
    agreement: Agreement | None = None
    agreement_in: dict[str, InEngineAgreement] = {}
    pretrained: Origin | None = None
    latency_target: LatencyTarget | None = None
    ladder: TriedLadder | None = None


def checked(details: dict[str, Any]) -> dict[str, Any]:
    """The same details as JSON, with null for every figure that is not finite.

    Raises:
        ValidationError: a key that a report reads holds something else.
    """
    plain = to_jsonable_python(details, inf_nan_mode="null")
    return Details.model_validate(plain).model_dump(mode="json", exclude_unset=True)
