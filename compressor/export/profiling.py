"""Where ONNX Runtime spends its time in a file, layer by layer."""

import json
import re
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.export.onnx_file import session

LAYERS = {"Conv", "Gemm", "MatMul"}
RUNS = 20


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
