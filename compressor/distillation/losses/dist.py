"""Correlation in place of equality: Huang et al., "Knowledge Distillation from A Stronger Teacher" (NeurIPS 2022)."""

import torch
from torch import Tensor

EPSILON = 1e-12  # of a row of zeros
FLOOR = 0.1  # the least deviation, as a share of the mean: who has hardly any yet learns at an ordinary pace


def dist(student_logits: Tensor, teacher_logits: Tensor, temperature: float, *, inter: float, intra: float) -> Tensor:
    """T² · (β · mean_i(1 − ρ(p_s[i], p_t[i])) + γ · mean_c(1 − ρ(p_s[:, c], p_t[:, c]))).

    ρ is Pearson's correlation: of the classes of image i, and of the images of class c; p = softmax(z / T).

    Args:
        student_logits: z_s, `[N, classes]`.
        teacher_logits: z_t, `[N, classes]`.
        temperature: T, above 0.
        inter: β.
        intra: γ.
    """
    student, teacher = ((logits / temperature).softmax(1) for logits in (student_logits, teacher_logits))
    between_classes = 1 - correlation(student, teacher).mean()
    between_images = 1 - correlation(student.T, teacher.T).mean()
    return temperature**2 * (inter * between_classes + intra * between_images)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's ρ of every row, `[N]`; nearer to 0 where a row deviates from its mean by less than a tenth of it."""
    return (_unit(a) * _unit(b)).sum(1)


def _unit(rows: Tensor) -> Tensor:
    """Rows without their mean, divided by their length."""
    mean = rows.mean(1, keepdim=True)
    deviation = rows - mean
    least = FLOOR * mean.detach().abs() * rows.shape[1] ** 0.5
    return deviation / torch.maximum(deviation.norm(dim=1, keepdim=True), least).clamp_min(EPSILON)
