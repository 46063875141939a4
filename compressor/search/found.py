"""What a search found: its trials, the front or the winner, timed together at the end, and what mattered."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from compressor.environment import Environment
from compressor.evaluation import Accuracy, Count, Figures, Latency, Milliseconds, Paired, Setting
from compressor.search.outcome import SPEC, Outcome, folder_of, read
from compressor.search.settings import Budget, Goal
from compressor.storage import files

JSON = "search.json"


class Best(Figures):
    """A trial of the front, or one that keeps the contract, timed at the end in the same sessions as the others."""

    number: Count
    latency: Latency


class Judged(Figures):
    """The winner on the test images."""

    number: Count
    accuracy: Accuracy
    versus_baseline: Paired
    speedup: float | None
    as_tried: bool  # if not, the store had lost its stages, and they were made again


class Found(Figures):
    """The content of `search.json`. Latency is against `reference.onnx`, the baseline of the first trial.

    `best` are the trials of the front, or the fastest few within the contract; the `winner` is the fastest of those,
    and of several that are as fast, the one that loses least.
    `judged` lists every winner that the test images have seen: more than one if the search went on.
    """

    schema_: Literal[1] = Field(1, alias="schema")
    search: str
    store: str
    goal: Goal
    budget: Budget
    sampler: str
    seed: int
    setting: Setting
    reference_ms: Milliseconds
    environment: Environment
    seconds: float
    outcomes: tuple[Outcome, ...]
    best: tuple[Best, ...] = ()
    winner: Count | None = None
    judged: tuple[Judged, ...] = ()
    importances: dict[str, dict[str, float]] = {}

    def outcome(self, number: int) -> Outcome:
        """How a trial ended."""
        return next(each for each in self.outcomes if each.number == number)

    @property
    def complete(self) -> list[Outcome]:
        """The trials that shipped something."""
        return [each for each in self.outcomes if each.shipped is not None]

    def save(self, folder: Path) -> None:
        """Write it as JSON."""
        files.write_json(folder / JSON, self.model_dump(mode="json"))


def found_in(folder: Path) -> Found | None:
    """What an earlier session found; None if there was none.

    Raises:
        ArtifactError: it cannot be read.
    """
    return read(Found, folder / JSON, "a search")


def command_of(found: Found, folder: Path, number: int, imports: Sequence[str] = ()) -> str:
    """What runs a trial's pipeline as a run of its own, with networks from `imports`, judged on the test images."""
    own = folder_of(folder, number)
    words = shlex.join(["compress", "run", str(own / SPEC), "--out", str(own / "run"), "--store", found.store])
    folders = ":".join(shlex.quote(each) for each in dict.fromkeys(imports))
    return f"PYTHONPATH={folders}${{PYTHONPATH:+:$PYTHONPATH}} {words}" if folders else words


def in_words(value: object) -> str:
    """The value of a range."""
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
