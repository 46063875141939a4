"""ONNX Runtime, which also scores every file."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.evaluation.engines.base import Engine, Session, Subject, clocked, random_batch
from compressor.evaluation.setting import Setting
from compressor.export import onnx_file


class OnnxRuntime(Engine):
    """On the CPU, or on a GPU if onnxruntime-gpu is installed; GPU times include copies to and from it."""

    name: ClassVar[str] = "onnxruntime"
    title: ClassVar[str] = "ONNX Runtime"
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def why_not(self, subject: Subject | None, device: str) -> str | None:
        if device == "cuda" and not onnx_file.has_cuda():
            return "this ONNX Runtime has no CUDA provider (onnxruntime-gpu has)"
        return None

    def open(self, subject: Subject, setting: Setting) -> Session:
        return _Opened(subject, setting)


class _Opened(Session):
    def __init__(self, subject: Subject, setting: Setting) -> None:
        self.session = onnx_file.session(subject.onnx, threads=setting.threads, device=setting.device)
        self.input, sides = onnx_file.input_of(self.session, setting.batch, source=subject.onnx)
        self.feed = {self.input: random_batch((setting.batch, *sides)).numpy()}
        onnx_file.run(self.session, self.feed, source=subject.onnx)  # whether it can, before it is timed
        if setting.device != "cpu":
            self.on_cpu = onnx_file.operators_on_cpu(subject.onnx, self.feed, setting.device)

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.session.run(None, {self.input: inputs})[0]
        return logits

    def seconds(self) -> float:
        return clocked(lambda: self.session.run(None, self.feed))
