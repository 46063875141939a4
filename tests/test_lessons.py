"""Losses on logits against numpy: values, gradients, limits."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.special import log_softmax, softmax
from torch import nn

from compressor.distillation.losses.dist import correlation, dist
from compressor.distillation.losses.dkd import dkd
from compressor.distillation.losses.kl import kl
from compressor.distillation.losses.standardised import standardised
from compressor.errors import ArchitectureError
from compressor.training.objectives import Batch, Watched
from stages import Distill, Quantize
from tests.conftest import taught

Array = NDArray[np.float64]

random = np.random.default_rng(0)
STUDENT, TEACHER = random.normal(0, 3, (2, 7, 5))
LABELS = random.integers(0, 5, 7)
SHARES = random.dirichlet(np.ones(5), 7)


def kl_by_numpy(student: Array, teacher: Array, t: float) -> float:
    p = log_softmax(teacher / t, axis=1)
    return float(t**2 * (np.exp(p) * (p - log_softmax(student / t, axis=1))).sum(1).mean())


def dkd_by_numpy(student: Array, teacher: Array, t: float, target: float = 1.0, others: float = 8.0) -> float:
    losses = []
    for s, z, label in zip(softmax(student / t, 1), softmax(teacher / t, 1), LABELS, strict=True):
        rest = np.arange(5) != label
        pair = [(z[label], s[label]), (z[rest].sum(), s[rest].sum())]
        among = zip(z[rest] / z[rest].sum(), s[rest] / s[rest].sum(), strict=True)
        on_label, on_others = (sum(p * np.log(p / q) for p, q in each) for each in (pair, among))
        losses.append(target * on_label + others * on_others)
    return float(t**2 * np.mean(losses))


def dist_by_numpy(student: Array, teacher: Array, t: float, inter: float = 1.0, intra: float = 1.0) -> float:
    s, z = softmax(student / t, 1), softmax(teacher / t, 1)
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s, z, strict=True)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s.T, z.T, strict=True)])
    return float(t**2 * (inter * rows + intra * columns))


def mse_by_numpy(student: Array, teacher: Array, t: float) -> float:
    return float(((student - teacher) ** 2).mean())


BY_NUMPY: dict[str, Callable[..., float]] = {
    "kl": kl_by_numpy,
    "dkd": dkd_by_numpy,
    "dist": dist_by_numpy,
    "mse": mse_by_numpy,
}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("loss", BY_NUMPY)
def test_values_and_gradients_are_those_of_numpy(loss: str, temperature: float) -> None:
    student = torch.from_numpy(STUDENT).requires_grad_()
    settings = {"losses": [{"loss": loss}], "temperature": temperature, "alpha": 1.0}
    got = taught(student, torch.from_numpy(TEACHER), torch.from_numpy(LABELS), **settings)
    expected = BY_NUMPY[loss]
    assert got.item() == pytest.approx(expected(STUDENT, TEACHER, temperature), rel=1e-5)
    got.backward()
    slope = np.zeros_like(STUDENT)
    for place in np.ndindex(*STUDENT.shape):
        step = np.zeros_like(STUDENT)
        step[place] = 1e-5
        ends = (expected(STUDENT + sign * step, TEACHER, temperature) for sign in (1, -1))
        slope[place] = np.subtract(*ends) / 2e-5
    assert student.grad is not None
    assert np.allclose(student.grad.numpy(), slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss", ["kl", "dkd", "dist", "mse"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(loss: str) -> None:
    student = torch.from_numpy(TEACHER).requires_grad_()
    got = taught(student, student.detach(), torch.from_numpy(LABELS), losses=[{"loss": loss}], alpha=1.0)
    got.backward()
    assert got.item() == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-5


def test_the_two_parts_of_dkd_weighted_as_hinton_does_are_hintons_loss() -> None:
    for index in range(7):
        row = slice(index, index + 1)
        given = torch.from_numpy(STUDENT[row]), torch.from_numpy(TEACHER[row])
        others = 1 - softmax(TEACHER[row] / 4, 1)[0, LABELS[index]]
        labels = torch.from_numpy(LABELS[row])
        assert dkd(*given, labels, 4.0, target=1.0, others=others).item() == pytest.approx(kl(*given, 4.0).item())


def test_of_mixed_labels_dkd_takes_the_largest() -> None:
    given = torch.from_numpy(STUDENT), torch.from_numpy(TEACHER)
    mixed, whole = (torch.from_numpy(each) for each in (SHARES, SHARES.argmax(1)))
    assert torch.equal(dkd(*given, mixed, 2.0, target=1.0, others=8.0), dkd(*given, whole, 2.0, target=1.0, others=8.0))


def test_at_high_temperature_hintons_loss_is_the_squared_error_of_centred_logits() -> None:
    """As the paper says: (1 / 2C) · Σ (z_s − z_t)², if both have mean zero."""
    student, teacher = (each - each.mean(1, keepdims=True) for each in (STUDENT, TEACHER))
    got = kl(torch.from_numpy(student), torch.from_numpy(teacher), 1e4)
    assert got.item() == pytest.approx(((student - teacher) ** 2).sum(1).mean() / (2 * 5), rel=1e-3)


@pytest.mark.parametrize("temperature", [0.1, 100.0])
@pytest.mark.parametrize("loss", BY_NUMPY)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_extremes_stay_finite(loss: str, temperature: float, scale: float) -> None:
    student = torch.from_numpy(scale * STUDENT).float().requires_grad_()
    teacher = torch.from_numpy(scale * TEACHER).float()
    for standardise in (False, True):
        settings = {"losses": [{"loss": loss}], "temperature": temperature, "standardise": standardise}
        got = taught(student, teacher, torch.from_numpy(LABELS), **settings)
        (slope,) = torch.autograd.grad(got, student)
        assert got.isfinite()
        assert slope.isfinite().all()
        if scale == 0:  # as in torchvision's ViTs, whose classifier begins at zero
            assert slope.abs().max() < 3 * max(temperature, 1 / temperature)


def test_correlation_ignores_size_and_place() -> None:
    rows = torch.from_numpy(TEACHER)
    assert np.allclose(correlation(3 * rows + 1, rows), 1)
    assert np.allclose(correlation(-rows, rows), -1)
    assert np.allclose(correlation(rows, torch.ones(7, 5, dtype=torch.float64)), 0)


def test_an_only_image_has_no_correlation_over_images() -> None:
    student, teacher = (torch.from_numpy(each[:1]).requires_grad_() for each in (STUDENT, TEACHER))
    got = dist(student, teacher, 1.0, inter=0.0, intra=1.0)
    got.backward()
    assert got.item() == 1
    assert student.grad is not None
    assert student.grad.abs().max() == 0


def test_standardised_logits_are_those_of_numpy() -> None:
    expected = (STUDENT - STUDENT.mean(1, keepdims=True)) / STUDENT.std(1, ddof=1, keepdims=True)
    assert np.allclose(standardised(torch.from_numpy(STUDENT)).numpy(), expected, rtol=0.01)
    got = taught(
        torch.from_numpy(STUDENT),
        torch.from_numpy(7 * STUDENT - 2),
        torch.from_numpy(LABELS),
        standardise=True,
        alpha=1,
    )
    assert got.item() == pytest.approx(0, abs=1e-3)


def test_several_losses_are_added_and_the_labels_have_their_share() -> None:
    losses = [{"loss": "kl", "weight": 0.5}, {"loss": "dist", "weight": 2, "inter": 3, "intra": 0}]
    given = [torch.from_numpy(each) for each in (STUDENT, TEACHER, LABELS)]
    got = taught(*given, losses=losses, temperature=2, alpha=0.3)
    lessons = 0.5 * kl_by_numpy(STUDENT, TEACHER, 2) + 2 * dist_by_numpy(STUDENT, TEACHER, 2, 3, 0)
    labels = -log_softmax(STUDENT, axis=1)[np.arange(7), LABELS].mean()
    assert got.item() == pytest.approx(0.3 * lessons + 0.7 * labels, rel=1e-5)


@pytest.mark.parametrize(("progress", "temperature", "alpha"), [(0.0, 8, 1.0), (0.25, 6.5, 0.75), (1.0, 2, 0.0)])
def test_temperature_and_alpha_change_linearly(progress: float, temperature: float, alpha: float) -> None:
    given = [torch.from_numpy(each) for each in (STUDENT, TEACHER, LABELS)]
    changing = {"temperature": 8, "temperature_end": 2, "alpha": 1, "alpha_end": 0}
    got = taught(*given, progress=progress, **changing)
    assert got.item() == pytest.approx(taught(*given, temperature=temperature, alpha=alpha).item(), rel=1e-6)


def test_half_precision_is_computed_in_single() -> None:
    halves = torch.from_numpy(STUDENT).bfloat16()
    network = Watched(nn.Identity())
    assert network.logits(Batch(halves, torch.from_numpy(LABELS), torch.arange(7), 0)).dtype == torch.float32
    got = taught(halves, torch.from_numpy(TEACHER).float(), torch.from_numpy(LABELS), alpha=1.0)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(kl_by_numpy(halves.double().numpy(), TEACHER, 4), rel=1e-5)


def test_other_classes_are_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"the teacher's logits are \[7, 4\], the student's \[7, 5\]"):
        taught(torch.from_numpy(STUDENT), torch.from_numpy(TEACHER[:, :4]), torch.from_numpy(LABELS))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"losses": [{"loss": "crd"}]}, "with `loss: kl` or `loss: dkd` or `loss: dist` or `loss: mse`"),
        ({"losses": ["kl"]}, "expected a mapping with `loss: kl`"),
        ({"losses": []}, "at least 1"),
        ({"losses": [{"loss": "dist", "others": 1}]}, "others"),
        ({"alpha_end": 2}, "less than or equal to 1"),
        ({"alpha": 1, "balance": "weights", "alpha_end": 1}, "of which alpha 1 leaves none"),
    ],
)
def test_what_is_no_lesson_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Distill(teacher="t", epochs=1, **settings)
    with pytest.raises(ValidationError, match="losses needs a teacher"):
        Quantize(mode="qat", epochs=1, losses=[{"loss": "mse"}])
