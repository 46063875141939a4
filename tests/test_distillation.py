"""Hinton's loss against numpy, and a teacher that runs once."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from compressor import Augment, Context, Services, TorchModel
from compressor.distillation.settings import Cache
from compressor.distillation.teacher import Teacher, folded
from compressor.errors import UserError
from compressor.models.resnet import ResNet
from compressor.training.loop import training_views
from compressor.training.objectives import Batch, Watched
from stages import Distill, Quantize
from tests.conftest import TINY, accuracy, equal_states, taught


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
    loss = taught(*map(torch.from_numpy, (student, teacher, labels)), temperature=temperature, alpha=alpha)
    assert loss.item() == pytest.approx(by_numpy(student, teacher, labels, temperature, alpha), rel=1e-5)


class Counting(nn.Module):
    """A teacher that counts the images that it and its copies see."""

    images = 0

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        Counting.images += len(x)
        return self.fc(x.flatten(1))


PROBED = 2  # images, for the memory layout it can take


@pytest.fixture
def counting(tiny: TorchModel) -> TorchModel:
    Counting.images = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny.with_network(Counting(), details={})


def test_stored_outputs_are_those_of_each_view(context: Context, counting: TorchModel) -> None:
    teacher = Teacher(counting, context, 2)
    assert teacher.stored is not None
    for stored, inputs in zip(teacher.stored, training_views(context, 2, torch.channels_last), strict=True):
        expected = torch.cat([counting.network(x) for x in inputs])
        assert torch.allclose(stored.float(), expected, atol=0.05)  # the teacher may run in bf16


@pytest.mark.parametrize(("scale", "dtype"), [(1, torch.float16), (1e6, torch.float32)])
def test_stored_outputs_are_mapped_in_half_precision(
    context: Context, counting: TorchModel, tmp_path: Path, scale: float, dtype: torch.dtype
) -> None:
    network = counting.copy_network()
    network.get_parameter("fc.weight").data *= scale  # too large for half precision
    large = counting.with_network(network, details={})
    for _ in range(2):  # stored, then read
        teacher = Teacher(large, replace(context, services=Services(soft_labels=tmp_path)), 1)
        assert teacher.stored is not None
        assert teacher.stored[0].dtype == dtype
        (file,) = tmp_path.iterdir()
        assert str(file) in Path("/proc/self/maps").read_text()
        logits = teacher.logits(batch_of(context))
        assert logits.dtype == torch.float32
        assert torch.equal(logits, teacher.stored[0][:9].float())


@pytest.mark.parametrize(("cache", "passes"), [(None, 5), (Cache(views=2), 2)])
def test_with_a_cache_the_teacher_is_not_run_again(
    context: Context, counting: TorchModel, cache: Cache | None, passes: int
) -> None:
    stage = Distill(teacher="teacher", model="resnet", arguments=TINY, epochs=5, cache=cache)
    stage.run(None, with_teacher(context, counting))
    assert Counting.images == passes * len(context.data.train) + PROBED


def test_stored_outputs_serve_every_later_stage_and_run(
    context: Context, counting: TorchModel, tiny: TorchModel, tmp_path: Path
) -> None:
    kept = tmp_path / "soft_labels"
    keeping = replace(with_teacher(context, counting), services=Services(soft_labels=kept))
    Distill(teacher="teacher", model="resnet", arguments=TINY, epochs=2, cache=Cache(views=9)).run(None, keeping)
    files = sorted(kept.iterdir())
    assert [file.suffix for file in files] == [".safetensors"] * 2
    seen = Counting.images
    fewer = replace(keeping, data=replace(context.data, calibration=context.data.calibration.take(torch.arange(9))))
    Quantize(mode="qat", epochs=3, teacher="teacher", cache=Cache(views=3)).run(tiny, fewer)
    assert Counting.images - seen == len(context.data.train) + PROBED  # for the third view


@pytest.mark.parametrize("changed", ["teacher", "data", "augment", "seed", "code"])
def test_outputs_of_another_teacher_or_of_other_images_are_not_taken(
    context: Context, counting: TorchModel, tmp_path: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = replace(context, services=Services(soft_labels=tmp_path))
    data = context.data
    Teacher(counting, keeping, 1)
    match changed:
        case "teacher":
            other = counting.copy_network()
            other.get_parameter("fc.bias").data += 1
            counting = counting.with_network(other, details={})
        case "data":
            keeping = replace(keeping, data=replace(data, train=data.train.take(torch.arange(len(data.train)).flip(0))))
        case "augment":
            keeping = replace(keeping, data=replace(data, augment=Augment(crop=1)))
        case "seed":
            keeping = replace(keeping, seed=1)
        case "code":
            monkeypatch.setattr("compressor.distillation.teacher.code_digest", lambda *modules: "edited")
    seen = Counting.images
    Teacher(counting, keeping, 1)
    assert Counting.images - seen == len(data.train) + PROBED
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "content", [b"", b"no tensors", safetensors.torch.save({"logits": torch.zeros(2, 10)}), "a flipped bit"]
)
def test_damaged_outputs_are_made_again(
    context: Context, counting: TorchModel, tmp_path: Path, content: bytes | str
) -> None:
    keeping = replace(context, services=Services(soft_labels=tmp_path))
    stored = Teacher(counting, keeping, 1).stored
    assert stored is not None
    whole = stored[0].clone()  # not mapped from the file, which is written over here
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    file.write_bytes(content if isinstance(content, bytes) else before[:-1] + bytes([before[-1] ^ 1]))
    again = Teacher(counting, keeping, 1).stored
    assert again is not None
    assert torch.equal(whole, again[0])
    assert file.read_bytes() == before


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


def test_a_missing_teacher_is_reported(context: Context) -> None:
    with pytest.raises(UserError, match="teacher 'nobody' is not an earlier stage"):
        Distill(teacher="nobody", model="resnet8", epochs=1).run(None, context)


@pytest.fixture
def two(context: Context, tiny: TorchModel, counting: TorchModel) -> Context:
    """A context with a teacher that knows most digits, and one that knows nothing."""
    return replace(context, teachers={"good": tiny, "bad": counting})


def batch_of(context: Context, count: int = 9) -> Batch:
    split = context.data.train.take(torch.arange(count))
    return Batch(context.data.preprocess.normalise(split.images), split.labels, torch.arange(count), 0)


class Given(nn.Module):
    """Gives the logits that it is told to."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.logits = torch.zeros(9, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


@pytest.mark.parametrize("weighting", ["equal", "accuracy"])
@pytest.mark.parametrize("cache", [None, Cache(views=1)])
def test_of_several_teachers_the_loss_is_the_weighted_mean(
    two: Context, weighting: Literal["equal", "accuracy"], cache: Cache | None
) -> None:
    stage = Distill(teachers=("good", "bad"), weighting=weighting, temperature=3, alpha=0.7, epochs=1, cache=cache)
    student = Given(10)
    objective, weights = stage.objective(student, replace(two, data=replace(two.data, augment=Augment())))
    good = 0.5
    if weighting == "accuracy":
        one, other = (accuracy(model, two.data) for model in two.teachers.values())
        good = one / (one + other)
        assert good > 0.8
    assert weights == pytest.approx([good, 1 - good])
    batch = batch_of(two)
    student.logits = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (9, 10)).astype("f4"))
    logits = [model.predict(batch.inputs).double().numpy() for model in two.teachers.values()]
    expected = sum(
        share * by_numpy(student.logits.numpy(), z, batch.labels.numpy(), 3, 0.7)
        for share, z in zip((good, 1 - good), logits, strict=True)
    )
    assert float(objective(Watched(student), batch)) == pytest.approx(expected, rel=0.02)


def test_teachers_that_are_never_correct_count_equally(two: Context, counting: TorchModel) -> None:
    wrong = two.data.validation.take(two.data.validation.labels.eq(0).nonzero().flatten())
    network = counting.copy_network()
    network.get_parameter("fc.bias").data[0] = -1e3
    never = counting.with_network(network, details={})
    data = replace(two.data, validation=wrong)
    stage = Distill(teachers=("a", "b"), weighting="accuracy", epochs=1)
    assert stage.objective(Given(10), replace(two, data=data, teachers={"a": never, "b": never}))[1] == [0.5, 0.5]


def test_a_student_learns_from_two_teachers_and_says_so(two: Context) -> None:
    stage = Distill(teachers=("good", "bad"), weighting="accuracy", model="resnet", arguments=TINY, epochs=1)
    good, bad = stage.run(None, two).details["teacher_weights"]
    assert good > 0.8
    assert good + bad == pytest.approx(1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "expected `teacher:`, the id of an earlier stage, or `teachers:`"),
        ({"teacher": "a", "teachers": ("b", "c")}, "leave one of the two out"),
        ({"teachers": ("a",)}, "at least two"),
        ({"teachers": ("a", "a")}, "at least two different ids"),
        ({"teacher": "a", "weighting": "accuracy"}, "weighting needs several teachers"),
    ],
)
def test_teachers_are_one_or_several(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Distill(model="resnet8", epochs=1, **settings)


def with_statistics(network: nn.Module) -> nn.Module:
    """The network in eval mode, after BatchNorm has seen many images."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean = torch.randn(norm.num_features)
            norm.running_var = torch.rand(norm.num_features) + 0.5
    return network.eval()


def test_a_teacher_runs_without_batch_norm_and_says_the_same() -> None:
    network = with_statistics(ResNet([1, 1], [4, 8], in_channels=1))
    images = torch.randn(5, 1, 12, 12)
    faster = folded(network, images[:2])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in faster.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    with torch.no_grad():
        torch.testing.assert_close(faster(images), network(images), rtol=1e-4, atol=1e-5)


class Twice(nn.Module):
    """A convolution with two norms, one for each time that it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1), nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.conv(self.one(self.conv(x))))
        return out.flatten(1)


class Deciding(nn.Module):
    """A network whose path depends on the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


@pytest.mark.parametrize("network", [Twice(), Deciding()])
def test_a_teacher_that_cannot_be_folded_runs_as_it_is(network: nn.Module) -> None:
    network = with_statistics(network)
    assert folded(network, torch.randn(2, 1, 6, 6)) is network
