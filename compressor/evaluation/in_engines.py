"""A file in the engine that it is made for: how accurate it is there.

Where an engine is not installed, ONNX Runtime computes its file instead, which shows what its grids cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from compressor.config.spec import validated_copy
from compressor.console import Console
from compressor.data.dataset import Dataset
from compressor.data.preprocess import Preprocess
from compressor.environment import environment
from compressor.evaluation import accuracy
from compressor.evaluation.accuracy import SCORE_BATCH, Accuracy, Predictions
from compressor.evaluation.engines.base import Session, Subject, engine_of, state_of
from compressor.evaluation.figures import Count, Figures, Total
from compressor.evaluation.setting import REFERENCE, Setting
from compressor.export import onnx_file
from compressor.models.agreement import LogitsOf
from compressor.storage import files
from compressor.storage.code import code_digest


class InEngine(Figures):
    """How a file for an engine scores on the test images; `same` are in the class that `model.onnx` puts them in.

    `accuracy.engine` is the one that computed them: another than `engine` where that cannot run here, for a `reason`.
    Of `not_finite` images there are no logits that say anything; they count as wrong. `measured_as` is the digest of
    the figures, and of all that they depend on.
    """

    engine: str
    file: Annotated[str, Field(pattern=r"^model(\.[a-z0-9_]+)?\.onnx$")]
    size_bytes: Total
    sha256: str
    accuracy: Accuracy
    same: Count
    not_finite: Count = 0
    reason: str | None = None
    measured_as: str = ""

    @model_validator(mode="after")
    def _no_more_than_all(self) -> "InEngine":
        if max(self.same, self.not_finite) > self.accuracy.total:
            raise ValueError(f"{max(self.same, self.not_finite)} of {self.accuracy.total} images cannot be the same")
        return self

    def digest(self, decides: Sequence[Any]) -> str:
        """SHA-256 over the figures and what decides them."""
        return files.digest_json([*decides, self.model_dump(mode="json", exclude={"measured_as"})])


@dataclass(frozen=True)
class Opened:
    """A file that can be computed: by the engine that it is for or, for a `reason`, by ONNX Runtime."""

    engine: str
    reason: str | None
    logits_of: LogitsOf

    @classmethod
    def of(cls, name: str, onnx: Path, preprocess: Preprocess) -> "Opened":
        """Open a file.

        Raises:
            ArtifactError: the engine is here and cannot read the file.
        """
        engine, reason, threads = engine_of(name), why_not_here(name, onnx), torch.get_num_threads()
        if name == REFERENCE or reason is not None:
            return cls(REFERENCE, reason, partial(onnx_file.logits_of, onnx_file.session(onnx, threads)))
        batch = min(SCORE_BATCH, preprocess.max_batch)
        setting = Setting(engine=name, device=engine.devices[0], threads=threads, batch=batch)
        return cls(name, None, partial(_in_whole_batches, engine.open(Subject(onnx), setting), batch))

    @property
    def title(self) -> str:
        """The engine's name for people."""
        return engine_of(self.engine).title


def _in_whole_batches(session: Session, batch: int, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits `[N, classes]` for images `[N, C, H, W]`: an engine takes batches of one size, which black images fill."""
    filling = np.zeros((-len(inputs) % batch, *inputs.shape[1:]), np.float32)
    batches = np.split(np.concatenate([inputs, filling]), (len(inputs) + len(filling)) // batch)
    return np.concatenate([session.run(each) for each in batches])[: len(inputs)]


def why_not_here(name: str, onnx: Path | None = None) -> str | None:
    """Why an engine cannot compute the file, or any, on this machine; None if it can."""
    engine = engine_of(name)
    return engine.why_not(None if onnx is None else Subject(onnx), engine.devices[0])


def in_engine(
    name: str,
    onnx: Path,
    shipped: Predictions,
    data: Dataset,
    known: "InEngine | None" = None,
    console: Console | None = None,
) -> InEngine:
    """How the file for an engine scores on the test images.

    Args:
        name: the engine.
        onnx: its file.
        shipped: what `model.onnx` predicts.
        data: with the test images.
        known: of an earlier report, which stands if nothing that decides it has changed.
        console: where it is said what is scored.

    Raises:
        ArtifactError: the engine is here and cannot read the file.
    """
    content = files.read_bytes(onnx)
    decides = [
        state_of(name),
        why_not_here(name, onnx),
        files.digest(content),
        files.digest(shipped.classes.tobytes()),
        data.test.fingerprint,
        code_digest(accuracy.__name__, __name__, type(engine_of(name)).__module__),
        environment().model_dump(mode="json", exclude={"commit", "threads"}),
    ]
    if known is not None and known.measured_as == known.digest(decides):
        return known
    opened = Opened.of(name, onnx, data.preprocess)
    if console is not None:
        console.say(f"Scoring {onnx.name} for {engine_of(name).title} in {opened.title}", style="bold")
    predictions = Predictions.by(opened.logits_of, data.test, data.preprocess)
    finite = np.isfinite(predictions.confidence)
    found = InEngine(
        engine=name,
        file=onnx.name,
        size_bytes=len(content),
        sha256=files.digest(content),
        accuracy=Accuracy.of(
            int((predictions.correct & finite).sum()), len(finite), split=data.judged_on, engine=opened.engine
        ),
        same=int(((predictions.classes == shipped.classes) & finite).sum()),
        not_finite=int((~finite).sum()),
        reason=opened.reason,
    )
    return validated_copy(found, measured_as=found.digest(decides))
