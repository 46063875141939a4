"""The layers that a network runs for one image, as ONNX Runtime executes them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.evaluation.costs.layers import Layer, Operator, Precision
from compressor.export import IN_MULTIPLE, MIN_OUT
from compressor.tracing import running_layers

aten = torch.ops.aten


class Operation(NamedTuple):
    """A layer as the network has it, the module whose forward runs it, by name, and whether its input is the image."""

    module: str
    layer: Layer
    reads_image: bool = False

    def exported(self) -> Layer:
        """The layer as files have it: to an image that an integer convolution reads, channels of zeros are added."""
        layer = self.layer
        padded = self.reads_image and layer.precision == "int8" and layer.outputs >= MIN_OUT
        return replace(layer, inputs=layer.inputs + -layer.inputs % IN_MULTIPLE) if padded else layer


@torch.no_grad()
def operations_of(
    network: nn.Module, input_shape: tuple[int, int, int, int], precision: Precision
) -> tuple[Operation, ...]:
    """The layers that run for one image, in order.

    Activations and norms are part of the convolution before them. What no table knows is left out: products,
    normalisation of layers, attention's own products, convolutions that are transposed, dilated or of one dimension.

    Args:
        network: in eval mode, on the CPU.
        input_shape: `(N, C, H, W)`.
        precision: of all layers.
    """
    image = torch.zeros((1, *input_shape[1:]))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it hides the layers of attention
    try:
        with running_layers(network) as running, _Recorder(image, precision, running) as recorder:
            logits = network(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    session = Layer("input", precision, image.shape[1], logits.shape[1], _pair(image.shape[2:]))
    return Operation("", session), *recorder.operations


def layers_of(network: nn.Module, input_shape: tuple[int, int, int, int], precision: Precision) -> list[Layer]:
    """The layers of its file, which run for one image; arguments as in `operations_of`."""
    return [operation.exported() for operation in operations_of(network, input_shape, precision)]


class _Recorder(TorchDispatchMode):
    def __init__(self, image: Tensor, precision: Precision, running: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.image, self.precision, self.running = image, precision, running
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        match func:
            case aten.convolution.default:
                x, weight, _, stride, padding, dilation, transposed, _, groups = args
                if x.dim() == 4 and not transposed and set(dilation) == {1}:
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
        size = (len(x), 1) if operator == "linear" else _pair(x.shape[2:])
        windows = _pair(kernel), _pair(stride), _pair(padding)
        layer = Layer(operator, self.precision, inputs, outputs, size, *windows, groups)
        reads_image = operator == "conv" and x is self.image
        self.operations.append(Operation(self.running[-1] if self.running else "", layer, reads_image))


def _alike(x: Any, y: Any) -> bool:
    return isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() == 4 and x.shape == y.shape


def _windows(args: Sequence[Any]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Kernel, stride and padding of a pooling operator."""
    kernel = args[1]
    return kernel, args[2] if len(args) > 2 and args[2] else kernel, args[3] if len(args) > 3 else (0,)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return int(values[0]), int(values[-1])
