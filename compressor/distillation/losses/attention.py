"""Where a layer looks: Zagoruyko and Komodakis, "Paying More Attention to Attention" (ICLR 2017)."""

import torch.nn.functional as F
from torch import Tensor

from compressor.distillation.losses.maps import check, to_the_smaller
from compressor.distillation.teacher import Teacher
from compressor.training.objectives import Batch, Objective, Watched


class Attention(Objective):
    """‖a(g) / ‖a(g)‖ − a(h) / ‖a(h)‖‖², averaged over the batch; h is the teacher's layer, g the student's.

    a(x) is the mean of x² over the channels, a number for every place. The larger of the two maps is averaged down.
    """

    def __init__(self, teacher: Teacher, student_layer: str, teacher_layer: str, given: Tensor, wanted: Tensor) -> None:
        """`given` and `wanted` are examples of the two layers' outputs, each `[N, C, H, W]`.

        Raises:
            ArchitectureError: a layer's output has another shape.
        """
        super().__init__()
        check(student_layer, teacher_layer, given, wanted)
        self.teacher, self.teacher_layer = teacher, teacher_layer
        self.layers = (student_layer,)

    def forward(self, network: Watched, batch: Batch) -> Tensor:
        layers = network.layer(self.layers[0], batch), self.teacher.layer(self.teacher_layer, batch)
        maps = to_the_smaller(*(layer.square().mean(1, keepdim=True) for layer in layers))  # [N, 1, H, W] each
        own, hint = (F.normalize(each.flatten(1)) for each in maps)
        return (own - hint).square().sum(1).mean()
