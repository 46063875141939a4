"""Int8: calibrate ranges on real images (PTQ), and train with them in place (QAT).

PTQ is QAT with zero steps: one placement of quantizers, one save, one export; calibration only chooses ranges.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from compressor.distillation.settings import Distillation
from compressor.errors import ArchitectureError
from compressor.models.artifact import TorchModel
from compressor.models.changes import Int8
from compressor.pipeline.context import Context
from compressor.pipeline.stage import Stage
from compressor.quantization.calibration import CALIBRATION_BATCH, Observer, calibrate, signal_to_noise
from compressor.quantization.float_layers import float_batch_norms, float_layers, in_float
from compressor.quantization.placement import quantize_network
from compressor.training.loop import fit
from compressor.training.objectives import CrossEntropy


class Quantize(Distillation, Stage):
    """Round weights to int8 and activations to uint8, as ONNX Runtime executes them.

    Attributes:
        mode: ptq calibrates; qat then trains on, with activations' ranges as calibrated and weights' following them.
        observer: how calibration chooses a range: the smallest and largest value, their moving average over batches,
            the range of least squared error on a histogram, or one that leaves out the tails.
        percentile: share of values inside the range of the percentile observer.
        skip: layers (names as in `layer1.0.conv1`, or modules that hold them) that stay in float.
        weight_bits: 7 for x86 processors without VNNI, whose 8-bit products saturate.

    With a teacher, qat distils from it; without one, it learns from labels.
    """

    example: ClassVar[dict[str, Any]] = {"stage": "quantize", "mode": "qat", "epochs": 1}

    stage: Literal["quantize"] = "quantize"
    mode: Literal["ptq", "qat"]
    observer: Observer = "histogram"
    percentile: float = Field(0.9999, gt=0.5, le=1)
    skip: tuple[str, ...] = ()
    weight_bits: Literal[7, 8] = 8
    epochs: int = Field(0, ge=0, le=100_000)
    optimizer: Literal["sgd", "adamw"] = "adamw"  # steps that do not depend on the scale of folded weights
    learning_rate: float | None = Field(1e-4, gt=0, le=10)
    keep: Literal["last", "best"] = "best"  # never worse on validation than calibration alone
    weight_decay: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "Quantize":
        if self.mode == "qat" and self.epochs == 0:
            raise ValueError("mode qat trains, so it needs epochs; without training, say mode: ptq")
        if self.mode == "ptq" and (self.epochs or self.teacher_ids):
            raise ValueError("mode ptq does not train, so it takes no epochs and no teacher; to train, say mode: qat")
        if self.features:
            raise ValueError("features are layers by name, which a quantized network no longer has; leave them out")
        default = type(self).model_fields
        if self.observer != "percentile" and self.percentile != default["percentile"].default:
            raise ValueError("percentile is for observer: percentile; name that observer, or leave percentile out")
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
        data = context.data
        calibrate(network, data.calibration_batches(CALIBRATION_BATCH), self.observer, self.percentile)
        objective, weights = self.objective(network, context) if self.teacher_ids else (CrossEntropy(), [])
        details = fit(
            network,
            objective,
            self,
            context,
            label=self.id,
            views=self.views,
            masked=model.masked,
            frozen=model.frozen,
        )
        change = Int8(activations=network.ranges(), skip=self.skip, weight_bits=self.weight_bits)
        noise = signal_to_noise(network, data.calibration_batches(CALIBRATION_BATCH))
        layers, batch_norms = float_layers(network, data.preprocess.input_shape(2)), float_batch_norms(network)
        if words := in_float(layers, batch_norms):
            context.services.console.say(f"  {self.id} leaves in float: {words}")
        details |= {
            "signal_to_noise_db": noise,
            "teacher_weights": weights,
            "float_layers": layers,
            "float_batch_norms": batch_norms,
        }
        return model.with_network(network, change, details=details)
