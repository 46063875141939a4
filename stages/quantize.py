"""Int8: calibrate ranges on real images (PTQ), and train with them in place (QAT).

PTQ is QAT with zero steps: one placement of quantizers, one save, one export; calibration only chooses ranges.
"""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from torchao.quantization.pt2e.observer import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    UniformQuantizationObserverBase,
)

from compressor.artifact import TorchModel
from compressor.changes import Int8
from compressor.distillation import Teacher, loss_from
from compressor.errors import ArchitectureError
from compressor.fit import Batch, Loss, fit
from compressor.placement import quantize_network
from compressor.quantized import UINT8_MAX, QuantizedNetwork
from compressor.stage import Context, Stage
from compressor.training import Training

CALIBRATION_BATCH = 64
HISTOGRAM_BINS = 2048
SMALLEST_SHARE, SHARES_TRIED = 0.3, 141  # of the observed range, by the least-error observer

Observer = Literal["min_max", "moving_average", "histogram", "percentile"]


class Quantize(Training, Stage[TorchModel, TorchModel]):
    """Round weights to int8 and activations to uint8, as ONNX Runtime executes them.

    Attributes:
        mode: ptq calibrates; qat then trains on, with activations' ranges as calibrated and weights' following them.
        observer: how calibration chooses a range: the smallest and largest value, their moving average over batches,
            the range of least squared error on a histogram, or one that leaves out the tails.
        percentile: share of values inside the range of the percentile observer.
        skip: layers (names as in `layer1.0.conv1`, or modules that hold them) that stay in float.
        weight_bits: 7 for x86 processors without VNNI, whose 8-bit products saturate.
        teacher: qat: id of an earlier stage to distil from; absent, training is on labels.
        temperature: of distillation.
        alpha: the teacher's share of the loss.
    """

    example: ClassVar[dict[str, Any]] = {"stage": "quantize", "mode": "qat", "epochs": 1}

    stage: Literal["quantize"] = "quantize"
    mode: Literal["ptq", "qat"]
    observer: Observer = "histogram"
    percentile: float = Field(0.9999, gt=0.5, le=1)
    skip: tuple[str, ...] = ()
    weight_bits: Literal[7, 8] = 8
    teacher: str | None = None
    temperature: float = Field(4.0, ge=0.1, le=100)
    alpha: float = Field(0.9, ge=0, le=1)
    epochs: int = Field(0, ge=0, le=100_000)
    optimizer: Literal["sgd", "adamw"] = "adamw"  # steps that do not depend on the scale of folded weights
    learning_rate: float | None = Field(1e-4, gt=0, le=10)
    keep: Literal["last", "best"] = "best"  # never worse on validation than calibration alone
    weight_decay: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "Quantize":
        if self.mode == "qat" and self.epochs == 0:
            raise ValueError("mode qat trains, so it needs epochs; without training, say mode: ptq")
        if self.mode == "ptq" and (self.epochs or self.teacher):
            raise ValueError("mode ptq does not train, so it takes no epochs and no teacher; to train, say mode: qat")
        default = type(self).model_fields
        if self.observer != "percentile" and self.percentile != default["percentile"].default:
            raise ValueError("percentile is for observer: percentile; name that observer, or leave percentile out")
        for name in ("temperature", "alpha"):
            if self.teacher is None and getattr(self, name) != default[name].default:
                raise ValueError(
                    f"{name} is for learning from a teacher; name one with `teacher:`, or leave {name} out"
                )
        return self

    def run(self, model: TorchModel, context: Context) -> TorchModel:
        """The quantized network.

        Raises:
            ArchitectureError: it is quantized already, cannot be traced, or has no layer that `skip` names.
            StageError: training diverged.
        """
        if model.quantized:
            raise ArchitectureError("the network is quantized already; one quantize stage is enough")
        network = quantize_network(
            model.copy_network(),
            context.data.preprocess.input_shape(2),
            skip=self.skip,
            weight_bits=self.weight_bits,
        )
        calibrate(network, context, self.observer, self.percentile)
        details = fit(network, self._loss(context), self, context, label=self.id)
        change = Int8(activations=network.ranges(), skip=self.skip, weight_bits=self.weight_bits)
        return model.with_network(network, change, details=details)

    def _loss(self, context: Context) -> Loss:
        if self.teacher is not None:
            teacher = Teacher(context.teacher(self.teacher), context, views=None)
            return loss_from(teacher, self.temperature, self.alpha)

        def loss(logits: Tensor, batch: Batch) -> Tensor:
            return F.cross_entropy(logits, batch.labels)

        return loss


@torch.no_grad()
def calibrate(network: QuantizedNetwork, context: Context, observer: Observer, percentile: float) -> None:
    """Set the ranges of `network`, in place, from its float activations on the calibration images.

    Images pass in small batches and observers keep a few numbers each, so memory does not grow with their count.
    """
    quantizers = network.activation_quantizers.values()
    for quantizer in quantizers:
        quantizer.observer = _observer(observer, percentile)
    for parameters in network.parameter_quantizers:
        parameters.enabled = False
    for images in context.data.calibration.images.split(CALIBRATION_BATCH):
        network(context.data.preprocess.normalise(images))
    for quantizer in quantizers:
        assert isinstance(quantizer.observer, UniformQuantizationObserverBase)
        scale, zero_point = quantizer.observer.calculate_qparams()
        quantizer.scale.copy_(scale.squeeze())
        quantizer.zero_point.copy_(zero_point.squeeze())
        quantizer.observer = None
    for parameters in network.parameter_quantizers:
        parameters.enabled = True


class LeastErrorObserver(HistogramObserver):  # type: ignore[misc]
    """Shrink the observed range by the factor that gives the least squared rounding error on the histogram.

    Torchao's own search models the error; on smooth distributions it ends up worse than the whole range, which this
    search always tries too.
    """

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, each `[1]`."""
        factors = torch.linspace(1.0, SMALLEST_SHARE, SHARES_TRIED)
        errors = torch.stack([self._error(*self._grid(factor)) for factor in factors])
        return self._grid(factors[errors.argmin()])

    def _grid(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        scale, zero_point = self._calculate_qparams(self.min_val * factor, self.max_val * factor)
        return scale, zero_point

    def _error(self, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Squared error of rounding the centres of the histogram's bins, weighted by what fell into them."""
        half = (self.max_val - self.min_val) / self.bins / 2
        centres = torch.linspace(float(self.min_val + half), float(self.max_val - half), self.bins)
        rounded = torch.fake_quantize_per_tensor_affine(centres, scale.squeeze(), zero_point.squeeze(), 0, UINT8_MAX)
        error: Tensor = (self.histogram * (rounded - centres) ** 2).sum()
        return error


class PercentileObserver(HistogramObserver):  # type: ignore[misc]
    """A range that leaves out the tails: from the histogram's (1 − p) / 2 to its (1 + p) / 2 quantile.

    A tail that is not there (nothing below 0 behind a ReLU) costs nothing: a range always holds 0.
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


def _observer(name: Observer, percentile: float) -> UniformQuantizationObserverBase:
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
