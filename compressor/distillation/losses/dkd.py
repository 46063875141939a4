"""Hinton's loss in two parts: Zhao et al., "Decoupled Knowledge Distillation" (CVPR 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    target: float,
    others: float,
) -> Tensor:
    """T² · (α · KL(b_t ‖ b_s) + β · KL(q_t ‖ q_s)), averaged over the batch.

    b are the probabilities of the label and of everything else, q those of the other classes among themselves, all at
    temperature T. With α = 1 and, for each image, β = b_t's share of everything else, this is Hinton's loss.

    Args:
        student_logits: z_s, `[N, classes]`.
        teacher_logits: z_t, `[N, classes]`.
        labels: the classes, int64 `[N]`, or the share of each, float32 `[N, classes]`, of which the largest counts.
        temperature: T, above 0.
        target: α.
        others: β.
    """
    classes = labels if labels.dim() == 1 else labels.argmax(1)
    of_label = F.one_hot(classes, student_logits.shape[1]).bool()
    student_pair, student_rest = _parts(student_logits / temperature, of_label)
    teacher_pair, teacher_rest = _parts(teacher_logits / temperature, of_label)
    on_label = F.kl_div(student_pair, teacher_pair, reduction="batchmean", log_target=True)
    on_others = F.kl_div(student_rest, teacher_rest, reduction="batchmean", log_target=True)
    return temperature**2 * (target * on_label + others * on_others)


def _parts(logits: Tensor, of_label: Tensor) -> tuple[Tensor, Tensor]:
    """log b, `[N, 2]`, and log q, `[N, classes − 1]`."""
    label, rest = logits[of_label], logits[~of_label].view(len(logits), -1)
    pair = torch.stack([label, rest.logsumexp(1)], 1)
    return F.log_softmax(pair, dim=1), F.log_softmax(rest, dim=1)
