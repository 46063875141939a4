"""A file in the engine that it is made for: how accurate it is there.

Where an engine is not installed, ONNX Runtime computes its file instead, which shows what its grids cost.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.data.dataset import Dataset
from compressor.data.preprocess import Preprocess
from compressor.environment import environment
from compressor.evaluation import accuracy
from compressor.evaluation.accuracy import SCORE_BATCH, Accuracy, LogitsOf, Predictions
from compressor.evaluation.engines.base import Session, Subject, engine_of
from compressor.evaluation.figures import Count, Figures, Total
from compressor.evaluation.setting import REFERENCE, Setting
from compressor.export import onnx_file
from compressor.storage import files
from compressor.storage.code import code_digest


class InEngine(Figures):
    """How a file for an engine scores on the test images; `same` are in the class that `model.onnx` puts them in.

    `accuracy.engine` is the one that computed them: another than `engine` where that cannot run here, for a `reason`.
    """

    engine: str
    file: str
    size_bytes: Total
    accuracy: Accuracy
    same: Count
    reason: str | None = None
    measured_as: str = ""


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


def in_engine(name: str, onnx: Path, shipped: Predictions, data: Dataset, known: "InEngine | None" = None) -> InEngine:
    """How the file for an engine scores on the test images.

    Args:
        name: the engine.
        onnx: its file.
        shipped: what `model.onnx` predicts.
        data: with the test images.
        known: of an earlier report, which stands if nothing that decides it has changed.

    Raises:
        ArtifactError: the engine is here and cannot read the file.
    """
    content = files.read_bytes(onnx)
    decides = [
        name,
        why_not_here(name, onnx),
        files.digest(content),
        files.digest(shipped.classes.tobytes()),
        data.test.fingerprint,
        code_digest(accuracy.__name__, __name__, type(engine_of(name)).__module__),
        environment().model_dump(mode="json", exclude={"commit", "threads"}),
    ]
    measured_as = files.digest_json(decides)
    if known is not None and known.measured_as == measured_as:
        return known
    opened = Opened.of(name, onnx, data.preprocess)
    predictions = Predictions.by(opened.logits_of, data.test, data.preprocess)
    correct, total = int(predictions.correct.sum()), len(predictions.correct)
    return InEngine(
        engine=name,
        file=onnx.name,
        size_bytes=len(content),
        accuracy=Accuracy.of(correct, total, split=data.judged_on, engine=opened.engine),
        same=int((predictions.classes == shipped.classes).sum()),
        reason=opened.reason,
        measured_as=measured_as,
    )
