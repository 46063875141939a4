"""What a run found, as data: the content of `report.json`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from compressor.config.spec import first_problem
from compressor.data.preprocess import Preprocess
from compressor.environment import Environment
from compressor.errors import ArtifactError
from compressor.evaluation.accuracy import Accuracy, Paired
from compressor.evaluation.doctor.diagnosis import Diagnosis
from compressor.evaluation.figures import Count, Figures, Share, Total
from compressor.evaluation.in_engines import InEngine
from compressor.evaluation.latency import Latency, NotMeasured
from compressor.evaluation.regressions import Regressions
from compressor.evaluation.setting import REFERENCE, Setting
from compressor.pipeline.stage import ID_PATTERN, MAX_ID_LENGTH
from compressor.report.details import checked
from compressor.storage import files

JSON = "report.json"

Id = Annotated[str, Field(pattern=ID_PATTERN, max_length=MAX_ID_LENGTH)]


class Scored(Figures):
    """One stage's artifact and its scores: the content of `row.json` in its folder.

    `sha256` is that of its ONNX file, `balanced_accuracy` the mean recall of the classes (none in rows of an earlier
    version), `calibration_error` the expected calibration error, 0 to 1. `details` come from the stage (training curve,
    widths, agreement). `key` is the digest of everything that made the artifact, which
    `made_from` lists; `scored_on` that of the test split, `scored_by` that of the code that scored it.
    """

    id: Id
    stage: str
    artifact: Annotated[str, Field(pattern=r"^[\w-]+/[\w-]+$")]
    seconds: float
    accuracy: Accuracy
    balanced_accuracy: Share | None = None
    calibration_error: Share
    parameters: Count
    nonzero_parameters: Count
    macs: Count
    size_bytes: Total
    sha256: str
    details: Annotated[dict[str, Any], AfterValidator(checked)] = {}
    key: str
    made_from: dict[str, str] = {}
    scored_on: str
    scored_by: str = ""


class Timings(Figures):
    """How fast a row's file is.

    `versus_float` is the speed-up of an int8 network over the same network's float ONNX file; `measured_as` is the
    digest of the figures and of everything that they depend on.
    """

    latency: tuple[Latency | NotMeasured, ...] = ()
    versus_float: tuple[Latency, ...] = ()
    measured_as: str = ""


class Row(Timings, Scored):
    """One stage's artifact and all its figures; `versus_baseline` compares it on the same test images."""

    versus_baseline: Paired | None = None

    @classmethod
    def of(cls, scored: Scored, timings: Timings, versus_baseline: Paired) -> "Row":
        """The row, from its parts."""
        return cls.model_validate({**dict(scored), **dict(timings), "versus_baseline": versus_baseline})

    @property
    def timings(self) -> Timings:
        """The timed part of the row."""
        return Timings(latency=self.latency, versus_float=self.versus_float, measured_as=self.measured_as)

    @property
    def timed(self) -> dict[Setting, Latency]:
        """Latency by setting."""
        entries = (entry for entry in self.latency if isinstance(entry, Latency))
        return {Setting(**entry.model_dump(include=set(Setting.model_fields))): entry for entry in entries}


class DataFacts(Figures):
    """How many images a run used, and the digest of them all."""

    name: str
    train: Count
    validation: Count
    test: Count
    fingerprint: str


class Spread(Figures):
    """A figure of several runs, with its mean and sample standard deviation."""

    values: tuple[float, ...]
    mean: float
    deviation: float


class OverSeeds(Figures):
    """One stage over the seeds of a pipeline, in their order; `speedup` is for the first setting of ONNX Runtime."""

    id: Id
    accuracy: Spread
    size_bytes: Spread
    speedup: Spread | None


class Report(Figures):
    """A run: its rows and how they were measured. `spec` is the pipeline as YAML, `license` that of the weights.

    `shown` is a picture of some training images, each in a row of its views: a PNG in base64, "" if nothing trains.
    `doctor` says where the shipped file's time goes, `engines` how it scores in those it is for besides ONNX Runtime.
    """

    schema_: Literal[1] = Field(1, alias="schema")
    pipeline: Id
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
    regressions: Regressions = Field(alias="harm")
    shown: str = ""
    doctor: Diagnosis | None = None
    engines: tuple[InEngine, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> "Report":
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        """What the report refers to but does not hold, and other contradictions in it."""
        ids = {row.id for row in self.rows}
        yield from (f"there is no row {missing!r}" for missing in (self.baseline, self.shipped) if missing not in ids)
        for row in self.rows:
            if row.id != self.baseline and row.versus_baseline is None:
                yield f"row {row.id!r} is not compared with the baseline"
        if self.doctor is not None and self.doctor.sha256 != self.shipped_row.sha256:
            yield "what its doctor looked at is not the file that ships"
        regressions, classes = self.regressions, len(self.labels)
        if not classes == len(regressions.baseline_classes) == len(regressions.shipped_classes) > 0:
            yield "the number of class scores is not the number of classes"
        flips = (*regressions.newly_wrong, *regressions.newly_right)
        named = [index for flip in flips for index in (flip.label, flip.baseline, flip.shipped)]
        named += [index for label, prediction, _ in regressions.confusion for index in (label, prediction)]
        if max(named, default=0) >= classes:
            yield f"there is no class number {max(named)}"

    @property
    def baseline_row(self) -> Row:
        """The stage that all others are compared with."""
        return self.row(self.baseline)

    @property
    def shipped_row(self) -> Row:
        """The stage that ships: the last."""
        return self.row(self.shipped)

    @property
    def settings(self) -> list[Setting]:
        """The settings in which at least one row was timed."""
        return list(dict.fromkeys(setting for row in self.rows for setting in row.timed))

    @property
    def headline_setting(self) -> Setting | None:
        """The setting of the verdict: the first of ONNX Runtime in which the shipped file was timed."""
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
            ArtifactError: there is none, it is from another version, or a figure in it is impossible.
        """
        path = folder / JSON
        try:
            return cls.model_validate_json(files.read_bytes(path, files.MAX_TEXT_BYTES))
        except OSError as error:
            raise ArtifactError(f"{path}: there is no report to read: {error.strerror}") from error
        except ValidationError as error:
            raise ArtifactError(f"{path}: is not a report of this version: {first_problem(error)}") from error
