"""The training loop: schedules, weight decay, averages, what is kept, and what it says when it fails."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from compressor import Context, Data, Dataset
from compressor.environment import environment
from compressor.errors import LostError, StageError
from compressor.quantization.placement import quantize_network
from compressor.training.loop import evaluate, fit, lay_out
from compressor.training.objectives import Batch, Objective, Watched
from compressor.training.settings import Training
from compressor.training.state import optimizer_of, schedule_of
from stages import Train


def rates(training: Training, steps: int) -> list[float]:
    """The learning rate of every step."""
    optimizer = optimizer_of(list(nn.Linear(2, 2).parameters()), training)
    scheduler = schedule_of(optimizer, training, steps)
    seen = []
    for _ in range(training.epochs * steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_by_hand() -> None:
    got = rates(Training(epochs=4, learning_rate=0.2), steps=5)
    assert got == pytest.approx([0.1 * (1 + math.cos(math.pi * step / 20)) for step in range(20)])


def test_multi_step_by_hand() -> None:
    got = rates(Training(epochs=4, learning_rate=1.0, schedule="multi_step", milestones=(1, 3)), steps=2)
    assert got == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_one_cycle_rises_to_the_peak_and_falls() -> None:
    got = rates(Training(epochs=10, learning_rate=0.5, schedule="one_cycle"), steps=10)
    peak = got.index(max(got))
    assert max(got) == pytest.approx(0.5, rel=0.01)
    assert 20 < peak < 40
    assert got[:peak] == sorted(got[:peak])
    assert got[peak:] == sorted(got[peak:], reverse=True)
    assert got[-1] < 0.005


def test_warm_up_is_linear_and_then_the_schedule_starts() -> None:
    got = rates(Training(epochs=3, learning_rate=1.0, schedule="constant", warmup_epochs=1), steps=4)
    assert got == pytest.approx([0.25, 0.4375, 0.625, 0.8125, *[1.0] * 8])


def test_norms_and_biases_are_not_decayed() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    parameters = list(network.parameters())
    decayed, others = optimizer_of(parameters, Training(epochs=1, weight_decay=0.5)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.5, 0.0)
    assert {tuple(p.shape) for p in decayed["params"]} == {(2, 1, 3, 3), (2, 2)}
    assert len(others["params"]) == 4
    assert len(optimizer_of(parameters, Training(epochs=1, decay_all=True)).param_groups) == 1


class Scale(nn.Module):
    """logits = w on every class: the gradient of the loss below with respect to w is 1 a step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.expand(len(x), 10)


class MeanLogit(Objective):
    def forward(self, network: Watched, batch: Batch) -> Tensor:
        return network.logits(batch).mean()


PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "precision": "fp32", "batch_size": 10_000}


def test_sgd_and_the_moving_average_by_hand(context: Context) -> None:
    """Full-batch steps of -0.1; the average starts as a copy of the first step and decays by 0.5."""
    network = Scale()
    fit(network, MeanLogit(), Training(epochs=3, learning_rate=0.1, **PLAIN), context, label="test")
    assert network.weight.item() == pytest.approx(-0.3)
    averaged = Scale()
    fit(averaged, MeanLogit(), Training(epochs=3, learning_rate=0.1, ema=0.5, **PLAIN), context, label="test")
    expected = -0.1
    for step in (-0.2, -0.3):
        expected = 0.5 * expected + 0.5 * step
    assert averaged.weight.item() == pytest.approx(expected)


class Drifts(nn.Module):
    """Right on every image until its weight falls under -0.25, as in the third full-batch step of 0.1."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.labels = labels

    def forward(self, x: Tensor) -> Tensor:
        favourite = torch.where(self.weight > -0.25, 0, 1)
        return torch.nn.functional.one_hot(favourite, 10).float().expand(len(x), 10) + self.weight


def test_the_best_epoch_on_validation_is_kept_and_the_last_of_equals(context: Context) -> None:
    zeros = (context.data.validation.labels == 0).nonzero().flatten()
    only_zeros = Context(data=replace(context.data, validation=context.data.validation.take(zeros)))
    network = Drifts(10)
    training = Training(epochs=4, learning_rate=0.1, keep="best", **PLAIN)
    details = fit(network, MeanLogit(), training, only_zeros, label="test")
    assert details["kept_epoch"] == 2
    assert details["trained_on"] == environment().cpu
    assert network.weight.item() == pytest.approx(-0.2)
    assert [entry["validation_accuracy"] for entry in details["curve"]] == [1.0, 1.0, 0.0, 0.0]


def test_a_diverging_loss_is_reported_with_epoch_and_learning_rate(context: Context) -> None:
    class Exploding(Objective):
        def forward(self, network: Watched, batch: Batch) -> Tensor:
            return network.logits(batch).mean() * float("nan")

    with pytest.raises(StageError, match=r"the loss is nan in epoch 1 at learning rate 0\.5"):
        fit(Scale(), Exploding(), Training(epochs=2, learning_rate=0.5), context, label="student")


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "multi_step"},
        {"milestones": (3,)},
        {"schedule": "one_cycle", "warmup_epochs": 2},
        {"learning_rate": float("nan")},
        {"learning_rate": 0},
        {"epochs": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Training.model_validate({"epochs": 5, **settings})


def test_the_default_rate_follows_the_optimizer() -> None:
    assert rates(Training(epochs=1), 1) == [0.1]
    assert rates(Training(epochs=1, optimizer="adamw"), 1) == [0.001]


def test_every_training_image_is_seen_once_an_epoch(context: Context) -> None:
    seen: list[list[int]] = [[], []]
    views = []

    class Seeing(Objective):
        def forward(self, network: Watched, batch: Batch) -> Tensor:
            seen[len(views) // 10].extend(batch.indices.tolist())
            views.append(batch.view)
            return network.logits(batch).mean()

    fit(Scale(), Seeing(), Training(epochs=2, batch_size=130), context, label="test")
    everything = list(range(len(context.data.train)))
    assert sorted(seen[0]) == sorted(seen[1]) == everything
    assert seen[0] != seen[1]
    assert views == [0] * 10 + [1] * 10


def test_no_epochs_leave_the_network_alone(context: Context) -> None:
    network = Scale()
    assert fit(network, MeanLogit(), Training(epochs=0), context, label="test")["curve"] == []
    assert network.weight.item() == 0


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "expected"),
    [
        (8, 1, 2, torch.contiguous_format),
        (16, 1, 2, torch.channels_last),
        (8, 1, 1, torch.channels_last),
        (8, 3, 2, torch.channels_last),
    ],
)
def test_layers_whose_gradient_writes_past_its_memory_get_plain_strides(
    channels: int, kernel: int, stride: int, expected: torch.memory_format, digits: Dataset
) -> None:
    layers = [nn.Conv2d(1, channels, 3), nn.Conv2d(channels, 16, kernel, stride), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers)
    quantized = quantize_network(network, digits.preprocess.input_shape(2))  # a graph, without modules of that kind
    assert lay_out(network, digits) == expected
    assert lay_out(quantized, digits) == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("Circular", torch.contiguous_format), ("LearnedScalar", torch.channels_last)]
)
def test_a_network_is_tried_in_the_format_in_which_it_will_run(
    name: str, expected: torch.memory_format, context: Context
) -> None:
    network = context.new_model(f"tests.networks:{name}", {}).copy_network()
    layout = lay_out(network, context.data)
    assert layout == expected
    assert network.get_parameter("conv.weight").is_contiguous(memory_format=expected)
    network(torch.zeros(2, 1, 8, 8).to(memory_format=layout))


def test_a_lost_process_is_no_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*given: Any) -> int:
        raise LostError("another process of this run ended")

    monkeypatch.setattr("compressor.training.loop.evaluate", lost)
    context = Context(data=Data(name="digits", train=40, validation=10, test=10).load(0).without_test())
    with pytest.raises(LostError, match=r"^another process of this run ended$"):
        Train(model="resnet8", epochs=1).run(None, context)


def test_a_process_without_validation_images_counts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(x.size(0), -1)  # which cannot be told of no images

    monkeypatch.setattr("compressor.training.loop.processes.own_part", lambda positions: positions[:0])
    data = Data(name="digits", train=40, validation=10, test=10).load(0)
    context = Context(data=data.without_test())
    assert evaluate(Flat(), data.validation, context, "fp32", torch.contiguous_format) == 0


def test_the_dry_run_has_parts_of_more_than_one_image() -> None:
    assert Train(model="resnet8", epochs=1, batch_size=128, accumulate=8).for_dry_run().accumulate == 2
    assert Train(model="resnet8", epochs=1, batch_size=128).for_dry_run().accumulate == 1
    assert Train(model="resnet8", epochs=1, batch_size=8, accumulate=8).for_dry_run().accumulate == 8  # as it will be
