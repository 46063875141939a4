"""How long quantizing MobileNetV2 on 256 images of 224 pixels takes, against ONNX Runtime's own `quantize_static`.

Ours begins with a network in torch and ends with a quantized one; ONNX Runtime's begins with the float file and ends
with a quantized file. Exporting counts on neither side. Run in alternation.
"""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coverage import images_of
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from compressor import Context, Dataset
from compressor.data.preprocess import Preprocess
from compressor.environment import environment
from compressor.storage import files
from stages import Quantize

IMAGES, REPEATS = 256, 3
RESULT = Path(__file__).parent / "results" / "quantize_speed.json"
MODEL = "torchvision:mobilenet_v2"


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The images one by one, as its documentation shows."""

    def __init__(self, inputs: torch.Tensor) -> None:
        self.inputs: Iterator[dict[str, Any]] = iter({"input": image[None].numpy()} for image in inputs)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.inputs, None)


def by_onnxruntime(ready: Path, inputs: torch.Tensor, target: Path) -> None:
    """`quantize_static` as its documentation recommends for x86, on normalised images `[N, C, H, W]`."""
    quantize_static(
        ready,
        target,
        Reader(inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def main() -> None:
    logging.disable(logging.WARNING)
    preprocess = Preprocess(size=(224, 224), channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    images = images_of(IMAGES, 0, 224)
    nothing = images.take(torch.arange(0))
    data = Dataset(images, nothing, images, nothing, tuple("0123456789"), preprocess)
    context = Context(data=data)
    model = context.new_model(MODEL, {})
    inputs = preprocess.normalise(images.images)

    with tempfile.TemporaryDirectory() as folder:
        whole, ready, target = (Path(folder) / f"{name}.onnx" for name in ("whole", "ready", "int8"))
        whole.write_bytes(model.to_onnx("speed").content)
        quant_pre_process(whole, ready)

        def theirs() -> None:
            by_onnxruntime(ready, inputs, target)

        ways: dict[str, Callable[[], Any]] = {
            "quantize_static, min-max": theirs,
            "quantize, min_max": lambda: Quantize(mode="ptq", observer="min_max").run(model, context),
            "quantize, histogram": lambda: Quantize(mode="ptq").run(model, context),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        ways["quantize, min_max"]()  # imports
        for _ in range(REPEATS):
            for name, way in ways.items():
                started = time.monotonic()
                way()
                seconds[name].append(round(time.monotonic() - started, 2))
                print(name, seconds[name][-1], flush=True)
    base = float(np.median(seconds["quantize_static, min-max"]))
    files.write_text(
        RESULT,
        json.dumps(
            {
                "environment": environment().model_dump(),
                "network": MODEL,
                "images": IMAGES,
                "repeats": REPEATS,
                "seconds": seconds,
                "median_ratio": {name: round(float(np.median(each)) / base, 2) for name, each in seconds.items()},
            },
            indent=1,
        )
        + "\n",
    )


if __name__ == "__main__":
    main()
