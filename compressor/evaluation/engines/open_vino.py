"""OpenVINO, which runs the same file on integers, too; installed by the extra `openvino`."""

import sys
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from compressor.errors import ArtifactError, first_line
from compressor.evaluation.engines.base import Engine, Session, Subject, clocked, random_batch
from compressor.evaluation.setting import Setting
from compressor.export import onnx_file


class OpenVino(Engine):
    """On the CPU, set up for latency: one batch at a time."""

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    package: ClassVar[str] = "openvino"

    def why_not(self, subject: Subject | None, device: str) -> str | None:
        if device not in self.devices:
            return "OpenVINO is timed on the CPU only"
        if find_spec("openvino") is None:
            return "OpenVINO is not installed (pip install 'compressor[openvino]')"
        return None

    def open(self, subject: Subject, setting: Setting) -> Session:
        return _Opened(subject, setting)


class _Opened(Session):
    def __init__(self, subject: Subject, setting: Setting) -> None:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # importing OpenVINO would send
        import openvino

        _, sides = onnx_file.input_of(onnx_file.session(subject.onnx), setting.batch, source=subject.onnx)
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": setting.threads,
            "INFERENCE_PRECISION_HINT": "f32",  # as the file says, not bfloat16 where the processor has it
        }
        try:
            core = openvino.Core()
            model = core.read_model(str(subject.onnx))
            model.reshape([setting.batch, *sides])
            compiled = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise ArtifactError(f"OpenVINO cannot open {subject.onnx}: {first_line(error)}") from error
        self.request: Any = compiled.create_infer_request()
        self.feed = random_batch((setting.batch, *sides)).numpy()
        self.source = subject.onnx

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            logits: NDArray[np.float32] = next(iter(self.request.infer([inputs]).values()))
        except RuntimeError as error:
            raise ArtifactError(f"OpenVINO cannot run {self.source}: {first_line(error)}") from error
        return logits

    def seconds(self) -> float:
        return clocked(lambda: self.request.infer([self.feed]))
