"""A layer of the student is trained to predict a layer of the teacher: Romero et al., "FitNets" (ICLR 2015)."""

import torch.nn.functional as F
from torch import Tensor, nn

from compressor.distillation.losses.maps import check, to_the_smaller
from compressor.distillation.teacher import Teacher
from compressor.training.objectives import Batch, Objective, Watched


class Hint(Objective):
    """½ · mean((h − r(g))²): h is the teacher's layer, g the student's, and r a 1x1 convolution that is trained too.

    The paper's regressor has a kernel that brings g to the size of h. Here the larger of the two maps is averaged down
    to the smaller one, so that r needs weights for the channels only.
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
        self.regressor = nn.Conv2d(given.shape[1], wanted.shape[1], 1)

    def forward(self, network: Watched, batch: Batch) -> Tensor:
        predicted = self.regressor(network.layer(self.layers[0], batch))
        return F.mse_loss(*to_the_smaller(predicted, self.teacher.layer(self.teacher_layer, batch))) / 2
