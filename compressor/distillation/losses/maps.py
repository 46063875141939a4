"""Maps `[N, C, H, W]` of two layers, brought together."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from compressor.errors import ArchitectureError

MAP = {4: "[N, C, H, W]"}


def check(
    student_layer: str, teacher_layer: str, given: Tensor, wanted: Tensor, shapes: Mapping[int, str] = MAP
) -> None:
    """Refuse layers whose outputs have none of these shapes, by their number of dimensions.

    Raises:
        ArchitectureError: one has none.
    """
    for whose, layer, example in (("student", student_layer, given), ("teacher", teacher_layer, wanted)):
        if example.dim() not in shapes:
            needed = " or ".join(shapes.values())
            raise ArchitectureError(
                f"the {whose}'s layer {layer!r} has output {list(example.shape)}; this loss needs {needed}"
            )


def to_the_smaller(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both, averaged down to the lesser height and width."""
    size = min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])
    return F.adaptive_avg_pool2d(one, size), F.adaptive_avg_pool2d(other, size)
