"""Which channels depend on one another: removing what belongs together changes nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning
from torch import nn

from compressor import Context, TorchModel, load
from compressor.errors import ArtifactError
from compressor.models.architectures import Architecture
from compressor.pruning.groups import Groups, Removal
from stages import Prune, Target
from tests import networks
from tests.families import FAMILIES
from tests.networks import _used

SHAPE = (2, 1, 8, 8)


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = getattr(networks, name)(10, 1)
    if name != "Odd":  # it has a norm without scale
        _used(network)
    return network.eval()


def some(groups: Groups) -> Removal:
    """Every third channel of each group, from the second."""
    return {layer: torch.arange(len(group))[1::3] for layer, group in groups.by_layer.items()}


def zeroed(groups: Groups, removal: Removal) -> nn.Module:
    """The whole network with every weight at zero that `removal` takes away."""
    network = groups.without({})
    for layer, channels in removal.items():
        for (name, dim), indices in groups.by_layer[layer].members.items():
            network.state_dict()[name].index_fill_(dim, indices[channels].flatten(), 0)
    return network


@pytest.mark.parametrize(
    "name",
    [
        "LeNet",
        "Odd",
        "RepVGG",
        "NormAdded",
        "ResNeXt",
        "Shuffled",
        "Upsampled",
        "Halves",
        "Cut",
        "Windows",
        "LearnedScalar",
    ],
)
def test_without_a_channel_all_else_is_computed_as_with_zeros_in_its_place(name: str) -> None:
    groups = Groups(built(name), SHAPE)
    removal = some(groups)
    images = torch.rand(4, 1, 8, 8)
    smaller = groups.without(removal)
    with torch.no_grad():
        assert torch.allclose(smaller(images), zeroed(groups, removal)(images), atol=1e-5)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in groups.network.parameters())


@pytest.mark.parametrize("family", ["densenet", "mobilenet_v3", "regnet", "shufflenet", "squeezenet1_1"])
def test_networks_of_torchvision_too(family: str) -> None:
    torch.manual_seed(0)
    whole = Architecture(model=f"torchvision:{family}", num_classes=10, in_channels=3)
    network = FAMILIES[family](10) if family in FAMILIES else whole.build()
    _used(network)
    groups = Groups(network.eval(), (2, 3, 32, 32))
    assert not groups.rigid
    removal = some(groups)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = zeroed(groups, removal)(images)
        assert torch.allclose(
            groups.without(removal)(images), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
        )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("resnet18", {}), ("mobilenet_v2", {"inverted_residual_setting": [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]})],
)
def test_groups_are_the_librarys_where_it_can_follow(name: str, arguments: dict[str, Any]) -> None:
    architecture = Architecture(model=f"torchvision:{name}", arguments=arguments, num_classes=10, in_channels=3)
    network = architecture.build().eval()
    modules = {module: layer for layer, module in network.named_modules()}
    graph = torch_pruning.DependencyGraph().build_dependency(network.requires_grad_(True), torch.zeros(2, 3, 64, 64))
    classifier = list(network.modules())[-1]
    theirs = {
        frozenset(modules[dependency.target.module] for dependency, _ in group if dependency.target.module in modules)
        for group in graph.get_all_groups(ignored_layers=[classifier])
    }
    ours = {
        frozenset(place[0].rpartition(".")[0] for place in group.members)
        for group in Groups(network, (2, 3, 64, 64)).by_layer.values()
    }
    weighted = {name for name, module in network.named_modules() if list(module.parameters(recurse=False))}
    assert ours == {group & weighted for group in theirs}


def test_tokens_positions_scales_and_norms_lose_channels_with_their_layers(context: Context, tmp_path: Path) -> None:
    model = context.new_model("tests.networks:Tokens", {})
    pruned = Prune(target=Target(ratio=0.5), round_to=1).run(model, context)
    shapes = {name: list(tensor.shape) for name, tensor in pruned.network.state_dict().items()}
    assert shapes["token"] == [1, 1, 8]
    assert shapes["positions"] == [1, 5, 8]
    assert shapes["scale"] == shapes["norm.weight"] == [8]
    assert shapes["wide.weight"] == [16, 8]
    pruned.save(tmp_path)
    loaded = load(tmp_path, factories=frozenset({"tests.networks:Tokens"}))
    assert isinstance(loaded, TorchModel)
    assert torch.equal(loaded.predict(torch.ones(1, 1, 8, 8)), pruned.predict(torch.ones(1, 1, 8, 8)))


def test_a_group_that_cannot_lose_channels_leaves_the_others() -> None:
    """The width of its heads is written into the code; that of what attention adds to is not."""
    groups = Groups(built("Windows"), SHAPE)
    assert set(groups.by_layer) == {"patches", "wide"}
    assert groups.rigid == ["qkv"]


def test_code_that_would_take_other_channels_is_noticed_though_it_runs() -> None:
    groups = Groups(built("Cut"), SHAPE)
    assert list(groups.by_layer) == ["stem"]
    assert groups.rigid == ["conv"]


def test_halves_stay_equal() -> None:
    groups = Groups(built("Halves"), SHAPE)
    assert {layer: (len(group), group.parts) for layer, group in groups.by_layer.items()} == {
        "one": (24, 1),
        "stem": (8, 2),
    }


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("token", [1, 1, 17], "make 'token' larger than the architecture does"),
        ("token", [1, 16], "make 'token' larger than the architecture does"),
        ("tokens", [1, 1, 8], "name a tensor 'tokens' that the network lacks"),
        ("token", [1, 1, 0], "greater than or equal to 1"),
    ],
)
def test_shapes_that_no_pruning_left_are_refused(
    context: Context, tmp_path: Path, name: str, shape: list[int], says: str
) -> None:
    model = context.new_model("tests.networks:Tokens", {})
    Prune(target=Target(ratio=0.5), round_to=1).run(model, context).save(tmp_path)
    manifest = tmp_path / "manifest.json"
    content: dict[str, Any] = json.loads(manifest.read_text())
    content["changes"][0]["tensors"][name] = shape
    manifest.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=says):
        load(tmp_path, factories=frozenset({"tests.networks:Tokens"}))
