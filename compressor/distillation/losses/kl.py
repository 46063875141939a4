"""Softened probabilities: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015)."""

import torch.nn.functional as F
from torch import Tensor


def kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), averaged over the batch.

    Args:
        student_logits: z_s, `[N, classes]`.
        teacher_logits: z_t, `[N, classes]`.
        temperature: T, above 0.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
