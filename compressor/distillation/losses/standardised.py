"""Logits without their scale: Sun et al., "Logit Standardization in Knowledge Distillation" (CVPR 2024)."""

from torch import Tensor

FLOOR = 0.01  # added to the variance: a student whose logits are all equal yet learns at an ordinary pace


def standardised(logits: Tensor) -> Tensor:
    """(z − mean(z)) / √(var(z) + 0.01) of every image, `[N, classes]`: the order and ratios of logits, not their size.

    The student then need not reach the size of its teacher's logits, and T means the same for both.
    """
    return (logits - logits.mean(1, keepdim=True)) / (logits.var(1, keepdim=True) + FLOOR).sqrt()
