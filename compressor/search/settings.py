"""The settings of a search: what it is for, how long it may take, how it chooses what to try."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compressor.config.spec import Spec

CONFIDENCE = 0.95


class Goal(Spec):
    """What a search is for: the front of accuracy and latency, or the fastest network within a contract."""

    minimize: Literal["latency"] = "latency"
    """What every goal minimizes: the time for a batch."""
    maximize: Literal["accuracy"] | None = None
    """Find the front: networks that are less accurate than every faster one are not on it."""
    max_drop: float | None = Field(None, ge=0, lt=100)
    """The contract: find the fastest that loses at most so many points of accuracy against its baseline."""
    confidence: float = Field(CONFIDENCE, ge=0.5, lt=1)
    """How sure that has to be, given so many validation images."""

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if (self.maximize is None) == (self.max_drop is None):
            raise ValueError("a goal has either `maximize: accuracy` (the front) or `max_drop` (a contract)")
        if self.confidence != CONFIDENCE and self.max_drop is None:
            raise ValueError("confidence belongs to max_drop; leave it out")
        return self


class Budget(Spec):
    """How much a search may do; what it has done in earlier sessions counts."""

    trials: int | None = Field(None, ge=1, le=100_000)
    """Trials, whatever became of them."""
    hours: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Hours, after which no trial begins; those that have begun are ended."""

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.trials is None and self.hours is None:
            raise ValueError("a budget needs trials, hours or both")
        return self


class Search(Spec):
    """The `search` part of a search file."""

    goal: Goal
    """What is looked for."""
    budget: Budget
    """How long."""
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    """Which values to try next: TPE (Bergstra et al. 2011), NSGA-II (Deb et al. 2002), or drawn at random."""
    seed: int = Field(0, ge=0, le=2**32 - 1)
    """Decides what is tried; trials have the seed of the pipeline."""
    stop_early: bool = True
    """Stop trials that cannot win: slower than another, and clearly less accurate at the same point of training."""
    cpus: int = Field(1, ge=1, le=4096)
    """Cores that a trial takes on a Ray cluster."""
    gpus: float = Field(0, ge=0, le=64)
    """GPUs that a trial takes on a Ray cluster; a part of one, or several whole ones."""

    @model_validator(mode="after")
    def _gpus_are_whole(self) -> Self:
        if self.gpus > 1 and not self.gpus.is_integer():
            raise ValueError(f"gpus is {self.gpus:g}; a trial takes a part of one GPU, or several whole ones")
        return self
