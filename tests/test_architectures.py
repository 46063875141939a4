"""Networks by name."""

from pathlib import Path

import pytest
import torch
from torch import nn

from compressor import Context, TorchModel, load
from compressor.data.preprocess import Preprocess
from compressor.errors import ArchitectureError
from compressor.models.architectures import Architecture, check_fits, check_trains
from compressor.models.artifact import count_macs
from compressor.models.resnet import ResNet
from stages import Train
from tests.conftest import equal_states
from tests.networks import WeightNormed

CIFAR = Preprocess(size=(32, 32), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def build(model: str, factories: frozenset[str] = frozenset(), **arguments: object) -> torch.nn.Module:
    return Architecture(model=model, arguments=arguments, num_classes=10, in_channels=3).build(factories=factories)


@pytest.mark.parametrize(
    ("depth", "parameters", "macs"),
    [(8, 78_042, 12_501_632), (14, 175_258, 26_657_408), (20, 272_474, 40_813_184), (56, 855_770, 125_747_840)],
)
def test_cifar_resnets_have_the_published_sizes(depth: int, parameters: int, macs: int) -> None:
    network = build(f"resnet{depth}")
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert count_macs(network, CIFAR) == macs


def test_parameters_are_named_as_torchvisions() -> None:
    names = set(build("resnet20").state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight"} <= names
    assert {"layer2.0.downsample.1.bias", "layer3.2.bn2.weight", "fc.weight", "fc.bias"} <= names
    assert "layer1.0.downsample.0.weight" not in names


def test_macs_by_hand() -> None:
    """A 3x3 convolution 3 -> 4 at 32x32, nothing else in the stages, and a classifier 4 -> 10."""
    assert count_macs(ResNet([0], [4]), CIFAR) == 3 * 4 * 9 * 32 * 32 + 4 * 10


def test_blocks_and_widths_of_each_stage() -> None:
    network = build("resnet", blocks=[0, 1, 1], widths=[32, 64, 128])
    assert network.get_submodule("layer2.0.conv1").weight.shape == (64, 32, 3, 3)  # type: ignore[union-attr]
    assert len(network.get_submodule("layer1")) == 0  # type: ignore[arg-type]
    assert network.get_submodule("fc").weight.shape == (10, 128)  # type: ignore[union-attr]


def test_repvgg_adds_its_branches_by_hand() -> None:
    network = build("repvgg", blocks=[0, 2], widths=[4, 8]).eval()
    x = torch.randint(-3, 4, (2, 8, 6, 6)).float()  # sums are zero or far from it, so a relative bound holds
    halving, plain = network.get_submodule("layer2")
    assert halving(torch.randn(2, 4, 6, 6)).shape == (2, 8, 3, 3)
    assert halving.identity is None  # of another shape
    with torch.no_grad():
        plain.conv3.weight.zero_()
        plain.conv1.weight.copy_(2 * torch.eye(8)[:, :, None, None])
        plain.identity.weight.fill_(3)
        assert torch.allclose(plain(x), 5 * x.relu(), rtol=1e-4)  # untrained norms change nothing; 2 x + 3 x
        plain.conv3.weight[:, :, 2, 1] = torch.eye(8)
        below = nn.functional.pad(x, (0, 0, 0, 1))[:, :, 1:]
        assert torch.allclose(plain(x), (5 * x + below).relu(), rtol=1e-4)


def test_torchvision_networks_take_the_class_count() -> None:
    assert build("torchvision:resnet18")(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        ("resnet21", {}, "6 n + 2"),
        ("vgg", {}, "unknown model 'vgg'"),
        ("torchvision:rezznet", {}, "no classification network named 'rezznet'"),
        ("resnet", {"blocks": [1], "widths": [4, 8]}, "one number per stage"),
        ("repvgg", {}, "missing 2 required positional arguments"),
        ("resnet20", {"width": 3}, "width"),
    ],
)
def test_networks_that_cannot_be_built_are_reported(model: str, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ArchitectureError, match=words.replace("+", r"\+")):
        build(model, **arguments)


def test_a_factory_is_imported_only_when_the_pipeline_names_it() -> None:
    name = "tests.networks:LeNet"
    with pytest.raises(ArchitectureError, match="only when the pipeline itself names it"):
        build(name)
    assert isinstance(build(name, frozenset({name}), hidden=8), torch.nn.Module)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("tests.networks:WrongHead", r"\[2, 3\] for 2 images; the data has 10 classes"),
        ("tests.networks:not_a_network", "returned a str"),
        (
            "tests.networks:Asserting",
            r"does not take images of shape \[1, 8, 8\] \(C, H, W\): the network itself \(Asserting\): AssertionError",
        ),
        ("tests.networks:Tied", "shares parameters between layers"),
        ("tests.networks:Missing", "cannot be imported"),
        ("tests.nowhere:LeNet", "cannot be imported"),
    ],
)
def test_a_factory_that_does_not_fit_is_refused(factory: str, words: str, context: Context) -> None:
    with pytest.raises(ArchitectureError, match=words):
        context.new_model(factory, {})


@pytest.mark.parametrize("where", ["attribute", "buffer", "list", "number"])
def test_random_numbers_that_would_not_be_saved_are_refused(where: str, context: Context) -> None:
    with pytest.raises(ArchitectureError, match="Drawn' computes something else when it is built again"):
        context.new_model("tests.networks:Drawn", {"where": where})


def test_random_numbers_that_are_saved_or_that_nothing_reads_are_no_harm(context: Context) -> None:
    context.new_model("tests.networks:Drawn", {"where": "saved"})


def test_images_that_the_network_does_not_take_are_refused(context: Context) -> None:
    with pytest.raises(ArchitectureError, match=r"does not take images of shape \[1, 8, 8\]"):
        context.new_model("torchvision:resnet18", {})


def test_auxiliary_outputs_are_distinguished_from_logits() -> None:
    googlenet = build("torchvision:googlenet", init_weights=False)
    architecture = Architecture(model="torchvision:googlenet", num_classes=10, in_channels=3)
    with pytest.raises(ArchitectureError, match=r"returns a GoogLeNetOutputs while training, .* \{aux_logits: false\}"):
        check_trains(googlenet, architecture, (2, 3, 64, 64))
    check_fits(googlenet, architecture, (2, 3, 64, 64))  # it can be quantized as it is
    without = build("torchvision:googlenet", init_weights=False, aux_logits=False)
    check_trains(without, architecture, (2, 3, 64, 64))


def test_a_check_changes_nothing(context: Context) -> None:
    """Not the statistics, and not what is drawn next."""
    network = build("torchvision:mobilenet_v2")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    generator = torch.random.get_rng_state()
    architecture = Architecture(model="a:B", num_classes=10, in_channels=3)
    check_fits(network, architecture, (2, 3, 32, 32))
    check_trains(network, architecture, (2, 3, 32, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert not network.training


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    ("old", "remedy"),
    [(True, "torch.nn.utils.remove_weight_norm"), (False, "torch.nn.utils.parametrize.remove_parametrizations")],
)
def test_weight_norm_is_refused_by_name(old: bool, remedy: str, tiny: TorchModel) -> None:
    name = "tests.networks:WeightNormed"
    with pytest.raises(ArchitectureError, match=rf"^layer 'fc' \(.*\) computes its weight .* call {remedy} on it$"):
        build(name, frozenset({name}), old=old)
    with pytest.raises(ArchitectureError, match=r"^layer 'fc'"):
        TorchModel(WeightNormed(10, old), tiny.architecture, tiny.preprocess, tiny.labels)


def test_mnasnet_is_loaded_to_the_same_bits(tmp_path: Path) -> None:
    """It asks for the version of its weights."""
    architecture = Architecture(model="torchvision:mnasnet1_0", num_classes=10, in_channels=3)
    model = TorchModel(architecture.build(), architecture, CIFAR, tuple("0123456789"))
    model.save(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, TorchModel)
    inputs = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.predict(inputs), model.predict(inputs))


def test_a_network_that_asks_for_the_version_of_its_weights_is_trained(context: Context, tmp_path: Path) -> None:
    name = "tests.networks:Versioned"
    trained = Train(model=name, epochs=1, keep="best", ema=0.9).run(None, context)
    trained.save(tmp_path)
    loaded = load(tmp_path, factories=frozenset({name}))
    assert isinstance(loaded, TorchModel)
    assert equal_states(loaded.network, trained.network)


def test_initial_weights_follow_the_seed(context: Context) -> None:
    one, two = (context.new_model("resnet8", {}).network.state_dict()["conv1.weight"] for _ in range(2))
    other = Context(data=context.data, seed=1).new_model("resnet8", {}).network.state_dict()["conv1.weight"]
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
