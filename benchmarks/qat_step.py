"""How long a training step takes with int8 rounding in place, against the same step of the network in float.

Forward pass, backward pass and optimizer, on random images, in alternation; both in bf16 autocast where the processor
has it, as `precision: auto` trains.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from coverage import images_of
from torch import nn

from compressor import Context, Dataset
from compressor.data.preprocess import Preprocess
from compressor.environment import environment
from compressor.quantization import QuantizedNetwork, calibrate, quantize_network
from compressor.storage import files
from compressor.training.loop import autocast

RESULT = Path(__file__).parent / "results" / "qat_step.json"
STEPS, WARMUP = 20, 3
NETWORKS = (("resnet20", 32, 128), ("torchvision:resnet18", 96, 32), ("torchvision:mobilenet_v2", 96, 32))


def main() -> None:
    rows = []
    for name, side, batch in NETWORKS:
        torch.manual_seed(0)
        preprocess = Preprocess(size=(side, side), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
        images = images_of(2, 0, side)
        data = Dataset(images, images, images, images, tuple("0123456789"), preprocess)
        network = Context(data=data).new_model(name, {}).copy_network()
        inputs = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(10, (batch,))
        steps = {
            "float": Step(network, inputs, labels),
            "int8": Step(quantized(network, inputs), inputs, labels),
            "int8, learned scales": Step(quantized(network, inputs, learned=True), inputs, labels),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in steps}
        for _ in range(WARMUP + STEPS):
            for kind, step in steps.items():
                started = time.perf_counter()
                step()
                seconds[kind].append(time.perf_counter() - started)
        medians = {kind: statistics.median(each[WARMUP:]) for kind, each in seconds.items()}
        row: dict[str, Any] = {"network": name, "pixels": side, "batch": batch, "float_ms": 1e3 * medians["float"]}
        for kind in ("int8", "int8, learned scales"):
            ratios = [a / b for a, b in zip(seconds[kind][WARMUP:], seconds["float"][WARMUP:], strict=True)]
            low, *_, high = statistics.quantiles(ratios, n=10)
            row[kind] = {"ratio": statistics.median(ratios), "tenth": low, "nine_tenths": high}
        rows.append(row)
        print(row)
    result = {"environment": environment().model_dump(), "steps": STEPS, "rows": rows}
    files.write_text(RESULT, json.dumps(result, indent=1) + "\n")


class Step:
    """One step of training a network."""

    def __init__(self, network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.network = network.to(memory_format=torch.channels_last).train().requires_grad_(True)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)
        self.inputs, self.labels = inputs, labels

    def __call__(self) -> None:
        with autocast(torch.device("cpu"), "auto"):
            logits = self.network(self.inputs)
        self.optimizer.zero_grad()
        F.cross_entropy(logits.float(), self.labels).backward()
        self.optimizer.step()


def quantized(network: nn.Module, inputs: torch.Tensor, *, learned: bool = False) -> QuantizedNetwork:
    """The network with calibrated quantizers."""
    found = quantize_network(network, tuple(inputs[:2].shape))  # type: ignore[arg-type]
    calibrate(found, [inputs], "min_max", 1.0)
    for quantizer in found.activation_quantizers.values() if learned else ():
        quantizer.learn_scale()
    return found


if __name__ == "__main__":
    main()
