"""From a trained vision network to a small, fast int8 ONNX file, measured at every step."""

from compressor.artifact import OnnxModel, TorchModel, load
from compressor.data import Augment, Data, Dataset
from compressor.pipeline import Measure, Pipeline
from compressor.preprocess import Preprocess
from compressor.runner import run
from compressor.stage import Context, Stage

__all__ = [
    "Augment",
    "Context",
    "Data",
    "Dataset",
    "Measure",
    "OnnxModel",
    "Pipeline",
    "Preprocess",
    "Stage",
    "TorchModel",
    "load",
    "run",
]
