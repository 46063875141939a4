"""From a trained vision network to a small, fast int8 ONNX file, measured at every step."""

import os

import lazy_loader

for _switch, _value in (
    ("ORT_DISABLE_TELEMETRY", "1"),
    ("MLFLOW_DISABLE_TELEMETRY", "1"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("HF_UPDATE_DOWNLOAD_COUNTS", "0"),
):
    os.environ.setdefault(_switch, _value)  # each library reads its own when it is imported

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
