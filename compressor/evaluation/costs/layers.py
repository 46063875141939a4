"""How long single layers take in ONNX Runtime on this machine; needs numpy and onnxruntime alone."""

import json
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Operator = Literal["conv", "linear", "add", "max_pool", "average_pool", "global_average_pool", "input"]
Precision = Literal["int8", "float32"]
Array = NDArray[Any]

VISITS = 3  # to every layer, with all others in between: a burst of other work then spoils one at most
ROUNDS, VISIT_SECONDS, ROUGH_ROUNDS = 30, 0.1, 6
DIFFERENCE_SECONDS = 2e-4  # of the two chains, if that does not take too many layers
FEWEST, MOST = 2, 16  # layers that the longer chain has more
LARGE_BYTES = 2**26  # of weights: one layer more is enough, and an ONNX file holds no more than 2 GB
WARM_UP = 5  # runs
POOLS = ("max_pool", "average_pool", "global_average_pool")
STEP = np.float32(0.025)  # between the integers of every activation
IR_VERSION, OPSET = 9, 18
SCHEMA = 1  # of a table
TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6}  # as TensorProto numbers them


@dataclass(frozen=True, order=True)
class Layer:
    """What decides how long a layer takes: its channels, the height and width of its input, and its windows.

    `add` adds two tensors. `input` is the least that a network for such images takes; its outputs are classes.
    """

    operator: Operator
    precision: Precision
    inputs: int
    outputs: int
    size: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image, `[1, C, H, W]`, or of the rows of a linear layer, `[rows, C]`."""
        return (self.size[0], self.inputs) if self.operator == "linear" else (1, self.inputs, *self.size)

    @property
    def output_size(self) -> tuple[int, int]:
        """The height and width of its output."""
        if self.operator == "global_average_pool":
            return 1, 1
        height, width = (
            (side + 2 * padding - kernel) // stride + 1
            for side, padding, kernel, stride in zip(self.size, self.padding, self.kernel, self.stride, strict=True)
        )
        return height, width

    @property
    def macs(self) -> int:
        """Its multiply-adds; 0 if it is neither a convolution nor linear."""
        if self.operator == "linear":
            return self.size[0] * self.inputs * self.outputs
        if self.operator != "conv":
            return 0
        windows = self.output_size[0] * self.output_size[1] * self.kernel[0] * self.kernel[1]
        return windows * self.outputs * self.inputs // self.groups

    @property
    def weight_bytes(self) -> int:
        """The size of its weights."""
        if self.operator not in ("conv", "linear"):
            return 0
        return self._bytes(self.outputs * (self.inputs // self.groups) * self.kernel[0] * self.kernel[1])

    @property
    def output_bytes(self) -> int:
        """The size of its output for one image; `input` makes none that stays."""
        if self.operator == "input":
            return 0
        rows = self.size[0] if self.operator == "linear" else self.output_size[0] * self.output_size[1]
        return self._bytes(rows * self.outputs)

    def _bytes(self, count: int) -> int:
        return count if self.precision == "int8" else 4 * count

    def in_words(self) -> str:
        """As `int8 conv 3x3, 32 to 64 channels of 16x16`."""
        kind = "depthwise conv" if 1 < self.groups == self.inputs else self.operator.replace("_", " ")
        windows = f" {self.kernel[0]}x{self.kernel[1]}" if self.operator == "conv" else ""
        stride = f" stride {self.stride[0]}" if self.stride[0] > 1 else ""
        return (
            f"{self.precision} {kind}{windows}{stride}, {self.inputs} to {self.outputs} channels of "
            f"{self.size[0]}x{self.size[1]}"
        )

    @property
    def fits_behind_itself(self) -> bool:
        """Whether its output has the shape of its input."""
        return self.inputs == self.outputs and self.size == self.output_size and self.operator != "global_average_pool"


def footprint_of(network: Iterable[Layer]) -> int:
    """The bytes that a network goes through for one image: its weights, and half of its layers' outputs.

    Only half, since the memory of an output is used again once it is read (chosen by measurement).
    """
    return sum(layer.weight_bytes + layer.output_bytes // 2 for layer in network)


def measure(
    layers: Iterable[Layer],
    *,
    footprint_bytes: int = 0,
    threads: int = 1,
    advance: Callable[[int], object] = lambda visits: None,
) -> dict[Layer, float]:
    """The microseconds that each layer takes in a network.

    Args:
        layers: what to measure.
        footprint_bytes: of the network, whose weights and outputs drive one another out of the processor's caches.
        threads: of a session.
        advance: called with 1 after each of the `VISITS` to each layer.
    """
    visits: dict[Layer, list[float]] = {layer: [] for layer in sorted(set(layers))}
    for _ in range(VISITS):
        for layer, seconds in visits.items():
            seconds.append(_visit(layer, footprint_bytes, threads))
            advance(1)
    return {layer: max(1e6 * float(np.median(seconds)), 0.0) for layer, seconds in visits.items()}


def machine() -> dict[str, str]:
    """What the time of a layer depends on, besides the layer."""
    known = Path("/proc/cpuinfo")
    first = known.read_text().partition("\n\n")[0] if known.is_file() else ""
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "instructions": facts.get("flags") or facts.get("Features") or "",
        "onnxruntime": onnxruntime.__version__,
    }


def as_json(microseconds: dict[Layer, float], footprint_bytes: int, threads: int) -> str:
    """A table of what layers take on this machine, as it is kept and handed on."""
    layers = [{"layer": asdict(layer), "microseconds": round(each, 3)} for layer, each in sorted(microseconds.items())]
    about = {"schema": SCHEMA, "machine": machine(), "threads": threads, "footprint_bytes": footprint_bytes}
    lines = ",\n".join(f"  {json.dumps(layer)}" for layer in layers)
    return f'{json.dumps(about, indent=1)[:-2]},\n "layers": [\n{lines}\n ]\n}}\n'


def _visit(layer: Layer, footprint_bytes: int, threads: int) -> float:
    """The seconds that one such layer takes, measured once.

    Two networks differ in a number of equal layers and in nothing else, so the difference of their times is that of the
    layers.
    """
    if layer.operator == "input":
        return float(np.median(_times([_network(layer, 0, more=False)], layer, footprint_bytes, threads)))
    fewest = FEWEST if layer.weight_bytes < LARGE_BYTES else 1
    estimate = _difference(layer, fewest, footprint_bytes, threads, rough=True)
    fitting = footprint_bytes // (2 * layer.weight_bytes) if layer.weight_bytes else MOST
    count = int(np.clip(DIFFERENCE_SECONDS / max(estimate, 1e-7), fewest, max(min(fitting, MOST), fewest)))
    return _difference(layer, count, footprint_bytes, threads)


def _difference(layer: Layer, count: int, footprint_bytes: int, threads: int, rough: bool = False) -> float:
    few, many = _times(networks(layer, count), layer, footprint_bytes, threads, rough)
    return float(np.median(many - few)) / count


def _times(files: Sequence[bytes], layer: Layer, footprint_bytes: int, threads: int, rough: bool = False) -> Array:
    """The seconds of every file, `[files, rounds]`: more rounds where they are short, few if it may be `rough`."""
    rounds, seconds = (ROUGH_ROUNDS, 0.0) if rough else (ROUNDS, VISIT_SECONDS)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.add_session_config_entry("session.force_spinning_stop", "1")  # as files are timed
    sessions = [onnxruntime.InferenceSession(each, options, providers=["CPUExecutionProvider"]) for each in files]
    feed = {"input": np.random.default_rng(0).standard_normal(layer.input_shape, dtype=np.float32)}
    others = np.zeros(footprint_bytes, dtype=np.uint8)

    def once(session: onnxruntime.InferenceSession) -> float:
        np.add(others, 1, out=others)
        started = time.perf_counter()
        session.run(None, feed)
        return time.perf_counter() - started

    for session in sessions * WARM_UP:
        once(session)
    times: list[list[float]] = []
    while len(times) < rounds or np.sum(times) < seconds:
        times.append([once(session) for session in sessions])
    return np.array(times).T


def networks(layer: Layer, count: int) -> tuple[bytes, bytes]:
    """Two ONNX files, of which the second has `count` such layers more, and is the same otherwise.

    Layers stand behind one another where their shape allows it, additions behind a convolution, as in networks, and
    others side by side, where their outputs are added up.
    """
    few, many = (_network(layer, count, more) for more in (False, True))
    return few, many


def _network(layer: Layer, count: int, more: bool) -> bytes:
    graph = Graph(layer.input_shape, layer.precision)
    start = x = graph.rounded("input")
    if layer.operator == "input":
        return graph.file(graph.classifier(layer, x))
    pixelwise = Layer("conv", layer.precision, layer.inputs, layer.inputs, layer.size)
    if layer.operator == "add":
        for _ in range(count):
            made = graph.layer(pixelwise, x)
            x = graph.sum(x, made) if more else made
        return graph.file(x)
    if layer.operator in POOLS:
        start = x = graph.layer(pixelwise, x)  # which brings the layout that convolutions have
    if layer.fits_behind_itself:
        for _ in range(2 * count if more else count):
            x = graph.layer(layer, x)
        return graph.file(x)
    total = first = graph.layer(layer, start)
    for _ in range(count):
        if layer.operator in POOLS:  # of nodes with the same input and no weights ONNX Runtime keeps one
            x = graph.sum(x, start)
        total = graph.sum(total, graph.layer(layer, x) if more else first)
    return graph.file(graph.sum(total, graph.layer(layer, x)))


class Graph:
    """An ONNX file, written node by node as the Protocol Buffers that it consists of.

    Fields are numbered as in onnx.proto. Weights are random; in int8, quantizers stand where shipped files have them.
    """

    def __init__(self, shape: tuple[int, ...], precision: Precision) -> None:
        self.shape, self.int8 = shape, precision == "int8"
        self.fields: list[bytes] = []  # of the GraphProto
        self.grids: dict[str, tuple[str, str]] = {}  # of rounded values: scale and zero point
        self.random = np.random.default_rng(0)

    def layer(self, layer: Layer, x: str) -> str:
        """What a layer with new weights makes of a value."""
        windows = {"kernel_shape": layer.kernel, "strides": layer.stride, "pads": layer.padding * 2}
        match layer.operator:
            case "conv":
                weight = self.parameters(layer.outputs, layer.inputs // layer.groups, *layer.kernel)
                made = self.node("Conv", x, *weight, group=layer.groups, **windows)
                made = (
                    made if self.int8 else self.node("Relu", made)
                )  # without it, a sum would become part of the layer
            case "linear":
                made = self.node("Gemm", x, *self.parameters(layer.outputs, layer.inputs), transB=1)
            case "max_pool":
                return self.rounded(self.node("MaxPool", x, **windows), like=x)
            case "average_pool":
                made = self.node("AveragePool", x, **windows)
            case "global_average_pool":
                made = self.node("GlobalAveragePool", x)
        return self.rounded(made)

    def classifier(self, layer: Layer, x: str) -> str:
        """The shortest network for an image: one pixel goes through one convolution."""
        pixel = Layer("conv", layer.precision, layer.inputs, 16, layer.size, stride=layer.size)
        pooled = self.layer(Layer("global_average_pool", layer.precision, 16, 16), self.layer(pixel, x))
        flat = self.rounded(self.node("Flatten", pooled), like=pooled)
        return self.node("Gemm", flat, *self.parameters(layer.outputs, 16), transB=1)

    def sum(self, x: str, y: str) -> str:
        """The sum of two values."""
        return self.rounded(self.node("Add", x, y))

    def parameters(self, *shape: int) -> tuple[str, str]:
        """A weight and a bias of a layer."""
        weight = self.random.integers(-127, 128, shape, dtype=np.int8)
        scale = np.full(shape[0], 0.02 / np.sqrt(np.prod(shape[1:])), dtype=np.float32)
        zeros = np.zeros(shape[0], dtype=np.int32)
        if not self.int8:
            step = scale.reshape(-1, *[1] * (len(shape) - 1))
            return self.constant(weight * step), self.constant(zeros.astype(np.float32))
        grids = (weight, scale, zeros.astype(np.int8)), (zeros, scale * STEP)  # the only scale of a bias that is fused
        rounded = [self.node("DequantizeLinear", *(self.constant(each) for each in grid), axis=0) for grid in grids]
        return rounded[0], rounded[1]

    def rounded(self, x: str, like: str | None = None) -> str:
        """A value on its own grid of integers, or on that of another."""
        if not self.int8:
            return x
        grid = (self.constant(STEP), self.constant(np.uint8(100))) if like is None else self.grids[like]
        made = self.node("DequantizeLinear", self.node("QuantizeLinear", x, *grid), *grid)
        self.grids[made] = grid
        return made

    def constant(self, values: Array | np.generic) -> str:
        array = np.asarray(values)
        name = f"v{len(self.fields)}"
        sides = b"".join(_field(1, side) for side in array.shape)
        tensor = sides + _field(2, TYPES[array.dtype.name]) + _field(8, name) + _field(9, array.tobytes())
        self.fields.append(_field(5, tensor))
        return name

    def node(self, operator: str, *inputs: str, **attributes: int | tuple[int, ...]) -> str:
        name = f"v{len(self.fields)}"
        body = b"".join(_field(1, each) for each in inputs) + _field(2, name) + _field(3, name) + _field(4, operator)
        for key, value in attributes.items():
            if isinstance(value, int):
                body += _field(5, _field(1, key) + _field(3, value) + _field(20, 2))
            else:
                body += _field(5, _field(1, key) + b"".join(_field(8, each) for each in value) + _field(20, 7))
        self.fields.append(_field(1, body))
        return name

    def file(self, output: str) -> bytes:
        """The file, with one output."""
        given = [_field(1, side) for side in self.shape]
        unknown = [b"" for _ in self.shape]
        graph = b"".join(self.fields) + _field(2, "layers")
        graph += _field(11, _value("input", given)) + _field(12, _value(output, unknown))
        return _field(1, IR_VERSION) + _field(7, graph) + _field(8, _field(1, "") + _field(2, OPSET))


def _value(name: str, sides: Sequence[bytes]) -> bytes:
    """A ValueInfoProto of float values."""
    shape = b"".join(_field(1, side) for side in sides)
    return _field(1, name) + _field(2, _field(1, _field(1, TYPES["float32"]) + _field(2, shape)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """A field of a Protocol Buffer: a number, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])
