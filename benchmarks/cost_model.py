"""Whether the sum of what layers take, each measured by itself, is what a network takes.

Random prunings of three networks, in int8: every group of channels keeps a random multiple of 16. The layers of each
are measured in ONNX Runtime (`layer_costs.py`), and their sum is compared with the time of the exported file. One
thread, one image; on a quiet machine.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coverage import images_of
from layer_costs import Layer, Operator, Precision, measure
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compressor import Context, Dataset, TorchModel
from compressor.data.preprocess import Preprocess
from compressor.environment import environment
from compressor.export import onnx_file
from compressor.export.lowering import IN_MULTIPLE, MIN_OUT
from compressor.models import Widths
from compressor.pruning import Groups
from compressor.storage import files
from stages import Quantize

RESULT = Path(__file__).parent / "results" / "cost_model.json"
NETWORKS = {"resnet56": 32, "torchvision:mobilenet_v2": 96, "torchvision:resnet18": 96}  # pixels
ROUND_TO = 16
SECONDS = 1.0  # of timing a file
aten = torch.ops.aten


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
    files.write_text(RESULT, json.dumps(about, indent=1) + "\n")


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
    """What the int8 file takes, in microseconds, and what its layers do; timed before and after them."""
    shape = context.data.preprocess.input_shape(2)
    content = Quantize(mode="ptq", observer="min_max").run(model, context).to_onnx("cost").content
    layers = layers_of(model.network, shape, "int8")
    session = onnx_file.session(content)
    before = microseconds(session, shape)
    started = time.monotonic()
    costs = measure(layers, footprint_bytes=sum(layer.weight_bytes for layer in layers))
    seconds = time.monotonic() - started
    measured = (before + microseconds(session, shape)) / 2
    return {
        "macs": model.counts.macs,
        "measured_us": round(measured, 1),
        "predicted_us": round(sum(costs[layer] for layer in layers), 1),
        "different_layers": len(costs),
        "seconds": round(seconds, 1),
    }


def microseconds(session: Any, shape: tuple[int, ...]) -> float:
    """The median of the session's time."""
    image = np.random.default_rng(0).standard_normal((1, *shape[1:]), dtype=np.float32)
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        started = time.perf_counter()
        onnx_file.logits_of(session, image)
        times.append(time.perf_counter() - started)
    return 1e6 * float(np.median(times[len(times) // 10 :]))


@torch.no_grad()
def layers_of(network: nn.Module, input_shape: tuple[int, int, int, int], precision: Precision) -> list[Layer]:
    """The layers that run for one image, in order, as ONNX Runtime executes them.

    Activations and norms are part of the convolution before them. What no table knows is left out: products,
    normalisation of layers, attention.

    Args:
        network: in eval mode.
        input_shape: `(N, C, H, W)`.
        precision: of all layers.
    """
    image = torch.zeros((1, *input_shape[1:]), device=next(network.parameters()).device)
    with _Recorder(image, precision) as recorder:
        logits = network(image)
    return [Layer("input", precision, image.shape[1], logits.shape[1], _pair(image.shape[2:])), *recorder.layers]


class _Recorder(TorchDispatchMode):
    def __init__(self, image: Tensor, precision: Precision) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.image, self.precision = image, precision
        self.layers: list[Layer] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        match func:
            case aten.convolution.default:
                x, weight, _, stride, padding, _, _, _, groups = args
                self._add("conv", x, made, weight.shape[2:], stride, padding, groups)
            case aten.addmm.default:
                self._add("linear", args[1], made)
            case aten.mm.default:
                self._add("linear", args[0], made)
            case aten.add.Tensor | aten.add_.Tensor if _alike(*args[:2]):
                self._add("add", args[0], made)
            case aten.max_pool2d_with_indices.default:
                self._add("max_pool", args[0], made[0], *_windows(args))
            case aten.avg_pool2d.default:
                self._add("average_pool", args[0], made, *_windows(args))
            case aten.mean.dim | aten._adaptive_avg_pool2d.default if args[0].dim() == 4:
                self._add("global_average_pool", args[0], made)
        return made

    def _add(
        self,
        operator: Operator,
        x: Tensor,
        made: Tensor,
        kernel: Sequence[int] = (1,),
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        groups: int = 1,
    ) -> None:
        inputs, outputs = x.shape[1], made.shape[1]
        if operator == "conv" and x is self.image and self.precision == "int8" and outputs >= MIN_OUT:
            inputs += -inputs % IN_MULTIPLE  # as exported files pad it
        size = (len(x), 1) if operator == "linear" else _pair(x.shape[2:])
        windows = _pair(kernel), _pair(stride), _pair(padding)
        self.layers.append(Layer(operator, self.precision, inputs, outputs, size, *windows, groups))


def _alike(x: Any, y: Any) -> bool:
    return isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() == 4 and x.shape == y.shape


def _windows(args: Sequence[Any]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Kernel, stride and padding of a pooling operator."""
    kernel = args[1]
    return kernel, args[2] if len(args) > 2 and args[2] else kernel, args[3] if len(args) > 3 else (0,)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return int(values[0]), int(values[-1])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 14)
