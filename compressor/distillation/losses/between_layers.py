"""What losses between a layer of the student and one of the teacher share."""

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from compressor.distillation.teacher import Teacher
from compressor.errors import ArchitectureError
from compressor.training.objectives import Batch, Objective, Watched


class BetweenLayers(Objective):
    """A loss between two layers; `shapes` are those that their outputs may have, by the number of dimensions.

    Raises:
        ArchitectureError: a layer's output has another shape.
    """

    shapes: ClassVar[Mapping[int, str]] = {4: "[N, C, H, W]"}

    def __init__(self, teacher: Teacher, student_layer: str, teacher_layer: str, given: Tensor, wanted: Tensor) -> None:
        """`given` and `wanted` are examples of the two layers' outputs."""
        super().__init__()
        for whose, layer, example in (("student", student_layer, given), ("teacher", teacher_layer, wanted)):
            if example.dim() not in self.shapes:
                needed = " or ".join(self.shapes.values())
                raise ArchitectureError(
                    f"the {whose}'s layer {layer!r} has output {list(example.shape)}; this loss needs {needed}"
                )
        self.teacher, self.teacher_layer = teacher, teacher_layer
        self.layers = (student_layer,)

    def outputs(self, network: Watched, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the student's layer and the teacher's output for a batch."""
        return network.layer(self.layers[0], batch), self.teacher.layer(self.teacher_layer, batch)


def to_the_smaller(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps `[N, C, H, W]`, averaged down to the lesser height and width."""
    size = min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])
    return F.adaptive_avg_pool2d(one, size), F.adaptive_avg_pool2d(other, size)
