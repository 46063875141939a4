"""Another export format: an ONNX file whose weights are stored in half precision."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import onnx

from compressor import Context, OnnxModel, Stage, TorchModel


class Half(Stage):
    """Write an ONNX file with float16 weights, cast back to float32 where they are used."""

    example: ClassVar[dict[str, Any]] = {"stage": "half"}

    stage: Literal["half"] = "half"

    def run(self, model: TorchModel, context: Context) -> OnnxModel:
        """The smaller file."""
        exported = model.to_onnx(context.pipeline)
        file = onnx.load_model_from_string(exported.content)
        casts = []
        for tensor in file.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.size > 1:
                name = f"{tensor.name}_half"
                casts.append(onnx.helper.make_node("Cast", [name], [tensor.name], to=onnx.TensorProto.FLOAT))
                tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), name))
        nodes = [*casts, *file.graph.node]
        del file.graph.node[:]
        file.graph.node.extend(nodes)
        return replace(exported, content=file.SerializeToString())
