"""Learning from a teacher: Hinton's loss, and the teacher's outputs, asked for or stored."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from compressor.config.spec import Spec
from compressor.errors import ArtifactError
from compressor.models.artifact import TorchModel
from compressor.storage import files, tensors
from compressor.storage.code import code_digest
from compressor.training.loop import Batch, Loss, autocast, evaluate, layout_of, training_views
from compressor.training.settings import Training

if TYPE_CHECKING:
    from compressor.pipeline.stage import Context


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float, alpha: float
) -> Tensor:
    """The loss of Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015).

    L = α · T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)) + (1 − α) · CE(y, softmax(z_s)), averaged over the batch.

    Args:
        student_logits: z_s, `[N, classes]`.
        teacher_logits: z_t, `[N, classes]`.
        labels: y, int64 `[N]`.
        temperature: T, above 0.
        alpha: the teacher's share, 0 to 1.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    soft = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return alpha * temperature**2 * soft + (1 - alpha) * F.cross_entropy(student_logits, labels)


class Cache(Spec):
    """Store the teacher's outputs for augmented views of the training images, once, and cycle through them.

    Attributes:
        views: how many views of every image.
    """

    views: int = Field(ge=1, le=10_000)


class Teacher:
    """A teacher's logits for training batches.

    With `views`, its outputs for that many augmented views of all training images are computed once; training then
    cycles through these views, and the teacher is not run again. Where the context keeps soft labels, every later
    stage and run with the same teacher, images, augmentation, seed and code takes them from there.
    """

    def __init__(self, teacher: TorchModel, context: "Context", views: int | None) -> None:
        self.device = context.device
        self.network = teacher.copy_network().eval().requires_grad_(False).to(self.device)
        self.layout = layout_of(self.network, context.data)
        self.stored: list[Tensor] | None = None  # for each view, [N, classes]
        if views is not None:
            self.stored = list(self._soft_labels(teacher, context, views))

    def __call__(self, batch: Batch) -> Tensor:
        """Logits `[B, classes]` for this batch."""
        if self.stored is None:
            return self._run(batch.inputs)
        return self.stored[batch.view][batch.indices.to(self.device)]

    def _soft_labels(self, teacher: TorchModel, context: "Context", views: int) -> Iterator[Tensor]:
        paths = _paths(teacher, context, views)
        reused = 0
        for path, inputs in zip(paths, training_views(context, views, self.layout), strict=True):
            stored = _read(path, context)
            if stored is None:
                stored = torch.cat([self._run(x.to(self.device)) for x in inputs])
                if path is not None:
                    tensors.write(path, {"logits": stored})
            else:
                reused += 1
            yield stored.to(self.device)
        if reused:
            context.console.say(f"  {reused} of {views} views have the teacher's outputs stored already")

    def accuracy(self, context: "Context") -> float:
        """On the validation images."""
        validation = context.data.validation.to(self.device)
        return evaluate(self.network, validation, context.data, "fp32", self.layout) / len(validation)

    @torch.no_grad()
    def _run(self, inputs: Tensor) -> Tensor:
        with autocast(self.device, "auto"):
            logits: Tensor = self.network(inputs.contiguous(memory_format=self.layout))
        return logits.float()


def _paths(teacher: TorchModel, context: "Context", views: int) -> list[Path | None]:
    """Where the soft labels of each view are kept, named by all that they depend on."""
    folder = context.soft_labels
    if folder is None:
        return [None] * views
    factory = teacher.architecture.factory
    depends_on = {
        "teacher": teacher.digest,
        "images": context.data.train.fingerprint,
        "preprocess": context.data.preprocess.model_dump(mode="json"),
        "augment": context.data.augment.model_dump(mode="json"),
        "seed": context.seed,
        "device": context.device.type,
        "code": code_digest([] if factory is None else [factory.partition(":")[0]]),
    }
    return [folder / f"{files.digest_json({**depends_on, 'view': view})}.safetensors" for view in range(views)]


def _read(path: Path | None, context: "Context") -> Tensor | None:
    if path is None or not path.exists():
        return None
    try:
        return tensors.read(path)[0]["logits"]
    except ArtifactError as error:
        context.console.say(f"  soft labels: {error}; they are made again")
        return None


class Taught(Training):
    """Settings of a training from one or several teachers.

    Attributes:
        teacher: id of an earlier stage.
        teachers: ids of earlier stages, in place of one `teacher`.
        weighting: of several teachers: all alike, or by their accuracy on the validation images (if none is right on
            any, all alike).
        temperature: T, which both networks' logits are divided by.
        alpha: the teachers' share of the loss.
        cache: store the teachers' outputs, rather than run them at every step.
    """

    teacher: str | None = None
    teachers: tuple[str, ...] = ()
    weighting: Literal["equal", "accuracy"] = "equal"
    temperature: float = Field(4.0, ge=0.1, le=100)
    alpha: float = Field(0.9, ge=0, le=1)
    cache: Cache | None = None

    @model_validator(mode="after")
    def _teachers_are_one_or_several(self) -> Self:
        if self.teacher is not None and self.teachers:
            raise ValueError("`teacher` names one, `teachers` several; leave one of the two out")
        if self.teachers and len(set(self.teachers)) < max(len(self.teachers), 2):
            raise ValueError("`teachers` are at least two, each named once; one is named with `teacher:`")
        default = Taught.model_fields
        for name in ("temperature", "alpha", "cache"):
            if not self.teacher_ids and getattr(self, name) != default[name].default:
                raise ValueError(
                    f"{name} is for learning from a teacher; name one with `teacher:`, or leave {name} out"
                )
        if not self.teachers and self.weighting != default["weighting"].default:
            raise ValueError("weighting is of several teachers; name them with `teachers:`, or leave weighting out")
        return self

    @property
    def teacher_ids(self) -> tuple[str, ...]:
        """The stages that teach; none where the stage learns from labels."""
        return self.teachers if self.teacher is None else (self.teacher,)

    @property
    def views(self) -> int | None:
        """How many views training cycles through; None for another in every epoch."""
        return min(self.cache.views, self.epochs) if self.cache is not None else None

    def lesson(self, context: "Context") -> tuple[Loss, list[float]]:
        """What is minimised, and the weight of each teacher, in their order; the weights sum to 1.

        Raises:
            UserError: there is no such teacher.
        """
        teachers = [Teacher(context.teacher(stage_id), context, self.views) for stage_id in self.teacher_ids]
        weights = [1 / len(teachers)] * len(teachers)
        if self.weighting == "accuracy":
            accuracies = [teacher.accuracy(context) for teacher in teachers]
            if any(accuracies):
                weights = [accuracy / sum(accuracies) for accuracy in accuracies]
        given = partial(distillation_loss, temperature=self.temperature, alpha=self.alpha)

        def loss(logits: Tensor, batch: Batch) -> Tensor:
            losses = [given(logits, teacher(batch), batch.labels) for teacher in teachers]
            return torch.stack([weight * each for weight, each in zip(weights, losses, strict=True)]).sum()

        return loss, weights
