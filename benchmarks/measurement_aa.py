"""A file timed against itself, 20 times each: how far the ratio of equal files is from 1."""

import tempfile
from pathlib import Path

import torch

from compressor import Context, Preprocess, TorchModel
from compressor.data import Dataset, InMemory, Split
from compressor.environment import environment
from compressor.evaluation import bench
from compressor.models.architectures import Architecture
from compressor.storage import files
from stages import Quantize

TRIES = 20
WITHIN = 0.03
RESULT = Path(__file__).parent / "results" / "measurement_aa.json"


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, model in networks().items():
            path = Path(folder) / f"{name}.onnx"
            files.write_bytes(path, model.to_onnx("benchmark").content)
            entries = [bench(path).latency[0] for _ in range(TRIES)]
            off = sorted(abs(entry.speedup - 1) for entry in entries)
            rows.append(
                {
                    "model": name,
                    "tries": TRIES,
                    "within_3_percent": sum(share <= WITHIN for share in off),
                    "interval_holds_1": sum(entry.speedup_low <= 1 <= entry.speedup_high for entry in entries),
                    "median_off": off[TRIES // 2],
                    "largest_off": off[-1],
                    "latency": [entry.model_dump(mode="json") for entry in entries],
                }
            )
            print({key: value for key, value in rows[-1].items() if key != "latency"})
    files.write_json(RESULT, {"environment": environment().model_dump(mode="json"), "rows": rows})


def networks() -> dict[str, TorchModel]:
    """A small and a large float network, and the small one in int8; untrained, which does not change the time."""
    preprocess = Preprocess(size=(32, 32), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    pixels = torch.randint(0, 256, (64, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = Split.of(InMemory(pixels, torch.arange(64) % 10))
    labels = tuple("0123456789")
    small, large = (
        TorchModel(architecture.build(), architecture, preprocess, labels)
        for architecture in (
            Architecture(model=name, arguments={}, num_classes=10, in_channels=3) for name in ("resnet20", "resnet56")
        )
    )
    context = Context(data=Dataset(split, split, split, split, labels, preprocess))
    return {
        "resnet20-int8": Quantize(mode="ptq").run(small, context),
        "resnet20-float": small,
        "resnet56-float": large,
    }


if __name__ == "__main__":
    main()
