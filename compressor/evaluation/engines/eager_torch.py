"""Eager torch: the network before export, in float."""

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.errors import ArtifactError
from compressor.evaluation.engines.base import Engine, Session, Subject, clocked, random_batch
from compressor.evaluation.setting import Setting


class EagerTorch(Engine):
    """On the CPU, timed by the clock; on a GPU, by events in its own stream, with the batch already there."""

    name: ClassVar[str] = "torch"
    title: ClassVar[str] = "torch"
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def why_not(self, subject: Subject | None, device: str) -> str | None:
        if device == "cuda" and not torch.cuda.is_available():
            return "no CUDA device"
        if subject is not None and subject.model is None:
            return "an ONNX file does not run in torch"
        if subject is not None and subject.model is not None and subject.model.quantized:
            return "a fake-quantized network in eager torch is not what ships"
        return None

    def open(self, subject: Subject, setting: Setting) -> Session:
        if subject.model is None:
            raise ArtifactError(f"{subject.onnx} is an ONNX file, which does not run in torch")
        return _Opened(
            subject.model.copy_network(), subject.model.preprocess.input_shape(setting.batch), setting.device
        )


class _Opened(Session):
    def __init__(self, network: torch.nn.Module, shape: tuple[int, ...], device: str) -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device)
        self.inputs = random_batch(shape).to(self.device)

    @torch.inference_mode()
    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.network(torch.from_numpy(inputs).to(self.device)).cpu().numpy()
        return logits

    @torch.inference_mode()
    def seconds(self) -> float:
        if self.device.type == "cpu":
            return clocked(lambda: self.network(self.inputs))
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self.network(self.inputs)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
