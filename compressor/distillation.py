"""Learning from a teacher: Hinton's loss, and the teacher's outputs, asked for or stored."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.fit import Batch, Loss, autocast, layout_of, training_views

if TYPE_CHECKING:
    from compressor.stage import Context


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


class Teacher:
    """A teacher's logits for training batches.

    With `views`, its outputs for that many augmented views of all training images are computed once; training then
    cycles through these views, and the teacher is not run again.
    """

    def __init__(self, network: nn.Module, context: "Context", views: int | None) -> None:
        self.device = context.device
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.layout = layout_of(self.network, context.data)
        self.stored: list[Tensor] | None = None  # for each view, [N, classes]
        if views is not None:
            inputs_of_views = training_views(context, views, self.layout)
            self.stored = [torch.cat([self._run(x.to(self.device)) for x in inputs]) for inputs in inputs_of_views]

    def __call__(self, batch: Batch) -> Tensor:
        """Logits `[B, classes]` for this batch."""
        if self.stored is None:
            return self._run(batch.inputs)
        return self.stored[batch.view][batch.indices.to(self.device)]

    @torch.no_grad()
    def _run(self, inputs: Tensor) -> Tensor:
        with autocast(self.device, "auto"):
            logits: Tensor = self.network(inputs.contiguous(memory_format=self.layout))
        return logits.float()


def loss_from(teacher: Teacher, temperature: float, alpha: float) -> Loss:
    """`distillation_loss` against `teacher`, as the loss of a training."""

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        return distillation_loss(logits, teacher(batch), batch.labels, temperature=temperature, alpha=alpha)

    return loss
