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

NUMBERS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
MOST_IN_A_BYTE = 4  # of ONNX's types
_LABELS: TypeAdapter[tuple[str, ...]] = TypeAdapter(Annotated[tuple[str, ...], Field(min_length=1)])


def pipeline_of(model: Path) -> str | None:
    """The digest of the pipeline that a file was made by, as it says.

    Raises:
        ArtifactError: it cannot be read, or reads other files.
    """
    return _metadata(_read(model)).get("compressor.pipeline")


def about(model: Path) -> tuple[Preprocess, tuple[str, ...]]:
    """What a file's own metadata say of feeding and reading it: the preprocessing and the labels.

    Raises:
        ArtifactError: it cannot be read, reads other files, has no such metadata, or does not fit them.
    """
    parsed = _read(model)
    found = _metadata(parsed)
    try:
        preprocess = Preprocess.model_validate_json(found["compressor.preprocess"])
        labels = _LABELS.validate_json(found["compressor.labels"])
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"{model} does not say how to feed and read it (compressor.preprocess, .labels)") from error
    check_interface(parsed, preprocess, labels, source=model)
    return preprocess, labels


def parse(content: bytes, *, source: Path) -> onnx.ModelProto:
    """What is in a file, which reads no others, wherever they may lie.

    Raises:
        ArtifactError: it is no ONNX file, refers to data outside itself, or claims tensors that it does not hold.
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


def _read(model: Path) -> onnx.ModelProto:
    try:
        content = files.read_bytes(model)
    except OSError as error:
        raise ArtifactError(f"{model} cannot be read: {error.strerror}") from error
    return parse(content, source=model)


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
