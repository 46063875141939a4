"""Softened probabilities: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015)."""

import torch.nn.functional as F
from torch import Tensor

from compressor.distillation.teacher import Teacher
from compressor.training.objectives import Batch, Objective, Watched, cross_entropy


class Hinton(Objective):
    """The teacher's softened probabilities, and the labels; `class_weights` (`[classes]`) weigh the labels only."""

    class_weights: Tensor | None

    def __init__(
        self, teacher: Teacher, *, temperature: float, alpha: float, class_weights: Tensor | None = None
    ) -> None:
        super().__init__()
        self.teacher, self.temperature, self.alpha = teacher, temperature, alpha
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, network: Watched, batch: Batch) -> Tensor:
        return distillation_loss(
            network.logits(batch),
            self.teacher.logits(batch),
            batch.labels,
            temperature=self.temperature,
            alpha=self.alpha,
            class_weights=self.class_weights,
        )


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    alpha: float,
    class_weights: Tensor | None = None,
) -> Tensor:
    """L = α · T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)) + (1 − α) · CE(y, softmax(z_s)), averaged over the batch.

    Args:
        student_logits: z_s, `[N, classes]`.
        teacher_logits: z_t, `[N, classes]`.
        labels: y, int64 `[N]`, or the share of each class, float32 `[N, classes]`.
        temperature: T, above 0.
        alpha: the teacher's share, 0 to 1.
        class_weights: of the cross-entropy CE, `[classes]`.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    soft = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return alpha * temperature**2 * soft + (1 - alpha) * cross_entropy(student_logits, labels, class_weights)
