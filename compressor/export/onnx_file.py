"""Networks as ONNX files: one self-contained file, lean, with our metadata; and ONNX Runtime sessions on them."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from compressor.data.preprocess import MAX_SIDE, Preprocess
from compressor.errors import ArtifactError, StageError, first_line, pass_on_out_of_memory
from compressor.export.lowering import lower_to_onnx
from compressor.export.reading import PIPELINE
from compressor.quantization.network import QuantizedNetwork
from compressor.tracing import layer_of, quiet, trace

DEFAULT_OPSET, IR_VERSION = 18, 10
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS: dict[str, list[Any]] = {  # where a session computes; TensorRT takes Q/DQ pairs only with int8 switched on
    "cpu": [CPU],
    "cuda": [CUDA, CPU],
    "tensorrt": [(TENSORRT, {"trt_int8_enable": True}), CUDA, CPU],
}
MAX_NUMBERS = 2**26  # of one image that a file can be timed on
MADE_FOR = {  # by the bits of weights
    7: "any processor",
    8: "x86 with VNNI, Arm, GPUs; on x86 without VNNI products saturate",
}
SIGNED = frozenset({"tensorrt"})  # engines that read symmetric int8 activations and float biases only
MADE_FOR_SIGNED = "TensorRT: symmetric int8 activations, biases in float"
SPATIAL = frozenset({"Conv", "AveragePool", "MaxPool"})  # without strides they move by 1
QUIET = 4  # ONNX Runtime's log level: fatal errors only; others are raised, and said in our words


def export_onnx(
    network: nn.Module,
    preprocess: Preprocess,
    metadata: Mapping[str, str],
    opset: int = DEFAULT_OPSET,
    *,
    signed: bool = False,
) -> bytes:
    """`network` as an ONNX file: `input` float32 `[batch, C, H, W]` to `logits` float32 `[batch, classes]`.

    A quantized network becomes QuantizeLinear / DequantizeLinear pairs around its layers and integer constants, with
    activations in int8 rather than uint8 if they are `signed`.

    Raises:
        ArchitectureError: the network cannot be traced.
        StageError: the exporter cannot write this network, or not in this opset.
    """
    network = lower_to_onnx(network, signed=signed) if isinstance(network, QuantizedNetwork) else network.eval()
    traced = trace(network, preprocess.input_shape(2))
    try:
        with quiet():
            program = torch.onnx.export(
                traced, dynamo=True, opset_version=opset, input_names=["input"], output_names=["logits"], verbose=False
            )
    except Exception as error:  # the exporter raises whatever its passes raise
        pass_on_out_of_memory(error)
        raise StageError(f"{_reason(error, traced)} (opset {opset})") from error
    assert program is not None
    model = program.model_proto
    _make_lean(model)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    written = next(entry.version for entry in model.opset_import if entry.domain == "")
    if written != opset:
        raise StageError(f"opset {opset} was asked for, but the exporter wrote opset {written}")
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def metadata_of(
    preprocess: Preprocess,
    labels: tuple[str, ...],
    pipeline_digest: str,
    weight_bits: int | None = None,
    *,
    signed: bool = False,
) -> dict[str, str]:
    """What a user of the file needs to know, as `metadata_props`; with `weight_bits`, it is on integers."""
    metadata = {
        "compressor.preprocess": preprocess.model_dump_json(),
        "compressor.labels": json.dumps(labels),
        PIPELINE: pipeline_digest,
    }
    if weight_bits is not None:
        made_for = MADE_FOR_SIGNED if signed else MADE_FOR[weight_bits]
        metadata |= {"compressor.weight_bits": str(weight_bits), "compressor.made_for": made_for}
    return metadata


def with_pipeline(model: onnx.ModelProto, pipeline_digest: str) -> bytes:
    """A file of ours as another pipeline would have written it: the same network, and another digest."""
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    for entry in renamed.metadata_props:
        if entry.key == PIPELINE:
            entry.value = pipeline_digest
    return bytes(renamed.SerializeToString())


def input_of(opened: onnxruntime.InferenceSession, batch: int, *, source: Path) -> tuple[str, tuple[int, ...]]:
    """The name of the one input of a session on `source`, and its shape without the batch.

    Raises:
        ArtifactError: it has several inputs, another type than float32, an open side, or takes other batches.
    """
    inputs = opened.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        kinds = ", ".join(f"{each.name} ({each.type})" for each in inputs)
        raise ArtifactError(f"{source} takes {kinds}; only files with one float32 input can be timed")
    first, *sides = inputs[0].shape
    if not all(isinstance(side, int) for side in sides):
        raise ArtifactError(f"{source} leaves the shape of its input open ({inputs[0].shape}); fix its sides first")
    if not all(1 <= side <= MAX_SIDE for side in sides):
        raise ArtifactError(f"{source} takes {inputs[0].shape}; only sides of 1 to {MAX_SIDE} can be timed")
    if math.prod(sides) > MAX_NUMBERS:
        raise ArtifactError(
            f"{source} takes {inputs[0].shape}; only inputs of up to {MAX_NUMBERS:,} numbers can be timed"
        )
    if isinstance(first, int) and first != batch:
        raise ArtifactError(f"{source} takes batches of {first} only; ask for --batch {first}")
    return inputs[0].name, tuple(sides)


def run(
    opened: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[np.float32]], *, source: Path | None = None
) -> NDArray[np.float32]:
    """The first output of a session on `source`.

    Raises:
        ArtifactError: ONNX Runtime cannot run it.
    """
    try:
        output: NDArray[np.float32] = opened.run(None, dict(feed))[0]
    except Exception as error:  # ONNX Runtime's own
        pass_on_out_of_memory(error)
        raise ArtifactError(f"ONNX Runtime cannot run {source or 'the network'}: {first_line(error)}") from error
    return output


def logits_of(
    opened: onnxruntime.InferenceSession, inputs: NDArray[np.float32], *, source: Path | None = None
) -> NDArray[np.float32]:
    """Logits `[N, classes]` for normalised images `[N, C, H, W]`, by a session on a file of ours.

    Raises:
        ArtifactError: ONNX Runtime cannot run it.
    """
    return run(opened, {"input": inputs}, source=source)


@cache
def why_not_on(device: str) -> str | None:
    """Why the ONNX Runtime that is installed cannot compute by `cuda` or `tensorrt` here; None if it can.

    A provider that is installed may lack a GPU or libraries, which shows only when a file is opened: ONNX Runtime then
    computes elsewhere and does not say so.
    """
    provider, title = {"cuda": (CUDA, "CUDA"), "tensorrt": (TENSORRT, "TensorRT")}[device]
    if provider not in onnxruntime.get_available_providers():
        return f"this ONNX Runtime has no {title} provider (onnxruntime-gpu has)"
    side = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "try", side[:1], side[1:])
    opsets = [onnx.helper.make_opsetid("", DEFAULT_OPSET)]
    tried = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    try:
        used = session(tried.SerializeToString(), device=device).get_providers()
    except ArtifactError as error:
        return f"ONNX Runtime's {title} provider does not work here: {error}"
    return None if provider in used else f"ONNX Runtime's {title} provider finds no GPU or no libraries"


def session(
    model: bytes | Path,
    threads: int = 1,
    device: str = "cpu",
    profile: Path | None = None,
    executed: Path | None = None,
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session with a fixed number of threads, on the `cpu`, a GPU (`cuda`), or a GPU by `tensorrt`.

    `profile` is how the file of a profile begins; `executed` is where the graph is written that is executed.

    Raises:
        ArtifactError: ONNX Runtime cannot open it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = QUIET
    options.add_session_config_entry("session.load_model_format", "ONNX")  # as it was checked, whatever its name
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads leave the cores to others
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if executed is not None:
        options.optimized_model_filepath = str(executed)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=PROVIDERS[device], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own
        pass_on_out_of_memory(error)
        named = "the network" if isinstance(model, bytes) else model
        raise ArtifactError(f"ONNX Runtime cannot open {named}: {first_line(error)}") from error


def operators_elsewhere(model: Path, feed: Mapping[str, NDArray[Any]], device: str) -> tuple[str, ...]:
    """The operators that a session for `device` leaves to another provider, on the CPU or not, as `Conv x 3`."""
    with TemporaryDirectory() as folder:
        profiled = session(model, device=device, profile=Path(folder, "profile"))
        profiled.run(None, dict(feed))
        events = json.loads(Path(profiled.end_profiling()).read_bytes())
    executed = (event["args"] for event in events if event.get("name", "").endswith("_kernel_time"))
    own = {"cpu": None, "cuda": CUDA, "tensorrt": TENSORRT}[device]
    found = Counter(each["op_name"] for each in executed if each.get("provider") != own)
    return tuple(f"{name} x {count}" for name, count in sorted(found.items()))


def _reason(error: BaseException, traced: ExportedProgram) -> str:
    """What the exporter could not write, and in which layer it arises."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    found = (re.search(r"translating node %(\w+)", str(cause)) for cause in causes)
    names = {match[1] for match in found if match}  # of operators as the exporter splits them: bessel_j0
    layers = [layer_of(node) for node in traced.graph.nodes if any(name in node.name for name in names)]
    where = f"layer {layers[0]!r}" if layers and layers[0] else "the network"
    return f"{where} cannot be exported to ONNX: {first_line(causes[-1])}"


def _make_lean(model: onnx.ModelProto) -> None:
    """Drop what only the exporter needs (stack traces, paths, shapes of inner values) and shorten inner names."""
    del model.metadata_props[:]
    del model.functions[:]
    model.doc_string = ""
    graph = model.graph
    del graph.value_info[:]
    del graph.metadata_props[:]
    del graph.quantization_annotation[:]
    graph.doc_string, graph.name = "", "compressor"
    domains = {node.domain for node in graph.node} | {""}
    for entry in [entry for entry in model.opset_import if entry.domain not in domains]:
        model.opset_import.remove(entry)
    kept = {value.name for value in (*graph.input, *graph.output)}
    short: dict[str, str] = {"": ""}

    def rename(name: str) -> str:
        return name if name in kept else short.setdefault(name, f"v{len(short)}")

    for initializer in graph.initializer:
        initializer.name = rename(initializer.name)
        initializer.doc_string = ""
        del initializer.metadata_props[:]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
        value.doc_string = ""
        del value.metadata_props[:]
    for node in graph.node:
        node.name = node.doc_string = ""
        del node.metadata_props[:]
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
        _drop_defaults(node, next(entry.version for entry in model.opset_import if entry.domain == node.domain))


def _drop_defaults(node: onnx.NodeProto, opset: int) -> None:
    """Drop attributes that say what holds without them: of a convolution's hundred bytes they are half."""
    if not onnx.defs.has(node.op_type, node.domain):
        return  # of a domain of its own
    known = onnx.defs.get_schema(node.op_type, opset, node.domain).attributes
    for attribute in list(node.attribute):
        value, default = onnx.helper.get_attribute_value(attribute), known[attribute.name].default_value
        ones = node.op_type in SPATIAL and attribute.name in ("dilations", "strides") and set(value) == {1}
        if ones or (default.name and value == onnx.helper.get_attribute_value(default)):
            node.attribute.remove(attribute)
