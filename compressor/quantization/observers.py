"""How the range of an activation is chosen from its values: torchao's observers, and two of our own."""

from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e.observer import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    UniformQuantizationObserverBase,
)

from compressor.quantization.network import UINT8_MAX
from compressor.quantization.settings import Observer

HISTOGRAMS: tuple[Observer, ...] = ("histogram", "percentile")  # look at all values, the others at the ends only
ONE_BY_ONE: tuple[Observer, ...] = ("moving_average",)  # batch by batch, the others however many at once
HISTOGRAM_BINS = 2048
MIN_SHARE, SHARES_TRIED = 0.3, 141  # of the observed range, by the least-error observer


class LeastErrorObserver(HistogramObserver):  # type: ignore[misc]
    """Shrinks the observed range by the factor with the least squared rounding error on the histogram.

    Torchao's own search models the error; on smooth distributions it ends up worse than the whole range, which this
    search always tries as well.
    """

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, each `[1]`."""
        shares = torch.linspace(1.0, MIN_SHARE, SHARES_TRIED)
        scales, zero_points = self._calculate_qparams(self.min_val * shares, self.max_val * shares)  # [shares] each
        half = (self.max_val - self.min_val) / self.bins / 2
        centres = torch.linspace(float(self.min_val + half), float(self.max_val - half), self.bins)
        tried = centres.expand(SHARES_TRIED, self.bins)
        rounded = torch.fake_quantize_per_channel_affine(tried, scales, zero_points.int(), 0, 0, UINT8_MAX)
        best = (self.histogram * (rounded - tried) ** 2).sum(1).argmin()
        return scales[best, None], zero_points[best, None]


class PercentileObserver(HistogramObserver):  # type: ignore[misc]
    """A range that leaves out the tails: from the histogram's (1 − p) / 2 to its (1 + p) / 2 quantile.

    A missing tail (there is nothing below 0 after a ReLU) costs nothing: a range always holds 0.
    """

    def __init__(self, percentile: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.percentile = percentile

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, each `[1]`."""
        share = torch.cumsum(self.histogram, 0) / self.histogram.sum()
        edges = torch.linspace(float(self.min_val), float(self.max_val), self.bins + 1)
        tail = (1 - self.percentile) / 2
        low = int((share <= tail).sum())
        high = int((share < 1 - tail).sum()) + 1
        scale, zero_point = self._calculate_qparams(edges[low], edges[min(high, self.bins)])
        return scale, zero_point


def observer_of(name: Observer, percentile: float) -> UniformQuantizationObserverBase:
    """An observer of one activation, as uint8; `percentile` is the share of values that its range keeps."""
    grid = {"dtype": torch.uint8, "qscheme": torch.per_tensor_affine, "quant_min": 0, "quant_max": UINT8_MAX}
    match name:
        case "min_max":
            return MinMaxObserver(**grid)
        case "moving_average":
            return MovingAverageMinMaxObserver(**grid)
        case "histogram":
            return LeastErrorObserver(bins=HISTOGRAM_BINS, **grid)
        case "percentile":
            return PercentileObserver(percentile, bins=HISTOGRAM_BINS, **grid)
