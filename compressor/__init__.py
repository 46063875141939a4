"""From a trained vision network to a small, fast int8 ONNX file, measured at every step."""

from compressor.data.dataset import Augment, Data, Dataset
from compressor.data.preprocess import Preprocess
from compressor.models.artifact import OnnxModel, TorchModel, load
from compressor.pipeline.pipeline import Measure, Pipeline
from compressor.pipeline.stage import Context, Stage
from compressor.runs.runner import run

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
