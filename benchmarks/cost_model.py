"""Whether the sum of what layers take, each measured by itself, is what a network takes.

Random prunings of three networks, in int8: every group of channels keeps a random multiple of 16. The layers of each
are measured in ONNX Runtime, one by one, and their sum is compared with the time of the exported file, the median of
sessions in between. One thread, one image; on a quiet machine.
"""

import itertools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coverage import images_of

from compressor import Context, Dataset, TorchModel
from compressor.data.preprocess import Preprocess
from compressor.environment import environment
from compressor.evaluation import footprint_of, layers_of
from compressor.evaluation.costs.layers import measure
from compressor.export import onnx_file
from compressor.models import Widths
from compressor.pruning import Groups
from compressor.storage import files
from stages import Quantize

RESULT = Path(__file__).parent / "results" / "cost_model.json"
NETWORKS = {"resnet56": 32, "torchvision:mobilenet_v2": 96, "torchvision:resnet18": 96}  # pixels
ROUND_TO = 16
EVERY, SECONDS = 6, 0.25  # after so many visits to layers, a file is timed for so long in a new session


def main(per_network: int) -> None:
    rows: list[dict[str, Any]] = []
    for name, side in NETWORKS.items():
        preprocess = Preprocess(size=(side, side), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
        images = images_of(16, 0, side)
        nothing = images.take(torch.arange(0))
        context = Context(data=Dataset(images, nothing, images, nothing, tuple("0123456789"), preprocess))
        model = context.new_model(name, {})
        groups = Groups(model.network, preprocess.input_shape(2))
        for seed in range(per_network):
            rows.append({"network": name, "seed": seed, **compared(pruned(model, groups, seed), context)})
            print(rows[-1], flush=True)
    errors = np.array([row["predicted_us"] / row["measured_us"] - 1 for row in rows])
    about = {
        "environment": environment().model_dump(),
        "median_error": round(float(np.median(np.abs(errors))), 4),
        "within_12_percent": round(float((np.abs(errors) <= 0.12).mean()), 4),
        "rows": rows,
    }
    files.write_json(RESULT, about)


def pruned(model: TorchModel, groups: Groups, seed: int) -> TorchModel:
    """The network with a random number of random channels left in each group."""
    generator = np.random.default_rng(seed)
    removal = {}
    for layer, group in groups.by_layer.items():
        width = len(group) * group.parts
        kept = ROUND_TO * int(generator.integers(1, max(width // ROUND_TO, 1) + 1)) // group.parts
        removal[layer] = torch.from_numpy(generator.permutation(len(group))[kept:])
    network = groups.without(removal)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    return model.with_network(network, Widths.between(model.network, shapes), details={})


def compared(model: TorchModel, context: Context) -> dict[str, Any]:
    """What the int8 file takes, in microseconds, and what its layers do; timed in turns, since machines change."""
    shape = context.data.preprocess.input_shape(2)
    content = Quantize(mode="ptq", observer="min_max").run(model, context).to_onnx("cost").content
    layers = layers_of(model.network, shape, "int8")
    visits, measured = itertools.count(), list[float]()

    def time_file(_: int) -> None:
        if next(visits) % EVERY == 0:
            measured.append(microseconds(content, shape))

    costs = measure(layers, footprint_bytes=footprint_of(layers), advance=time_file)
    return {
        "macs": model.counts.macs,
        "measured_us": round(float(np.median(measured)), 1),
        "sessions_us": [round(each, 1) for each in measured],
        "predicted_us": round(sum(costs[layer] for layer in layers), 1),
        "different_layers": len(costs),
    }


def microseconds(content: bytes, shape: tuple[int, ...]) -> float:
    """The median of the time that a new session takes."""
    session = onnx_file.session(content)
    image = np.random.default_rng(0).standard_normal((1, *shape[1:]), dtype=np.float32)
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        started = time.perf_counter()
        onnx_file.logits_of(session, image)
        times.append(time.perf_counter() - started)
    return 1e6 * float(np.median(times[len(times) // 10 :]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 14)
