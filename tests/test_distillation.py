"""Hinton's loss against numpy, and a teacher that is run once."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from compressor import Context, TorchModel
from compressor.distillation import Teacher, distillation_loss
from compressor.errors import UserError
from compressor.fit import training_views
from stages import Cache, Distill
from tests.conftest import TINY, accuracy, equal_states


def by_numpy(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, t: float, alpha: float) -> float:  # type: ignore[type-arg]
    p = softmax(teacher / t, axis=1)
    kl = (p * (np.log(p) - log_softmax(student / t, axis=1))).sum(1).mean()
    cross_entropy = -log_softmax(student, axis=1)[np.arange(len(labels)), labels].mean()
    return float(alpha * t**2 * kl + (1 - alpha) * cross_entropy)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 10.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("batch", [1, 7])
def test_the_loss_is_hintons(temperature: float, alpha: float, batch: int) -> None:
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(0, 3, (2, batch, 5))
    labels = generator.integers(0, 5, batch)
    loss = distillation_loss(
        torch.from_numpy(student),
        torch.from_numpy(teacher),
        torch.from_numpy(labels),
        temperature=temperature,
        alpha=alpha,
    )
    assert loss.item() == pytest.approx(by_numpy(student, teacher, labels, temperature, alpha), rel=1e-9)


def test_equal_logits_have_no_soft_loss() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    loss = distillation_loss(logits, logits, torch.zeros(3, dtype=torch.long), temperature=3.0, alpha=1.0)
    assert loss.item() == pytest.approx(0, abs=1e-6)


class Counting(nn.Module):
    """A teacher that counts the images it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.fc(x.flatten(1))


def test_stored_outputs_are_those_of_each_view(context: Context) -> None:
    network = Counting()
    teacher = Teacher(network, context, views=2)
    assert teacher.stored is not None
    for stored, inputs in zip(teacher.stored, training_views(context, 2, torch.channels_last), strict=True):
        expected = torch.cat([network(x) for x in inputs])
        assert torch.allclose(stored, expected, atol=0.05)  # the teacher may run in bf16


@pytest.mark.parametrize(("cache", "passes"), [(None, 5), (Cache(views=2), 2)])
def test_with_a_cache_the_teacher_is_not_run_again(
    context: Context, tiny: TorchModel, cache: Cache | None, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Counting()
    monkeypatch.setattr(Context, "teacher", lambda self, stage_id: network)
    stage = Distill(teacher="any", model="resnet", arguments=TINY, epochs=5, cache=cache)
    stage.run(None, context)
    probed = 2  # for the memory layout it can take
    assert network.images == passes * len(context.data.train) + probed


def with_teacher(context: Context, teacher: TorchModel) -> Context:
    return Context(data=context.data, teachers={"teacher": teacher})


def test_a_student_learns_from_its_teacher_alone(context: Context, tiny: TorchModel) -> None:
    stage = Distill(teacher="teacher", model="resnet", arguments=TINY, alpha=1.0, epochs=6, batch_size=64)
    student = stage.run(None, with_teacher(context, tiny))
    assert accuracy(student, context.data) > 0.8


def test_without_a_model_the_incoming_network_learns_on(context: Context, tiny: TorchModel) -> None:
    stage = Distill(teacher="teacher", epochs=1, learning_rate=1e-3)
    result = stage.run(tiny, with_teacher(context, tiny))
    assert result.architecture == tiny.architecture
    assert not equal_states(result.network, tiny.network)
    assert accuracy(result, context.data) > 0.8


def test_a_teacher_that_is_not_there_is_said(context: Context) -> None:
    with pytest.raises(UserError, match="teacher 'nobody' is not an earlier stage"):
        Distill(teacher="nobody", model="resnet8", epochs=1).run(None, context)
