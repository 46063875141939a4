"""What a run found, as data: the content of `report.json`."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compressor.data.preprocess import Preprocess
from compressor.environment import Environment
from compressor.errors import ArtifactError
from compressor.evaluation.accuracy import Accuracy, Paired
from compressor.evaluation.latency import Latency, NotMeasured
from compressor.evaluation.regressions import Harm
from compressor.evaluation.setting import REFERENCE, Setting

JSON = "report.json"


class Scored(BaseModel):
    """One stage's artifact, scored: what `row.json` in its folder says.

    `sha256` is of its ONNX file; `calibration_error` the expected one, in 0..1; `details` what the stage has to say
    (training curve, widths, agreement). `key` is the digest of all that made the artifact, which `made_from` lists;
    `scored_on` that of the test split, `scored_by` that of the code.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    stage: str
    artifact: str
    seconds: float
    accuracy: Accuracy
    calibration_error: float
    parameters: int
    nonzero_parameters: int
    macs: int
    size_bytes: int
    sha256: str
    details: dict[str, Any] = {}
    key: str
    made_from: dict[str, str] = {}
    scored_on: str
    scored_by: str = ""


class Timings(BaseModel):
    """How fast a row's file is.

    `versus_float` is the speed-up of an int8 network over the same network's float ONNX file; `measured_as` the digest
    of all that the figures depend on, and of themselves.
    """

    model_config = ConfigDict(frozen=True)

    latency: tuple[Latency | NotMeasured, ...] = ()
    versus_float: tuple[Latency, ...] = ()
    measured_as: str = ""


class Row(Timings, Scored):
    """One stage's artifact, measured; `versus_baseline` is the comparison on the same test images."""

    versus_baseline: Paired | None = None

    @classmethod
    def of(cls, scored: Scored, timings: Timings, versus_baseline: Paired) -> "Row":
        """The row, put together from its parts once all of them are known."""
        return cls.model_validate({**dict(scored), **dict(timings), "versus_baseline": versus_baseline})

    @property
    def timings(self) -> Timings:
        """The part of it that latency makes."""
        return Timings(latency=self.latency, versus_float=self.versus_float, measured_as=self.measured_as)

    @property
    def timed(self) -> dict[Setting, Latency]:
        """Figures by what they were taken with."""
        entries = (entry for entry in self.latency if isinstance(entry, Latency))
        return {Setting(**entry.model_dump(include=set(Setting.model_fields))): entry for entry in entries}


class DataFacts(BaseModel):
    """The images of a run: how many, and the digest of them all."""

    model_config = ConfigDict(frozen=True)

    name: str
    train: int
    validation: int
    test: int
    fingerprint: str


class Spread(BaseModel):
    """A figure of several runs, with their mean and sample deviation."""

    model_config = ConfigDict(frozen=True)

    values: tuple[float, ...]
    mean: float
    deviation: float


class OverSeeds(BaseModel):
    """One stage over the seeds of a pipeline, in their order; `speedup` in the first setting of ONNX Runtime."""

    model_config = ConfigDict(frozen=True)

    id: str
    accuracy: Spread
    size_bytes: Spread
    speedup: Spread | None


class Report(BaseModel):
    """A run: its rows, and what they were measured with. `spec` is the pipeline as YAML, `license` of the weights."""

    model_config = ConfigDict(frozen=True)

    schema_: Literal[1] = Field(1, alias="schema")
    pipeline: str
    license: str
    spec: str
    seed: int
    seeds: tuple[int, ...]
    digest: str
    baseline: str
    shipped: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    data: DataFacts
    environment: Environment
    rows: tuple[Row, ...]
    over_seeds: tuple[OverSeeds, ...] = ()
    harm: Harm

    @model_validator(mode="after")
    def _rows_are_there(self) -> "Report":
        missing = {self.baseline, self.shipped} - {row.id for row in self.rows}
        if missing:
            raise ValueError(f"there is no row {missing.pop()!r}")
        return self

    @property
    def baseline_row(self) -> Row:
        """The stage that others are compared with."""
        return self.row(self.baseline)

    @property
    def shipped_row(self) -> Row:
        """The last stage."""
        return self.row(self.shipped)

    @property
    def settings(self) -> list[Setting]:
        """The settings in which at least one row was timed."""
        return list(dict.fromkeys(setting for row in self.rows for setting in row.timed))

    @property
    def headline_setting(self) -> Setting | None:
        """What "how fast?" is answered for: the first setting of ONNX Runtime that the shipped file was timed in."""
        return next((setting for setting in self.shipped_row.timed if setting.engine == REFERENCE), None)

    def row(self, stage_id: str) -> Row:
        """The row of a stage."""
        return next(row for row in self.rows if row.id == stage_id)

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def load(cls, folder: Path) -> "Report":
        """The report of a finished run.

        Raises:
            ArtifactError: there is none, or it is not of this version.
        """
        path = folder / JSON
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ArtifactError(f"{path}: there is no report to read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(f"{path}: not a report of this version: {key}: {first['msg']}") from error
