"""What a student learns from one teacher's logits, and from the labels."""

from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.distillation.losses.dist import dist
from compressor.distillation.losses.dkd import dkd
from compressor.distillation.losses.kl import kl
from compressor.distillation.losses.standardised import standardised
from compressor.distillation.settings import DIST, DKD, KL, MSE, Distillation
from compressor.distillation.teacher import Teacher
from compressor.errors import ArchitectureError
from compressor.training.objectives import Batch, Objective, Watched, cross_entropy


class OnLogits(Protocol):
    """A loss on logits `[N, classes]` of student and teacher, with labels and temperature."""

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """A scalar, averaged over the batch."""


class Lesson(Objective):
    """α · Σ_k w_k · loss_k(z_s, z_t) + (1 − α) · CE(y, softmax(z_s)).

    α and the temperature go from their values to those at the end, linearly over the training. `class_weights`
    (`[classes]`) weigh the cross-entropy only.

    Raises:
        ArchitectureError: the teacher knows other classes.
    """

    class_weights: Tensor | None

    def __init__(self, teacher: Teacher, settings: Distillation, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.teacher, self.settings = teacher, settings
        self.losses = [(each.weight, _on_logits(each)) for each in settings.losses]
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, network: Watched, batch: Batch) -> Tensor:
        student, teacher, own = network.logits(batch), self.teacher.logits(batch), self.settings
        if student.shape != teacher.shape:
            raise ArchitectureError(
                f"the teacher's logits are {list(teacher.shape)}, the student's {list(student.shape)}; both need the "
                "same classes"
            )
        alpha = _between(own.alpha, own.alpha_end, batch.progress)
        temperature = _between(own.temperature, own.temperature_end, batch.progress)
        given = (standardised(student), standardised(teacher)) if own.standardise else (student, teacher)
        taught = torch.stack([weight * loss(*given, batch.labels, temperature) for weight, loss in self.losses]).sum()
        return alpha * taught + (1 - alpha) * cross_entropy(student, batch.labels, self.class_weights)


def _on_logits(settings: KL | DKD | DIST | MSE) -> OnLogits:
    match settings:
        case KL():
            return lambda student, teacher, labels, temperature: kl(student, teacher, temperature)
        case DKD():
            return partial(dkd, target=settings.target, others=settings.others)
        case DIST():
            return lambda student, teacher, labels, temperature: dist(
                student, teacher, temperature, inter=settings.inter, intra=settings.intra
            )
        case MSE():
            return lambda student, teacher, labels, temperature: F.mse_loss(student, teacher)


def _between(start: float, end: float | None, progress: float) -> float:
    return start if end is None else start + progress * (end - start)
