"""Int8: calibrate ranges on real images (PTQ), and train with the rounding in place (QAT).

PTQ is QAT with zero steps: one placement of quantizers, one save, one export; calibration only chooses ranges.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from compressor import evaluation, models, quantization, training
from compressor.config.spec import validated_copy
from compressor.distillation.settings import Distillation
from compressor.errors import ArchitectureError
from compressor.pipeline.stage import Stage
from compressor.quantization.settings import Observer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from compressor import Context, Split, TorchModel
    from compressor.evaluation import Candidate
    from compressor.quantization import QuantizedNetwork

JUDGED_IMAGES = 1000  # of the validation split, on which a measured placement has to hold
TOLERATED = 0.01  # of them: what a measured placement may cost


class Placed(NamedTuple):
    """A calibrated network, and where its integers are."""

    candidate: "Candidate"
    network: "QuantizedNetwork"


class Quantize(Distillation, Stage):
    """Round weights to int8 and activations to uint8, as ONNX Runtime executes them.

    With a teacher, QAT distils from it; without one, it learns from labels.
    """

    example: ClassVar[dict[str, Any]] = {"stage": "quantize", "mode": "qat", "epochs": 1}
    makes_integers: ClassVar[bool] = True

    stage: Literal["quantize"] = "quantize"
    mode: Literal["ptq", "qat"]
    """`ptq` calibrates; `qat` then trains, with activation ranges as calibrated and scales that follow the weights."""
    observer: Observer = "histogram"
    """How a range is chosen: min to max, their moving average, least squared error (histogram), or without tails."""
    percentile: float = Field(0.9999, gt=0.5, le=1)
    """The share of values inside the range of the percentile observer."""
    skip: tuple[str, ...] = ()
    """Layers that stay in float, by name, as in `layer1.0.conv1`, or modules that hold them."""
    weight_bits: Literal[7, 8] = 8
    """7 for x86 processors without VNNI, whose 8-bit products saturate."""
    placement: Literal["layers", "wide", "measured"] = "layers"
    """What is rounded: `layers` and additions, `wide` also what lies between them, or what is fastest as `measured`."""
    epochs: int = Field(0, ge=0, le=100_000)
    """Passes over the training images, in mode qat."""
    optimizer: Literal["sgd", "adamw"] = "adamw"  # its steps do not depend on the scale of folded weights
    """SGD with Nesterov momentum, or AdamW."""
    learning_rate: float | None = Field(1e-4, gt=0, le=10)
    """The peak learning rate."""
    keep: Literal["last", "best"] = "best"  # never worse on validation than calibration alone
    """Keep the last epoch, or the one that is best on validation (the calibrated network counts as epoch 0)."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """Weight decay; norms and biases are left out unless `decay_all`."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "Quantize":
        if self.mode == "qat" and self.epochs == 0:
            raise ValueError("mode qat trains, so it needs epochs; to calibrate only, use mode: ptq")
        if self.mode == "ptq" and (self.epochs or self.teacher_ids or self.balance):
            raise ValueError(
                "mode ptq does not train, so it takes no epochs, no teacher and no balance; to train, use mode: qat"
            )
        if self.mode == "ptq" and (self.freeze or self.learning_rates):
            raise ValueError("mode ptq does not train, so it takes no freeze and no learning_rates; leave them out")
        if self.features:
            raise ValueError("features name layers, which a quantized network no longer has; leave them out")
        default = type(self).model_fields
        if self.observer != "percentile" and self.percentile != default["percentile"].default:
            raise ValueError("percentile needs observer: percentile; use that observer, or leave percentile out")
        return self

    def run(self, model: "TorchModel", context: "Context") -> "TorchModel":
        """The quantized network.

        Raises:
            ArchitectureError: it is quantized already, cannot be traced, or has no layer that `skip` names.
            StageError: training diverged.
        """
        if model.quantized:
            raise ArchitectureError("the network is quantized already; one quantize stage is enough")
        measured: dict[str, Any] = {}
        if self.placement == "measured":
            placed, measured = self._fastest(model, context)
        else:
            placed = self._placed(evaluation.Candidate(self.placement, self.skip), model, context)
        if placed is None:
            return model.with_network(model.copy_network(), details=measured)
        network = placed.network
        shown = self.shown(context)
        if self.teacher_ids:
            objective, weights = self.objective(network, shown)
        else:
            objective, weights = training.CrossEntropy(class_weights=training.class_weights(self, context.data)), []
        details = training.fit(
            network,
            objective,
            self,
            shown,
            label=self.id,
            views=self.views,
            start=model,
        )
        change = models.Int8(
            activations=network.ranges(),
            skip=placed.candidate.skip,
            weight_bits=self.weight_bits,
            placement=placed.candidate.placement,
        )
        images = self._batches("measuring rounding error", network, context, quantization.NOISE_IMAGES)
        noise = quantization.signal_to_noise(network, images)
        shape = context.data.preprocess.input_shape(2)
        layers, batch_norms = quantization.float_layers(network, shape), quantization.float_batch_norms(network)
        if words := quantization.in_float(layers, batch_norms):
            context.services.console.say(f"  {self.id} leaves in float: {words}")
        details |= {
            "signal_to_noise_db": noise,
            "teacher_weights": weights,
            "float_layers": layers,
            "float_batch_norms": batch_norms,
            **measured,
        }
        return model.with_network(network, change, details=details)

    def for_dry_run(self) -> Self:
        """The wide placement, which takes every step, in place of measuring, which takes minutes."""
        stage = super().for_dry_run()
        return validated_copy(stage, placement="wide") if self.placement == "measured" else stage

    def _placed(self, candidate: "Candidate", model: "TorchModel", context: "Context") -> Placed:
        """The network with integers where the candidate has them, calibrated."""
        shape = context.data.preprocess.input_shape(2)
        network = quantization.quantize_network(
            model.copy_network(),
            shape,
            skip=candidate.skip,
            weight_bits=self.weight_bits,
            placement=candidate.placement,
        )
        images = self._batches("calibrating", network, context)
        quantization.calibrate(network, images, self.observer, self.percentile)
        return Placed(candidate, network)

    def _fastest(self, model: "TorchModel", context: "Context") -> tuple[Placed | None, dict[str, Any]]:
        """The fastest placement whose accuracy holds, and what a report says of those tried.

        Nothing if none is faster than the float file, or none keeps its accuracy. Mode qat takes the fastest: training
        mends what rounding costs.
        """
        say = context.services.console.say
        say(f"  {self.id}: timing placements of integers in ONNX Runtime; this takes a minute or two")
        images = next(context.data.calibration_batches(evaluation.ROUGH_IMAGES, evaluation.ROUGH_IMAGES))
        measured = evaluation.fastest_placement(model, images, skip=self.skip, weight_bits=self.weight_bits)
        say(f"  {self.id}: {measured.in_words()}")
        if not measured.faster:
            say(f"  {self.id}: the network stays in float")
            return None, {"placement": measured.details(None)}
        if self.mode == "qat":
            fastest = measured.faster[0]
            return self._placed(fastest.candidate, model, context), {"placement": measured.details(fastest)}
        validation = context.data.validation
        judged = validation.take(validation.spread(JUDGED_IMAGES))
        in_float = self._correct(model.copy_network(), judged, context)
        judgement = {"judged": len(judged), "correct_in_float": in_float}
        correct: dict[evaluation.Candidate, int] = {}
        for attempt in measured.faster:
            placed = self._placed(attempt.candidate, model, context)
            right = correct[attempt.candidate] = self._correct(placed.network, judged, context)
            if right >= in_float - TOLERATED * len(judged):
                say(f"  {self.id}: {attempt.in_words()}")
                return placed, {"placement": measured.details(attempt, correct) | judgement}
            words = f"{right} of {len(judged)} validation images right, {in_float} in float"
            say(f"  {self.id}: {attempt.in_words()} costs accuracy: {words}")
        say(f"  {self.id}: the network stays in float; mode: qat trains what rounding costs")
        return None, {"placement": measured.details(None, correct) | judgement}

    def _correct(self, network: "nn.Module", split: "Split", context: "Context") -> int:
        """How many images of a split the network predicts correctly."""
        layout = training.layout_of(network, context.data)
        network.to(context.device).to(memory_format=layout)
        correct = training.evaluate(network, split, context, "fp32", layout)
        network.cpu()
        return correct

    def _batches(
        self, label: str, network: "QuantizedNetwork", context: "Context", images: int | None = None
    ) -> "Iterator[Tensor]":
        """The calibration images, or the first of them, normalised, in small batches, with progress."""
        layout = training.layout_of(network, context.data)
        network.to(memory_format=layout)
        count = len(context.data.calibration)
        largest = context.data.preprocess.max_batch // quantization.CALIBRATION_SHARE
        size = min(quantization.CALIBRATION_BATCH, max(1, largest))
        with context.services.console.progress(label, min(count, images or count)) as advance:
            for batch in context.data.calibration_batches(size, images):
                yield batch.contiguous(memory_format=layout)
                advance(len(batch))
