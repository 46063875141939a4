"""Another engine: ONNX's own reference implementation, in numpy."""

import time
from typing import ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from compressor import Engine
from compressor.evaluation import Session, Setting, Subject


class Reference(Engine):
    """Slow, and correct by definition."""

    name: ClassVar[str] = "reference"
    title: ClassVar[str] = "ONNX's reference"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def why_not(self, subject: Subject | None, device: str) -> str | None:
        if subject is not None and subject.model is not None and subject.model.quantized:
            return "it has no DequantizeLinear of this opset"
        return None if device == "cpu" else "numpy computes on the CPU"

    def open(self, subject: Subject, setting: Setting) -> Session:
        return Opened(subject, setting)


class Opened(Session):
    def __init__(self, subject: Subject, setting: Setting) -> None:
        model = onnx.load(subject.onnx)
        self.evaluator = ReferenceEvaluator(model)
        sides = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim[1:]]
        self.inputs = np.zeros((setting.batch, *sides), np.float32)

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.evaluator.run(None, {"input": inputs})[0]
        return logits

    def seconds(self) -> float:
        start = time.perf_counter()
        self.run(self.inputs)
        return time.perf_counter() - start
