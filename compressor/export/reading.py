"""ONNX files from anywhere: what is in one, read without running it, and whether it is what it says."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import onnx
from pydantic import Field, TypeAdapter

from compressor.data.preprocess import Preprocess
from compressor.errors import ArtifactError, first_line
from compressor.storage import files

PIPELINE = "compressor.pipeline"
NUMBERS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
MOST_IN_A_BYTE = 4  # of ONNX's types
SHAPE_BYTES = 1024  # constants up to this size may be shapes
MIN_VALUES, VALUES_FACTOR = 2**24, 100  # that an operator may make of one image: so many, or over those of its input
_LABELS: TypeAdapter[tuple[str, ...]] = TypeAdapter(Annotated[tuple[str, ...], Field(min_length=1)])


def pipeline_of(model: onnx.ModelProto) -> str | None:
    """The digest of the pipeline that a file was made by, as it says."""
    return _metadata(model).get(PIPELINE)


def is_signed(model: onnx.ModelProto) -> bool:
    """Whether all integers that a file rounds to, or reads numbers from, are int8; or it has none."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds |= {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    rounded = [node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    read = [node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"]
    return all(kinds.get(name) == onnx.TensorProto.INT8 for name in rounded + read)


def about(model: Path) -> tuple[Preprocess, tuple[str, ...]]:
    """What a file's own metadata say of feeding and reading it: the preprocessing and the labels.

    Raises:
        ArtifactError: it cannot be read, reads other files, has no such metadata, or does not fit them.
    """
    _, parsed = read(model)
    found = _metadata(parsed)
    try:
        preprocess = Preprocess.model_validate_json(found["compressor.preprocess"])
        labels = _LABELS.validate_json(found["compressor.labels"])
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"{model} does not say how to feed and read it (compressor.preprocess, .labels)") from error
    check_interface(parsed, preprocess, labels, source=model)
    return preprocess, labels


def read(model: Path) -> tuple[bytes, onnx.ModelProto]:
    """The content of a file, and what is in it.

    Raises:
        ArtifactError: it cannot be read, or as `parse`.
    """
    try:
        content = files.read_bytes(model)
    except OSError as error:
        raise ArtifactError(f"{model} cannot be read: {error.strerror}") from error
    return content, parse(content, source=model)


def parse(content: bytes, *, source: Path) -> onnx.ModelProto:
    """What is in a file, which reads no others, wherever they may lie.

    Raises:
        ArtifactError: it is no ONNX file, refers to data outside itself, claims tensors that it does not hold, or asks
            for far more memory than a network takes.
    """
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own errors
        raise ArtifactError(f"{source} is not an ONNX file: {first_line(error)}") from error
    for tensor in _messages(model, onnx.TensorProto):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ArtifactError(f"{source} refers to data outside itself; it is not read")
        held = len(tensor.raw_data) or max(len(getattr(tensor, name)) for name in NUMBERS)
        if min(tensor.dims, default=1) < 0 or math.prod(tensor.dims) > MOST_IN_A_BYTE * held:
            raise ArtifactError(
                f"{source} claims {list(tensor.dims)} numbers for {tensor.name!r:.100}; it holds {held}"
            )
    if next(_messages(model, onnx.SparseTensorProto), None) is not None:
        raise ArtifactError(f"{source} holds sparse tensors, which are not read")
    if model.functions:
        raise ArtifactError(f"{source} holds functions of its own, which are not read; inline them first")
    _check_memory(model, source=source)
    return model


def check_interface(model: onnx.ModelProto, preprocess: Preprocess, labels: tuple[str, ...], *, source: Path) -> None:
    """Require `input` float32 `[batch, C, H, W]` as `preprocess` gives it, and `logits` float32, one for each label.

    Raises:
        ArtifactError: the file takes or gives something else.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    values = [("takes", value) for value in model.graph.input if value.name not in constants]
    values += [("gives", value) for value in model.graph.output]
    found = [(verb, value.name, value.type.tensor_type) for verb, value in values]
    shapes = [[side.dim_value for side in kind.shape.dim][1:] for _, _, kind in found]
    expected = [("takes", "input"), ("gives", "logits")]
    fits = [each[:2] for each in found] == expected and all(k.elem_type == onnx.TensorProto.FLOAT for _, _, k in found)
    if not fits or shapes != [list(preprocess.input_shape(1)[1:]), [len(labels)]]:
        said = ", ".join(f"{verb} {name!r:.100} {shape}" for (verb, name, _), shape in zip(found, shapes, strict=True))
        raise ArtifactError(
            f"{source} {said or 'takes nothing'}; by its preprocessing and labels it takes 'input' "
            f"{list(preprocess.input_shape(1)[1:])} and gives 'logits' [{len(labels)}], in float32"
        )


def _check_memory(model: onnx.ModelProto, *, source: Path) -> None:
    """Refuse operators that make far more of an image than networks do: one bit of a padding can ask for terabytes."""
    try:
        inferred = onnx.shape_inference.infer_shapes(_without_weights(model), data_prop=True).graph
    except Exception as error:  # ONNX's own errors
        raise ArtifactError(f"{source}: its operators do not fit together: {first_line(error)}") from error
    given = max((_values(value) for value in model.graph.input), default=0)
    for value in _messages(inferred, onnx.ValueInfoProto):
        if _values(value) > max(MIN_VALUES, VALUES_FACTOR * given):
            raise ArtifactError(f"{source} would make {_values(value):,} numbers of one image; it is not run")


def _values(value: onnx.ValueInfoProto) -> int:
    """How many numbers a value has for one image: sides that are not fixed are of length 1."""
    return math.prod(max(side.dim_value, 1) for side in value.type.tensor_type.shape.dim)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large constants as inputs: of these, only the shapes matter to other shapes."""
    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    graph = light.graph
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= SHAPE_BYTES:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _messages(message: Any, kind: Any) -> Iterator[Any]:
    """Every message of a kind in another: of initializers, nodes, the graphs in them, functions."""
    if isinstance(message, kind):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if isinstance(value, Sequence) else [value]:
                yield from _messages(each, kind)
