"""`freeze`, `unfreeze` and `learning_rates`: what a training leaves alone, and what learns at a rate of its own."""

import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from compressor import Context, TorchModel
from compressor.errors import ArchitectureError
from compressor.models.architectures import Architecture
from compressor.training import Batch, Objective, Training, Watched, fit
from stages import Distill, Quantize, Train
from tests.networks import FrozenStem

DECAYING = {"epochs": 1, "learning_rate": 0.1, "weight_decay": 0.1, "decay_all": True}
BODY = {"conv1", "bn1", "layer1", "layer2"}  # of TINY


def changed(after: TorchModel, before: TorchModel) -> set[str]:
    """The parts of a network, as far as their first name, in which some tensor is another one, or statistics are."""
    one, other = after.network.state_dict(), before.network.state_dict()
    return {name.partition(".")[0] for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw"}, {"ema": 0.9}, {"keep": "best"}])
@pytest.mark.parametrize(
    ("freeze", "unfreeze", "expected"),
    [
        (["body"], [], {"fc"}),
        (["body"], ["layer2", "bn1"], {"fc", "layer2", "bn1"}),
        (["layer1", "conv1"], [], {"bn1", "layer2", "fc"}),
        (["fc"], [], BODY),
        (["fc.weight", "layer2.0.conv1"], [], BODY | {"fc"}),
    ],
)
def test_what_is_frozen_stays_to_the_bit(
    freeze: list[str],
    unfreeze: list[str],
    expected: set[str],
    settings: dict[str, object],
    tiny: TorchModel,
    context: Context,
) -> None:
    stage = Train.model_validate({"freeze": freeze, "unfreeze": unfreeze, **DECAYING, **settings})
    after = stage.run(tiny, context)
    if "keep" not in settings or after.details["kept_epoch"] > 0:
        assert changed(after, tiny) == expected
    assert after.frozen == tiny.frozen  # the next stage trains everything again


def test_an_exception_within_a_frozen_module(tiny: TorchModel, context: Context) -> None:
    stage = Train(freeze=("body",), unfreeze=("layer2.0.bn2.weight", "layer2.0.conv1"), **DECAYING)
    one, other = stage.run(tiny, context).network.state_dict(), tiny.network.state_dict()
    assert {name for name in one if not torch.equal(one[name], other[name])} == {
        "layer2.0.bn2.weight", "layer2.0.conv1.weight", "fc.weight", "fc.bias"
    }  # fmt: skip


def test_batch_norm_without_parameters_keeps_its_statistics_where_it_is_frozen(context: Context) -> None:
    for freeze, kept in ((("1",), True), ((), False)):
        network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, affine=False), nn.Linear(64, 10))
        fit(network, Mean(), Training(epochs=1, freeze=freeze), context, label="test")
        assert torch.equal(network.get_buffer("1.running_mean"), torch.zeros(64)) == kept


def test_what_the_factory_freezes_keeps_its_statistics_too(context: Context) -> None:
    factory = "tests.networks:FrozenStem"
    before = Train(model=factory, epochs=0).run(None, context)
    assert changed(Train(model=factory, **DECAYING).run(None, context), before) == {"conv", "fc"}


def test_a_student_and_a_quantized_network_are_frozen_by_the_same_names(tiny: TorchModel, context: Context) -> None:
    taught = replace(context, teachers={"teacher": tiny})
    student = Distill(teacher="teacher", freeze=("body",), **DECAYING).run(tiny, taught)
    assert changed(student, tiny) == {"fc"}
    settings = {"epochs": 1, "learning_rate": 0.01, "keep": "last"}
    calibrated = Quantize(mode="ptq").run(tiny, context)
    int8 = Quantize(mode="qat", freeze=("body",), unfreeze=("layer2.0.conv2",), **settings).run(tiny, context)
    assert changed(int8, calibrated) == {"layer2", "fc"}
    with pytest.raises(ArchitectureError, match=r"^freeze names 'bn1', which holds no parameter$"):
        Quantize(mode="qat", freeze=("bn1",), **settings).run(tiny, context)


# learning rates


class Mean(Objective):
    """The mean of the logits."""

    def forward(self, network: Watched, batch: Batch) -> Tensor:
        return network.logits(batch).mean()


class Sums(nn.Module):
    """logits = the sum of its weights on every class: the gradient of their mean is 1 for each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Module(), nn.Module()
        for module in (self.stem, self.block):
            module.weight = nn.Parameter(torch.zeros(()))
            module.bias = nn.Parameter(torch.zeros(()))
        self.head = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        total = self.stem.weight + self.stem.bias + self.block.weight + self.block.bias + self.head
        return total.expand(len(x), 10)


def trained(context: Context, epochs: int, **settings: object) -> tuple[dict[str, float], list[float]]:
    """What full-batch steps make of `Sums`, and the rates in its curve."""
    network = Sums()
    plain = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "precision": "fp32", "batch_size": 10_000}
    training = Training.model_validate({"epochs": epochs, "learning_rate": 0.5, **plain, **settings})
    curve = fit(network, Mean(), training, context, label="test")["curve"]
    return {name: float(value) for name, value in network.state_dict().items()}, [e["learning_rate"] for e in curve]


def test_rates_by_hand(context: Context) -> None:
    weights, rates = trained(
        context, 2, learning_rates={"stem": 0.1, "stem.bias": 0.01, "block": 0.5}, freeze=["block.bias"]
    )
    expected = {"stem.weight": -0.2, "stem.bias": -0.02, "block.weight": -1.0, "block.bias": 0.0, "head": -1.0}
    assert weights == pytest.approx(expected)
    assert rates == [0.5, 0.5]


@pytest.mark.parametrize(
    "schedule",
    [
        {"schedule": "cosine"},
        {"schedule": "one_cycle"},
        {"schedule": "cosine", "warmup_epochs": 2},
        {"schedule": "multi_step", "milestones": [2]},
    ],
)
def test_the_schedule_scales_all_rates_alike(schedule: dict[str, object], context: Context) -> None:
    weights, rates = trained(context, 4, learning_rates={"stem": 0.05}, **schedule)
    assert weights["head"] == pytest.approx(-sum(rates))
    assert weights["stem.weight"] == pytest.approx(-sum(rates) / 10)


def test_the_body_is_all_but_the_classifier(tiny: TorchModel, context: Context) -> None:
    stage = Train(epochs=1, learning_rate=0.01, learning_rates={"body": 1e-30}, weight_decay=0)
    after = stage.run(tiny, context).network
    steps = {n: float((p - tiny.network.get_parameter(n)).abs().max()) for n, p in after.named_parameters()}
    assert {name for name, step in steps.items() if step > 1e-20} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("resnet8", {"fc"}),
        ("torchvision:squeezenet1_1", {"classifier.1"}),
        ("torchvision:mobilenet_v2", {"classifier.1"}),
        ("timm:test_vit", {"head"}),
        ("tests.networks:FrozenStem", {"fc"}),
    ],
)
def test_the_classifier_is_what_depends_on_the_number_of_classes(model: str, expected: set[str]) -> None:
    architecture = Architecture(model=model, num_classes=10, in_channels=3)
    state = torch.random.get_rng_state()
    assert architecture.classifier(factories=frozenset({model})) == expected
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"freeze": ["layer3"]}, "freeze names 'layer3', which holds no parameter; did you mean `layer2`?"),
        ({"freeze": ["relu"]}, "freeze names 'relu', which holds no parameter"),
        ({"freeze": ["layer1"], "unfreeze": ["layer2"]}, "unfreeze names 'layer2', but freeze names nothing in it"),
        (
            {"learning_rates": {"boddy": 0.1}},
            "learning_rates names 'boddy', which holds no parameter; did you mean `body`?",
        ),
        ({"freeze": ["fc"], "learning_rates": {"fc": 0.1}}, "learning_rates names 'fc', but all of it is frozen"),
        ({"freeze": ["body", "fc"]}, "every parameter of the network is frozen, so there is nothing to train"),
    ],
)
def test_names_without_effect_are_refused(
    settings: Mapping[str, object], words: str, tiny: TorchModel, context: Context
) -> None:
    with pytest.raises(ArchitectureError, match=re.escape(words)):
        Train.model_validate({"epochs": 1, **settings}).run(tiny, context)
    dry = Train.model_validate({"epochs": 7, **settings}).for_dry_run()
    with pytest.raises(ArchitectureError, match=re.escape(words)):
        dry.run(tiny, context)


def test_the_body_of_a_network_that_names_no_number_of_classes_is_unknown(context: Context) -> None:
    with pytest.raises(ArchitectureError, match="which layer is the classifier cannot be told"):
        fit(FrozenStem(10, 1), Mean(), Training(epochs=1, freeze=("body",)), context, label="test")


@pytest.mark.parametrize(
    "settings",
    [
        {"unfreeze": ["layer1"]},
        {"freeze": "body"},
        {"learning_rates": {"body": 0}},
        {"learning_rates": {"body": True}},
        {"learning_rates": {"body": float("nan")}},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Training.model_validate({"epochs": 5, **settings})
    assert Training(epochs=5, learning_rates={"body": 1}).learning_rates == {"body": 1.0}


def test_a_calibration_trains_nothing() -> None:
    with pytest.raises(ValidationError, match="without epochs nothing trains, so freeze, learning_rates and"):
        Quantize(mode="ptq", freeze=("body",))
