"""Where ONNX Runtime spends its time in a file: layer by layer, or in everything that it executes."""

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.errors import ArtifactError
from compressor.export.onnx_file import session

INTEGERS = {"uint8", "int8"}
WINDOWS = {"channels_last", "group", "kernel_shape", "strides", "pads", "dilations"}
LAYERS = {"Conv", "Gemm", "MatMul"}
RUNS = 20


@dataclass(frozen=True)
class Executed:
    """An operator as ONNX Runtime executes it, after its own optimisations.

    Attributes:
        operator: its type, as `QLinearConv`.
        name: of the first value that it makes.
        seconds: the median.
        inputs: the types and shapes of the tensors that it is given, without those that are packed in advance.
        output: the type and shape of the first that it makes.
        weight: the shape of its weight, `[outputs, inputs / groups, ...]` of a convolution; empty without one.
        windows: attributes of convolutions and pools: `group`, `kernel_shape`, `strides`, `pads`, `dilations`.
    """

    operator: str
    name: str
    seconds: float
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    output: tuple[str, tuple[int, ...]]
    weight: tuple[int, ...]
    windows: dict[str, Any]

    @property
    def on_integers(self) -> bool:
        """Whether the first tensor that it is given holds integers of 8 bits."""
        return bool(self.inputs) and self.inputs[0][0] in INTEGERS


def executed_in(model: bytes, feed: dict[str, NDArray[np.float32]]) -> list[Executed]:
    """What ONNX Runtime executes on one thread, in order, and how long each operator takes.

    Raises:
        ArtifactError: the file cannot be opened.
    """
    with TemporaryDirectory() as folder:
        written = Path(folder, "executed.onnx")
        profiled = session(model, profile=Path(folder, "profile"), executed=written)
        for _ in range(RUNS):
            profiled.run(None, feed)
        events = json.loads(Path(profiled.end_profiling()).read_bytes())
        graph = onnx.load(written).graph
    kernels = [event for event in events if event.get("name", "").endswith("_kernel_time")]
    if len(kernels) != RUNS * len(graph.node):
        raise ArtifactError("it has operators that run others (If, Loop, Scan), whose times cannot be told apart")
    shapes = {initializer.name: tuple(initializer.dims) for initializer in graph.initializer}
    for node in graph.node:  # weights that are brought back to float in every run
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    runs = np.array([event["dur"] for event in kernels]).reshape(RUNS, -1) / 1e6
    return [
        _executed(node, event["args"], float(seconds), shapes)
        for node, event, seconds in zip(graph.node, kernels, np.median(runs, axis=0), strict=False)
    ]


def _executed(
    node: onnx.NodeProto, described: dict[str, Any], seconds: float, shapes: dict[str, tuple[int, ...]]
) -> Executed:
    """A node of the executed graph with what the profile says of it; both are in the order of execution."""
    assert node.op_type == described["op_name"], node.op_type
    return Executed(
        operator=node.op_type,
        name=node.output[0],
        seconds=seconds,
        inputs=_tensors(described["input_type_shape"]),
        output=_tensors(described["output_type_shape"])[0],
        weight=next((shapes[name] for name in node.input[1:] if len(shapes.get(name, ())) > 1), ()),
        windows={each.name: onnx.helper.get_attribute_value(each) for each in node.attribute if each.name in WINDOWS},
    )


def _tensors(described: list[dict[str, list[int]]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((kind, tuple(shape)) for each in described for kind, shape in each.items())


def layer_times(model: bytes, inputs: NDArray[np.float32]) -> list[float | None]:
    """The median seconds of every convolution and linear layer of an ONNX file, in its order.

    One thread; None where ONNX Runtime executes a layer under a name that does not tell which one it was.
    """
    graph_model = onnx.load_from_string(model)
    owners, count = _name_layers(graph_model.graph)
    with TemporaryDirectory() as folder:
        profiled = session(graph_model.SerializeToString(), profile=Path(folder, "profile"))
        for _ in range(RUNS):
            profiled.run(None, {profiled.get_inputs()[0].name: inputs})
        events = json.loads(Path(profiled.end_profiling()).read_bytes())
    spent: defaultdict[int, list[float]] = defaultdict(list)
    for event in events:
        name = event.get("name", "")
        if name.endswith("_kernel_time") and (layer := _layer_of(name, owners)) is not None:
            spent[layer].append(event["dur"] / 1e6)
    return [float(np.median(spent[layer])) if layer in spent else None for layer in range(count)]


def _name_layers(graph: onnx.GraphProto) -> tuple[dict[str, int], int]:
    """Number the layers in their names; returns which layer makes a value, if only other operators follow it."""
    constants = {initializer.name for initializer in graph.initializer}
    owners: dict[str, int] = {}
    count = 0
    for node in graph.node:
        if constants.issuperset(node.input):
            constants.update(node.output)
        elif node.op_type in LAYERS and constants.issuperset(node.input[1:]):
            node.name = f"layer{count}@"
            owners[node.output[0]] = count
            count += 1
        else:
            varying = [name for name in node.input if name not in constants]
            if len(varying) == 1 and varying[0] in owners:
                owners[node.output[0]] = owners[varying[0]]
    return owners, count


def _layer_of(event: str, owners: dict[str, int]) -> int | None:
    """The layer that an event of the profile is about; float convolutions are renamed after what they make."""
    if match := re.search(r"layer(\d+)@", event):
        return int(match[1])
    match = re.match(r"(\w+?)_nchwc", event)
    return owners.get(match[1]) if match else None
