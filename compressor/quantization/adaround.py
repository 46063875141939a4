"""AdaRound: round each weight up or down, whichever leaves a layer's output closest to what it was in float.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020). With second moments of a layer's
rounded inputs x̂ and of its float outputs y, the expected squared error of ŵᵀx̂ is quadratic in the weights ŵ = s q:

    E[(ŵᵀx̂ - y)²] = ŵᵀ E[x̂x̂ᵀ] ŵ - 2 E[y x̂ᵀ] ŵ + E[y²]

so its minimum along one integer q is known, and the weights are rounded one after the other until none changes
(coordinate descent, as in QuantEase: Behdin et al. 2023), in place of the paper's relaxation by gradient descent.
"""

import torch
from torch import Tensor

BLOCK = 128  # weights of a row between two products of whole matrices
MOST_SWEEPS = 10
PULL = 0.01  # of the mean square of the inputs, towards the weight as it was: few images leave directions unseen
ON_GRID = 1e-3  # of a step: so close to an integer there is nothing to choose


class Moments:
    """Second moments of what a layer reads and gives; about their means if it has a bias, which corrects the mean."""

    def __init__(self, *, centred: bool) -> None:
        self.centred = centred
        self.count = 0
        self.xx, self.yx, self.x, self.y = torch.zeros(4).unbind()  # sums

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count samples, `[groups, in, samples]` and `[groups, out, samples]`."""
        self.count += x.shape[-1]
        self.xx, self.yx = self.xx + x @ x.mT, self.yx + y @ x.mT
        self.x, self.y = self.x + x.sum(-1), self.y + y.sum(-1)

    @property
    def inputs(self) -> Tensor:
        """E[x̂x̂ᵀ], `[groups, in, in]`."""
        return self._about_means(self.xx, self.x)

    @property
    def outputs(self) -> Tensor:
        """E[y x̂ᵀ], `[groups, out, in]`."""
        return self._about_means(self.yx, self.y)

    def _about_means(self, products: Tensor, rows: Tensor) -> Tensor:
        mean = products / self.count
        if self.centred:
            mean -= (rows / self.count)[..., :, None] * (self.x / self.count)[..., None, :]
        return mean


def adaround(weight: Tensor, scale: Tensor, limit: int, moments: Moments) -> Tensor:
    """The weight on its grid, `[groups, out, in]`.

    Args:
        weight: in float, `[groups, out, in]`.
        scale: s, one per output channel, `[groups, out]`.
        limit: the largest integer.
        moments: of the layer's inputs and outputs.
    """
    inputs, outputs = moments.inputs, moments.outputs
    squares = inputs.diagonal(dim1=-2, dim2=-1)  # [groups, in]
    pull = (PULL * squares.mean(-1, keepdim=True)).clamp(min=torch.finfo(torch.float32).tiny)
    squares += pull  # in place, so in `inputs` as well
    outputs += pull[..., None] * weight
    exact = weight / scale[..., None]
    low = (exact + ON_GRID).floor().clamp(-limit, limit)
    high = (exact - ON_GRID).ceil().clamp(-limit, limit)
    q = exact.round().clamp(-limit, limit)
    for _ in range(MOST_SWEEPS):
        before = q.clone()
        for start in range(0, weight.shape[-1], BLOCK):
            block = slice(start, start + BLOCK)
            slopes = (q * scale[..., None]) @ inputs[..., block] - outputs[..., block]  # [groups, out, block]
            curvatures = inputs[:, block, block]  # [groups, block, block]
            for j in range(slopes.shape[-1]):
                best = torch.round(q[..., start + j] - slopes[..., j] / curvatures[:, None, j, j] / scale)
                new = best.clamp(low[..., start + j], high[..., start + j])
                slopes += ((new - q[..., start + j]) * scale)[..., None] * curvatures[:, None, j]
                q[..., start + j] = new
        if torch.equal(q, before):
            break
    return q * scale[..., None]
