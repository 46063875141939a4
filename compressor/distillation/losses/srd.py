"""What the classifier reads: Miles and Mikolajczyk, "Understanding the Role of the Projector" (AAAI 2024)."""

from torch import Tensor, nn

from compressor.distillation.losses.between_layers import BetweenLayers
from compressor.distillation.teacher import Teacher
from compressor.training.objectives import Batch, Watched

EPSILON = 1e-8  # of features that are equal


class SRD(BetweenLayers):
    """log(Σ_j |n(W f)_j − n(h)_j|⁴, averaged over the batch); h are the teacher's features, f the student's.

    n is BatchNorm without weights, with the statistics of the batch, and W is trained too. Maps of features are
    averaged over height and width.
    """

    shapes = {2: "[N, C]", 4: "[N, C, H, W]"}

    def __init__(self, teacher: Teacher, student_layer: str, teacher_layer: str, given: Tensor, wanted: Tensor) -> None:
        super().__init__(teacher, student_layer, teacher_layer, given, wanted)
        self.projector = nn.Linear(given.shape[1], wanted.shape[1], bias=False)

    def forward(self, network: Watched, batch: Batch) -> Tensor:
        own, wanted = map(_features, self.outputs(network, batch))
        distance = (_normalised(self.projector(own)) - _normalised(wanted)).abs().pow(4).sum(1).mean()
        return (distance + EPSILON).log()


def _features(x: Tensor) -> Tensor:
    """`[N, C]`."""
    return x.mean((2, 3)) if x.dim() == 4 else x


def _normalised(x: Tensor) -> Tensor:
    """Every feature with mean 0 and variance 1 over the batch; an only image has no variance."""
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
