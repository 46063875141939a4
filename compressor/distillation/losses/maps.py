"""Maps `[N, C, H, W]` of two layers, brought together."""

import torch.nn.functional as F
from torch import Tensor

from compressor.errors import ArchitectureError


def check_maps(student_layer: str, teacher_layer: str, given: Tensor, wanted: Tensor) -> None:
    """Refuse layers whose outputs are no maps.

    Raises:
        ArchitectureError: one is none.
    """
    for whose, layer, example in (("student", student_layer, given), ("teacher", teacher_layer, wanted)):
        if example.dim() != 4:
            raise ArchitectureError(
                f"the {whose}'s layer {layer!r} has output {list(example.shape)}; this loss needs [N, C, H, W]"
            )


def to_the_smaller(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both, averaged down to the lesser height and width."""
    size = min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])
    return F.adaptive_avg_pool2d(one, size), F.adaptive_avg_pool2d(other, size)
