"""Logits without their scale: Sun et al., "Logit Standardization in Knowledge Distillation" (CVPR 2024)."""

from torch import Tensor

EPSILON = 1e-7


def standardised(logits: Tensor) -> Tensor:
    """(z − mean(z)) / std(z) of every image, `[N, classes]`: the order and the ratios of logits, without their size.

    The student then need not reach the size of its teacher's logits, and T means the same for both.
    """
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + EPSILON)
