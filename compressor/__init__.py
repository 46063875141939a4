"""From a trained vision network to a small, fast int8 ONNX file, measured at every step."""

import os

import lazy_loader

for _switch in ("ORT_DISABLE_TELEMETRY", "MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_switch, "1")  # each library reads its own when it is imported

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
