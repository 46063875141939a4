"""A layer of the student is trained to predict a layer of the teacher: Romero et al., "FitNets" (ICLR 2015)."""

import torch.nn.functional as F
from torch import Tensor, nn

from compressor.distillation.losses.between_layers import BetweenLayers, to_the_smaller
from compressor.distillation.teacher import Teacher
from compressor.training.objectives import Batch, Watched


class Hint(BetweenLayers):
    """½ · mean((h − r(g))²): h is the teacher's layer, g the student's, and r a 1x1 convolution that is trained too.

    The paper's regressor has a kernel that brings g to the size of h. Here the larger of the two maps is averaged down
    to the smaller one, so that r needs weights for the channels only.
    """

    def __init__(self, teacher: Teacher, student_layer: str, teacher_layer: str, given: Tensor, wanted: Tensor) -> None:
        super().__init__(teacher, student_layer, teacher_layer, given, wanted)
        self.regressor = nn.Conv2d(given.shape[1], wanted.shape[1], 1)

    def forward(self, network: Watched, batch: Batch) -> Tensor:
        own, hint = self.outputs(network, batch)
        return F.mse_loss(*to_the_smaller(self.regressor(own), hint)) / 2
