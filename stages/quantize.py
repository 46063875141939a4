"""Int8: calibrate ranges on real images (PTQ), and train with the rounding in place (QAT).

PTQ is QAT with zero steps: one placement of quantizers, one save, one export; calibration only chooses ranges. With
`max_drop`, PTQ comes first, and what it costs is mended step by step until the accuracy holds.
"""

import math
from dataclasses import dataclass, field, replace
from operator import not_
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compressor import evaluation, models, quantization, training
from compressor.config.spec import validated_copy
from compressor.distillation.settings import Distillation
from compressor.errors import ArchitectureError
from compressor.pipeline.stage import Stage
from compressor.quantization.settings import Observer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, memory_format, nn

    from compressor import Context, Split, TorchModel
    from compressor.evaluation import Candidate
    from compressor.quantization import Ladder, QuantizedNetwork

    _Made = tuple["_Work", QuantizedNetwork | None, dict[str, Any]]  # None: in float; what a report says of it

FLOAT = "the network in float"  # as a teacher
JUDGED_IMAGES = 1000  # of the validation split, on which a measured placement has to hold
TOLERATED = 0.01  # of them: what a measured placement may cost


def _is_none(value: object) -> bool:
    return value is None


def _saturates() -> bool:
    """Whether 8-bit products saturate on this processor."""
    from compressor.environment import saturates_int8  # importing torch takes seconds; wrong pipelines fail before

    return saturates_int8()


class Quantize(Distillation, Stage):
    """Round weights to int8 and activations to uint8, as ONNX Runtime executes them.

    With a teacher, QAT distils from it; without one, it learns from labels, or with `max_drop` from the network itself.
    """

    example: ClassVar[dict[str, Any]] = {"stage": "quantize", "mode": "qat", "epochs": 1}
    makes_integers: ClassVar[bool] = True

    stage: Literal["quantize"] = "quantize"
    mode: Literal["ptq", "qat"] | None = Field(None, exclude_if=_is_none)
    """`ptq` calibrates; `qat` then trains, with scales of activations as calibrated, of weights as these change."""
    max_drop: float | None = Field(None, ge=0, le=100, exclude_if=_is_none)
    """Instead of a mode: the points of validation accuracy that int8 may cost; what costs more is mended."""
    observer: Observer = "histogram"
    """How a range is chosen: min to max, their moving average, least squared error (histogram), or without tails."""
    percentile: float = Field(0.9999, gt=0.5, le=1)
    """The share of values inside the range of the percentile observer."""
    skip: tuple[str, ...] = ()
    """Layers that stay in float, by name, as in `layer1.0.conv1`, or modules that hold them."""
    weight_bits: Literal[7, 8, "auto"] = "auto"
    """7 for x86 processors without VNNI, whose 8-bit products saturate; `auto` is 7 on such a processor, else 8."""
    placement: Literal["layers", "wide", "measured"] = "layers"
    """What is rounded: `layers` and additions, `wide` also what lies between them, or what is fastest as `measured`."""
    learn_scales: bool = Field(False, exclude_if=not_)
    """Train the scales of activations, too (LSQ; Esser et al. 2020), from calibration on."""
    epochs: int = Field(0, ge=0, le=100_000)
    """Passes over the training images, in mode qat; with max_drop, 1 by default, and 0 leaves training out."""
    optimizer: Literal["sgd", "adamw"] = "adamw"  # its steps do not depend on the scale of folded weights
    """SGD with Nesterov momentum, or AdamW."""
    learning_rate: float | None = Field(1e-4, gt=0, le=10)
    """The peak learning rate."""
    keep: Literal["last", "best"] = "best"  # never worse on validation than calibration alone
    """Keep the last epoch, or the one that is best on validation (what training begins from counts as epoch 0)."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """Weight decay; norms and biases are left out unless `decay_all`."""

    @model_validator(mode="before")
    @classmethod
    def _a_ladder_trains_one_epoch(cls, given: Any) -> Any:
        return {"epochs": 1, **given} if isinstance(given, dict) and given.get("max_drop") is not None else given

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "Quantize":
        if (self.mode is None) == (self.max_drop is None):
            raise ValueError("set either mode: ptq or qat, or max_drop, the points of accuracy that int8 may cost")
        if self.mode == "qat" and self.epochs == 0:
            raise ValueError("mode qat trains, so it needs epochs; to calibrate only, use mode: ptq")
        if self.mode == "ptq" and (self.epochs or self.teacher_ids or self.balance):
            raise ValueError(
                "mode ptq does not train, so it takes no epochs, no teacher and no balance; to train, use mode: qat"
            )
        if self.max_drop is not None and not self.epochs and (self.teacher_ids or self.balance):
            raise ValueError("without epochs nothing trains, so a teacher and balance do nothing; leave them out")
        if not self.epochs and (self.freeze or self.learning_rates or self.learn_scales):
            raise ValueError(
                "without epochs nothing trains, so freeze, learning_rates and learn_scales do nothing; leave them out"
            )
        if self.features:
            raise ValueError("features name layers, which a quantized network no longer has; leave them out")
        if self.cuda_graphs or self.compile:
            raise ValueError("rounding to integers is not recorded or compiled; leave cuda_graphs and compile out")
        default = type(self).model_fields
        if self.observer != "percentile" and self.percentile != default["percentile"].default:
            raise ValueError("percentile needs observer: percentile; use that observer, or leave percentile out")
        return self

    @property
    def bits(self) -> Literal[7, 8]:
        """Of weights, on this machine."""
        if self.weight_bits == "auto":
            return 7 if _saturates() else 8
        return self.weight_bits

    def decided_by(self, context: "Context") -> Any:
        """The processor, where it chooses the bits of weights, or is what is timed."""
        decides: dict[str, Any] = {"weight_bits": self.bits}
        if self.placement == "measured" or self.max_drop is not None:
            from compressor.evaluation.costs import layers  # which imports ONNX Runtime

            decides["machine"] = layers.machine()
        return decides

    def run(self, model: "TorchModel", context: "Context") -> "TorchModel":
        """The quantized network.

        Raises:
            ArchitectureError: it is quantized already, cannot be traced, or has no layer that `skip` names.
            StageError: training diverged.
        """
        if model.quantized:
            raise ArchitectureError("the network is quantized already; one quantize stage is enough")
        if _saturates():
            takes = "so weights take 7" if self.bits == 7 else "but weight_bits is 8; `auto` takes 7"
            context.services.console.say(f"  {self.id}: on this processor 8-bit products saturate, {takes}")
        work, details = _Work(self, model, context, evaluation.Candidate("layers", self.skip)), dict[str, Any]()
        network: QuantizedNetwork | None
        if self.placement == "measured":
            work, network, details = self._fastest(work)
        else:
            work = replace(work, candidate=replace(work.candidate, placement=self.placement))
            network = work.calibrated()
        if network is not None and self.max_drop is not None:
            work, network, tried = self._mended(work, network, self.max_drop)
            details |= tried
        elif network is not None:
            details |= work.train(network)
        if network is None:
            return model.with_network(model.copy_network(), details=details)
        change = models.Int8(
            activations=network.ranges(),
            skip=work.candidate.skip,
            weight_bits=self.bits,
            placement=work.candidate.placement,
        )
        images = work.batches("measuring rounding error", network, quantization.NOISE_IMAGES)
        noise = quantization.signal_to_noise(network, images)
        shape = context.data.preprocess.input_shape(2)
        layers, batch_norms = quantization.float_layers(network, shape), quantization.float_batch_norms(network)
        if words := quantization.in_float(layers, batch_norms):
            context.services.console.say(f"  {self.id} leaves in float: {words}")
        details |= {"signal_to_noise_db": noise, "float_layers": layers, "float_batch_norms": batch_norms}
        return model.with_network(network, change, details=details)

    @property
    def data_parallel(self) -> bool:
        """Whether it is QAT alone; what is measured, or climbed rung by rung, is for one process."""
        return super().data_parallel and self.mode == "qat" and self.placement != "measured"

    def for_dry_run(self) -> Self:
        """The wide placement in place of measuring, which takes minutes; calibration and training for a ladder."""
        stage = super().for_dry_run()
        if stage.max_drop is not None:
            stage = validated_copy(stage, max_drop=None, mode="qat" if stage.epochs else "ptq")
        return validated_copy(stage, placement="wide") if self.placement == "measured" else stage

    def _fastest(self, work: "_Work") -> "_Made":
        """The fastest placement whose accuracy holds.

        Nothing if none is faster than the float file, or none keeps its accuracy. Mode qat and `max_drop` take the
        fastest, and mend what rounding costs.
        """
        context, say = work.context, work.context.services.console.say
        say(f"  {self.id}: timing placements of integers in ONNX Runtime; this takes a minute or two")
        images = work.images(evaluation.ROUGH_IMAGES)
        measured = evaluation.fastest_placement(work.model, images, skip=self.skip, weight_bits=self.bits)
        say(f"  {self.id}: {measured.in_words()}")
        if not measured.faster:
            say(f"  {self.id}: the network stays in float")
            return work, None, {"placement": measured.details(None)}
        if self.mode != "ptq":
            fastest = measured.faster[0]
            work = replace(work, candidate=fastest.candidate)
            return work, work.calibrated(), {"placement": measured.details(fastest)}
        validation = context.data.validation
        judged = validation.take(validation.spread(JUDGED_IMAGES))
        in_float = work.correct_of(work.model.copy_network(), judged)
        judgement = {"judged": len(judged), "correct_in_float": in_float}
        correct: dict[evaluation.Candidate, int] = {}
        for attempt in measured.faster:
            work = replace(work, candidate=attempt.candidate)
            network = work.calibrated()
            right = correct[attempt.candidate] = work.correct_of(network, judged)
            if right >= in_float - TOLERATED * len(judged):
                say(f"  {self.id}: {attempt.in_words()}")
                return work, network, {"placement": measured.details(attempt, correct) | judgement}
            words = f"{right} of {len(judged)} validation images right, {in_float} in float"
            say(f"  {self.id}: {attempt.in_words()} costs accuracy: {words}")
        say(f"  {self.id}: the network stays in float; mode: qat trains what rounding costs")
        return work, None, {"placement": measured.details(None, correct) | judgement}

    def _mended(self, work: "_Work", calibrated: "QuantizedNetwork", max_drop: float) -> "_Made":
        """The first network on the ladder whose accuracy holds; nothing if none does."""
        total, in_float = len(work.context.data.validation), work.correct(work.model.copy_network())
        say = work.context.services.console.say
        ladder = quantization.Ladder(
            work,
            math.ceil(in_float - max_drop / 100 * total),
            trains=self.epochs > 0,
            say=lambda name, correct: say(
                f"  {self.id}: {name}: {correct} of {total} validation images right, {in_float} in float"
            ),
        )
        kept = ladder.rungs[-1] if ladder.climb(calibrated) else None
        tried = {
            "max_drop": max_drop,
            "images": total,
            "correct_in_float": in_float,
            "kept": None if kept is None else kept.name,
            "rungs": ladder.details(_speedups(ladder, calibrated, work.model)),
        }
        if kept is None:
            say(f"  {self.id}: no network on integers holds its accuracy, so it stays in float")
            return work, None, {"ladder": tried}
        details = work.trainings.get(ladder.last, {})
        return work.with_floats(kept.floats), ladder.last, {**details, "ladder": tried}


@dataclass(frozen=True)
class _Work:
    """A network to quantize, by a stage's settings, with integers where the candidate has them."""

    stage: Quantize
    model: "TorchModel"
    context: "Context"
    candidate: "Candidate"
    trainings: "dict[nn.Module, dict[str, Any]]" = field(default_factory=dict)  # what reports say of trained networks

    def with_floats(self, names: "Sequence[str]") -> "_Work":
        """The same with more layers in float."""
        return replace(self, candidate=replace(self.candidate, skip=(*self.candidate.skip, *names)))

    def place(self, floats: "Sequence[str]" = ()) -> "QuantizedNetwork":
        """The network on integers, but for more layers, not calibrated."""
        candidate = self.with_floats(floats).candidate
        return quantization.quantize_network(
            self.model.copy_network(),
            self.context.data.preprocess.input_shape(2),
            skip=candidate.skip,
            weight_bits=self.stage.bits,
            placement=candidate.placement,
        )

    def calibrated(self) -> "QuantizedNetwork":
        """The network on integers."""
        network = self.place()
        self.calibrate(network)
        return network

    def calibrate(self, network: "QuantizedNetwork") -> None:
        """Choose ranges on the calibration images, in place."""
        quantization.calibrate(
            network, self.batches("calibrating", network), self.stage.observer, self.stage.percentile
        )

    def train(self, network: "QuantizedNetwork", label: str = "") -> dict[str, Any]:
        """QAT, in place, from teachers or labels; on a ladder, without a teacher, from the network itself in float."""
        stage, context = self.stage, self.context
        if stage.max_drop is not None and not stage.teacher_ids:
            stage = validated_copy(stage, teacher=FLOAT)
            context = replace(context, teachers={**context.teachers, FLOAT: self.model})
        context = stage.shown(context)
        if stage.teacher_ids:
            objective, weights = stage.objective(network, context)
        else:
            objective, weights = training.CrossEntropy(class_weights=training.class_weights(stage, context.data)), []
        quantizers = network.activation_quantizers.values()
        for quantizer in quantizers if stage.learn_scales else ():
            quantizer.learn_scale()
        name = f"{stage.id}-{label}" if label else stage.id
        details = training.fit(network, objective, stage, context, label=name, views=stage.views, start=self.model)
        for quantizer in quantizers:
            quantizer.settle_scale()
        self.trainings[network] = details | {"teacher_weights": weights}
        return self.trainings[network]

    def correct(self, network: "nn.Module") -> int:
        """How many validation images the network predicts correctly."""
        return self.correct_of(network, self.context.data.validation)

    def correct_of(self, network: "nn.Module", split: "Split") -> int:
        """How many images of a split the network predicts correctly."""
        layout = training.lay_out(network.to(self.context.device), self.context.data)
        correct = training.evaluate(network, split, self.context, "fp32", layout)
        network.cpu()
        return correct

    def images(self, most: int) -> "Tensor":
        """The first calibration images, normalised, `[N, C, H, W]`."""
        return next(self.context.data.calibration_batches(most, most))

    def batches(self, label: str, network: "QuantizedNetwork", images: int | None = None) -> "Iterator[Tensor]":
        """The calibration images, or the first of them, normalised, in small batches, with progress."""
        layout = training.lay_out(network, self.context.data)  # runs the network, so before any observer looks
        return self._batches(label, layout, images)

    def _batches(self, label: str, layout: "memory_format", images: int | None) -> "Iterator[Tensor]":
        data = self.context.data
        count = len(data.calibration)
        largest = data.preprocess.max_batch // quantization.CALIBRATION_SHARE
        size = min(quantization.CALIBRATION_BATCH, max(1, largest))
        with self.context.services.console.progress(label, min(count, images or count)) as advance:
            for batch in data.calibration_batches(size, images):
                yield batch.contiguous(memory_format=layout)
                advance(len(batch))


def _speedups(ladder: "Ladder", calibrated: "QuantizedNetwork", model: "TorchModel") -> list[float]:
    """How much faster than the float file the networks are.

    Mending and training change numbers, not operators, so a network takes as long before as after.
    """
    networks = {rung.floats: ladder.partly(calibrated, rung.floats) for rung in ladder.rungs}
    files = [model.with_network(network, details={}).to_onnx("").content for network in networks.values()]
    latencies = evaluation.timed_against(model.to_onnx("").content, files)
    speedups = {floats: latency.speedup for floats, latency in zip(networks, latencies, strict=True)}
    return [speedups[rung.floats] for rung in ladder.rungs]
