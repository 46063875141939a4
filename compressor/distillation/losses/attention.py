"""Where a layer looks: Zagoruyko and Komodakis, "Paying More Attention to Attention" (ICLR 2017)."""

import torch.nn.functional as F
from torch import Tensor

from compressor.distillation.losses.between_layers import BetweenLayers, to_the_smaller
from compressor.training.objectives import Batch, Watched


class Attention(BetweenLayers):
    """‖a(g) / ‖a(g)‖ − a(h) / ‖a(h)‖‖², averaged over the batch; h is the teacher's layer, g the student's.

    a(x) is the mean of x² over the channels, a number for every place. The larger of the two maps is averaged down.
    """

    def forward(self, network: Watched, batch: Batch) -> Tensor:
        squares = (layer.square().mean(1, keepdim=True) for layer in self.outputs(network, batch))
        maps = to_the_smaller(*squares)  # [N, 1, H, W] each
        own, hint = (F.normalize(each.flatten(1)) for each in maps)
        return (own - hint).square().sum(1).mean()
