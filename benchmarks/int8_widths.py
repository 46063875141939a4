"""One 3x3 convolution, c channels in and out on 16x16 images: int8 against float in ONNX Runtime, 1 thread, batch 1."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from compressor import Context, Dataset, Preprocess, TorchModel
from compressor.data import InMemory, Split
from compressor.environment import environment
from compressor.evaluation import Pair, Setting, Subject, in_sessions
from compressor.models.architectures import Architecture
from compressor.storage import files
from stages import Quantize

CHANNELS = (8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128)
DEPTH = 8  # convolutions in a row, so that the rest of the file hardly counts
SETTING = Setting(engine="onnxruntime", device="cpu", threads=1, batch=1)
RESULT = Path(__file__).parent / "results" / "int8_widths.json"


class Convolutions(nn.Sequential):
    """Three channels to c, then `DEPTH` times c to c."""

    def __init__(self, channels: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 1), nn.ReLU()]
        for _ in range(DEPTH):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def main() -> None:
    preprocess = Preprocess(size=(16, 16), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    pixels = torch.randint(0, 256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = Split.of(InMemory(pixels, torch.arange(64) % 10))
    labels = tuple("0123456789")
    context = Context(data=Dataset(split, split, split, split, labels, preprocess))
    name = "benchmarks.int8_widths:Convolutions"
    with tempfile.TemporaryDirectory() as folder:
        paths: dict[int, list[Path]] = {channels: [] for channels in CHANNELS}  # int8, float
        for channels in CHANNELS:
            architecture = Architecture(model=name, arguments={"channels": channels}, num_classes=10, in_channels=3)
            model = TorchModel(Convolutions(channels), architecture, preprocess, labels)
            for kind, each in (("int8", Quantize(mode="ptq").run(model, context)), ("float", model)):
                paths[channels].append(Path(folder) / f"{channels}-{kind}.onnx")
                files.write_bytes(paths[channels][-1], export(each))
        times = in_sessions([Pair(*map(Subject, paths[channels]), SETTING) for channels in CHANNELS])
    rows = []
    for channels, latency in zip(CHANNELS, times, strict=True):
        rows.append({"channels": channels, "macs": channels**2 * 9 * 256 * DEPTH, **latency.model_dump()})
        print(f"{channels:4d} channels: int8 {latency.median_ms:.3f} ms, {latency.speedup:.2f}x faster than float")
    RESULT.parent.mkdir(exist_ok=True)
    files.write_json(RESULT, {"environment": environment().model_dump(mode="json"), "rows": rows})


def export(model: TorchModel) -> bytes:
    from compressor.export.onnx_file import export_onnx

    return export_onnx(model.network, model.preprocess, {})


if __name__ == "__main__":
    main()
