"""ONNX Runtime, which also scores every file, and TensorRT, which it can hand a file to."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.evaluation.engines.base import Engine, Session, Subject, clocked, random_batch
from compressor.evaluation.setting import Setting
from compressor.export import onnx_file, reading


class OnnxRuntime(Engine):
    """On the CPU, or on a GPU if onnxruntime-gpu is installed; GPU times include copies to and from it."""

    name: ClassVar[str] = "onnxruntime"
    title: ClassVar[str] = "ONNX Runtime"
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def why_not(self, subject: Subject | None, device: str) -> str | None:
        return onnx_file.why_not_on("cuda") if device == "cuda" else None

    def open(self, subject: Subject, setting: Setting) -> Session:
        return _Opened(subject, setting, setting.device)


class TensorRT(Engine):
    """NVIDIA's, as an execution provider of ONNX Runtime, which computes what it leaves by CUDA or on the CPU."""

    name: ClassVar[str] = "tensorrt"
    title: ClassVar[str] = "TensorRT"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    def why_not(self, subject: Subject | None, device: str) -> str | None:
        if device not in self.devices:
            return "TensorRT computes on GPUs (cuda) only"
        if (reason := onnx_file.why_not_on("tensorrt")) is not None:
            return reason
        if subject is not None and not reading.is_signed(reading.read(subject.onnx)[1]):
            return "TensorRT reads no integers but int8; {stage: export, for: [tensorrt]} writes a file for it"
        return None

    def open(self, subject: Subject, setting: Setting) -> Session:
        return _Opened(subject, setting, "tensorrt")


class _Opened(Session):
    def __init__(self, subject: Subject, setting: Setting, device: str) -> None:
        self.session = onnx_file.session(subject.onnx, threads=setting.threads, device=device)
        self.input, sides = onnx_file.input_of(self.session, setting.batch, source=subject.onnx)
        self.feed = {self.input: random_batch((setting.batch, *sides)).numpy()}
        onnx_file.run(self.session, self.feed, source=subject.onnx)  # whether it can, before it is timed
        if device != "cpu":
            self.on_cpu = onnx_file.operators_elsewhere(subject.onnx, self.feed, device)
        self.source = subject.onnx

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return onnx_file.run(self.session, {self.input: inputs}, source=self.source)

    def seconds(self) -> float:
        return clocked(lambda: self.session.run(None, self.feed))
