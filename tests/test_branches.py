"""Parallel convolutions become one, which computes what they did."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressor import Context, TorchModel, load
from compressor.quantization.layers import integer_layers
from compressor.quantization.network import unrounded
from compressor.quantization.operators import ADDITIONS, CONVOLUTIONS
from compressor.quantization.placement import quantize_network
from stages import Quantize
from tests.conftest import executed
from tests.test_quantize import switch_rounding_off

C = 16


class Sum(nn.Module):
    """Branches of one tensor that are added up in order."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.stem, self.branches, self.fc = nn.Conv2d(3, C, 3), nn.ModuleList(branches), nn.Linear(C, 10)
        for norm in (module for module in self.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.running_mean, norm.running_var = torch.randn(C), torch.rand(C) + 0.5
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        added = self.branches[0](x)
        for branch in self.branches[1:]:
            added = added + branch(x)
        return self.fc(added.relu().mean((2, 3)))


class LeftOut(Sum):
    """A branch that is 0, as MobileOne writes it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.fc((self.branches[0](x) + 0).relu().mean((2, 3)))


class Weighted(Sum):
    """The second branch counts three times."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        added = torch.add(self.branches[0](x), self.branches[1](x), alpha=3)
        return self.fc(added.relu().mean((2, 3)))


class Counted(Sum):
    """A number that depends on the batch is added."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.fc((self.branches[0](x) + x.shape[0] * 0.5 + x.shape[0]).mean((2, 3)))


class Shared(Sum):
    """The first branch is used a second time."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.branches[0](x)
        return self.fc(((y + self.branches[1](x)).relu() + y).mean((2, 3)))


class Twice(Sum):
    """One convolution for two tensors."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        added = self.branches[0](x) + self.branches[1](x)
        return self.fc((added.relu() + self.branches[0](-x)).mean((2, 3)))


def conv(kernel: int | tuple[int, int], **settings: int) -> nn.Conv2d:
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    dilation = settings.get("dilation", 1)
    padding = tuple(side // 2 * dilation for side in sides)
    return nn.Conv2d(C, C, sides, padding=padding, **{"bias": False, **settings})  # type: ignore[arg-type]


def normed(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.BatchNorm2d(C))


def folded(network: nn.Module) -> tuple[int, int]:
    """How many convolutions and additions are left behind the stem; the logits stay as they were."""
    network.eval()
    quantized = quantize_network(network, (2, 3, 8, 8))
    switch_rounding_off(quantized)
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(quantized(images), network(images), atol=1e-4)
    nodes = [node.target for node in quantized.graph.nodes]
    return sum(node in CONVOLUTIONS for node in nodes) - 1, sum(node in ADDITIONS for node in nodes)


@pytest.mark.parametrize(
    "branches",
    [
        [normed(conv(3)), normed(conv(1)), nn.BatchNorm2d(C)],
        [nn.BatchNorm2d(C), normed(conv(1)), normed(conv(3))],
        [nn.BatchNorm2d(C, affine=False), conv(3)],
        [conv(3, bias=True), nn.Identity()],
        [nn.Identity(), conv(1), conv(5), conv(3)],
        [conv((1, 3), bias=True), conv((3, 3)), conv((3, 1))],
        [normed(conv(3, stride=2)), normed(conv(1, stride=2))],
        [normed(conv(3, groups=C)), normed(conv(1, groups=C)), nn.BatchNorm2d(C)],
        [normed(conv(3, groups=4)), nn.BatchNorm2d(C)],
    ],
)
def test_branches_become_one_convolution(branches: list[nn.Module]) -> None:
    assert folded(Sum(*branches)) == (1, 0)


def test_a_norm_after_the_sum_is_folded_too() -> None:
    class RepViT(Sum):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            return self.fc(self.branches[2](self.branches[0](x) + self.branches[1](x) + x).mean((2, 3)))

    network = RepViT(normed(conv(3, groups=C)), conv(1, groups=C, bias=True), nn.BatchNorm2d(C))
    assert folded(network) == (1, 0)
    targets = [str(node.target) for node in quantize_network(network, (2, 3, 8, 8)).graph.nodes]
    assert not any("batch_norm" in target for target in targets)


def test_sums_of_sums_are_folded() -> None:
    class Nested(Sum):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            inner = self.branches[2](self.branches[0](x) + self.branches[1](x))
            return self.fc((self.branches[3](x) + inner).mean((2, 3)))

    assert folded(Nested(conv(1), nn.Identity(), nn.BatchNorm2d(C), conv(3))) == (1, 0)


def test_a_zero_that_changes_the_type_stays() -> None:
    class Converted(Sum):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.fc(((x > 0).long() + 0.0).mean((2, 3)) + self.branches[0](x).mean((2, 3)))

    assert folded(Converted(conv(3)))[0] == 1


def test_strides_may_be_one_number_for_both_axes() -> None:
    class Functional(Sum):
        def forward(self, x: Tensor) -> Tensor:
            x, (first, second) = self.stem(x).relu(), self.branches
            added = nn.functional.conv2d(x, first.weight, None, [1], [1])
            added = added + nn.functional.conv2d(x, second.weight, None, [1])
            return self.fc(added.mean((2, 3)))

    assert folded(Functional(conv(3), conv(1))) == (1, 0)


def test_a_new_bias_is_nobody_elses() -> None:
    class Crowded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.w2 = nn.Parameter(torch.randn(C, 3, 3, 3)), nn.Parameter(torch.randn(C, C, 3, 3))
            self.w_bias, self.bn, self.fc = nn.Parameter(torch.randn(C)), nn.BatchNorm2d(C), nn.Linear(C, 10)
            nn.init.normal_(self.bn.bias)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn(nn.functional.conv2d(x, self.w)).relu()
            return self.fc(nn.functional.conv2d(x, self.w2, self.w_bias).mean((2, 3)))

    folded(Crowded())


def test_a_branch_that_is_zero_is_left_out() -> None:
    assert folded(LeftOut(normed(conv(3)))) == (1, 0)


@pytest.mark.parametrize(
    ("network", "left"),
    [
        (Sum(conv((1, 3)), conv((3, 1))), (2, 1)),  # neither kernel contains the other
        (Sum(conv(3), conv(3, groups=2)), (2, 1)),
        (Sum(conv(3), conv(3, dilation=2)), (2, 1)),
        (Sum(conv(3), nn.Sequential(nn.ReLU6(), conv(1))), (2, 1)),  # of another tensor
        (Sum(conv(3), nn.Sequential(conv(1), nn.ReLU())), (2, 1)),
        (Sum(conv(3), nn.MaxPool2d(3, 1, 1)), (1, 1)),
        (Weighted(conv(3), conv(1)), (2, 1)),
        (Counted(conv(3)), (1, 2)),
        (Shared(conv(3), conv(1)), (2, 2)),
        (Twice(conv(3), conv(1)), (3, 2)),
    ],
)
def test_what_is_not_one_convolution_stays_as_it_is(network: nn.Module, left: tuple[int, int]) -> None:
    assert folded(network) == left


@pytest.mark.parametrize("name", ["RepVGG", "NormAdded"])
def test_in_the_file_branches_cost_nothing(name: str, context: Context, tmp_path: Path) -> None:
    model = context.new_model(f"tests.networks:{name}", {})
    quantized = Quantize(mode="ptq").run(model, context)
    exported = quantized.to_onnx("test")
    operators = executed(exported.content, tmp_path)
    assert (operators["QLinearConv"], operators["QGemm"], operators["QLinearAdd"]) == (2, 1, 0)
    assert operators["BatchNormalization"] == operators["Conv"] == 0
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    logits = quantized.predict(inputs)
    assert abs(exported.predict(inputs.numpy()) - logits.numpy()).mean() < 1e-4
    assert (logits - model.predict(inputs)).abs().max() < 0.05
    quantized.save(tmp_path)
    loaded = load(tmp_path, factories=frozenset({model.architecture.model}))
    assert isinstance(loaded, TorchModel)
    assert torch.equal(loaded.predict(inputs), logits)


def test_branches_train_as_one(context: Context) -> None:
    model = context.new_model("tests.networks:RepVGG", {})
    trained = Quantize(mode="qat", epochs=1, keep="last", freeze=("stem",)).run(model, context)
    before = dict(quantize_network(model.network, model.preprocess.input_shape(2)).named_parameters())
    after = dict(trained.network.named_parameters())
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"conv3.weight", "fc.weight"} <= moved
    assert not any(name.startswith("stem") for name in moved)
    assert not any(name.startswith(("conv1", "identity")) for name in after)


@pytest.mark.parametrize("branch", ["conv1", "conv3", "identity"])
def test_a_branch_that_is_to_stay_in_float_keeps_the_convolution_there(
    branch: str, context: Context, tmp_path: Path
) -> None:
    model = context.new_model("tests.networks:RepVGG", {})
    shape = model.preprocess.input_shape(2)
    network = quantize_network(model.network, shape, skip=[branch])
    assert {layer.name for layer in integer_layers(network)} == {"stem", "fc"}
    assert network.state_dict().keys() == quantize_network(model.network, shape).state_dict().keys()
    inputs = torch.randn(shape)
    with torch.no_grad(), unrounded(network):
        assert torch.allclose(network(inputs), model.network.eval()(inputs), atol=1e-4)
    quantized = Quantize(mode="ptq", skip=(branch,)).run(model, context)
    quantized.save(tmp_path)
    loaded = load(tmp_path, factories=frozenset({model.architecture.model}))
    assert isinstance(loaded, TorchModel)
    assert torch.equal(loaded.predict(inputs), quantized.predict(inputs))
