"""Depth pruning: the least important blocks go first, and the target is met."""

import json
from pathlib import Path

import pytest
import torch
from torchvision.models import VisionTransformer, mobilenet_v2, resnet18

from compressor import Context, TorchModel, load
from compressor.errors import ArchitectureError, ArtifactError, StageError
from compressor.models.resnet import ResNet
from compressor.pruning.blocks import Divergence, removable_blocks
from stages import PruneBlocks, Share, Train

BLOCKS = {"blocks": [2, 3], "widths": [8, 16]}
REMOVABLE = ["layer1.0", "layer1.1", "layer2.1", "layer2.2"]  # layer2.0 halves the resolution


@pytest.fixture(scope="module")
def deep(context: Context) -> TorchModel:
    return Train(model="resnet", arguments=BLOCKS, epochs=4, batch_size=64).run(None, context)


def with_idle(deep: TorchModel, block: str) -> TorchModel:
    """`deep` with a block whose branch adds nothing; what comes in is not negative, so the ReLU lets it through."""
    network = deep.copy_network()
    network.get_parameter(f"{block}.bn2.weight").data.zero_()
    network.get_parameter(f"{block}.bn2.bias").data.zero_()
    return deep.with_network(network, details={})


@pytest.mark.parametrize("block", REMOVABLE)
def test_a_block_that_does_nothing_goes_first(deep: TorchModel, context: Context, block: str) -> None:
    idle = with_idle(deep, block)
    pruned = PruneBlocks(target=Share(macs=0.99)).run(idle, context)
    assert list(pruned.details["removed"]) == [block]
    assert pruned.details["removed"][block] == pytest.approx(0, abs=1e-6)
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    agree = (pruned.predict(inputs).argmax(1) == idle.predict(inputs).argmax(1)).float().mean()
    assert agree > 0.98


def test_at_most_the_target_is_kept(deep: TorchModel, context: Context) -> None:
    """The multiply-adds of 8x8 images, by hand."""
    first, second = 2 * 8 * 8 * 9 * 64, 2 * 16 * 16 * 9 * 16  # of a block of each stage
    down = (8 * 16 * 9 + 16 * 16 * 9 + 8 * 16) * 16
    whole = 1 * 8 * 9 * 64 + 2 * first + down + 2 * second + 16 * 10
    assert deep.counts.macs == whole
    pruned = PruneBlocks(target=Share(macs=0.6)).run(deep, context)
    gone = sum(first if name.startswith("layer1") else second for name in pruned.details["removed"])
    assert pruned.counts.macs == whole - gone <= 0.6 * whole
    *kept_before, _ = pruned.details["removed"]  # with the last one still there it was too large
    assert whole - sum(first if name.startswith("layer1") else second for name in kept_before) > 0.6 * whole
    assert pruned.details["kept"]["macs"] == pruned.counts.macs / whole
    assert pruned.details["blocks"] == 4


def test_a_target_in_parameters(deep: TorchModel, context: Context) -> None:
    pruned = PruneBlocks(target=Share(parameters=0.5)).run(deep, context)
    parameters = sum(parameter.numel() for parameter in pruned.network.parameters())
    assert parameters == pruned.counts.parameters <= 0.5 * deep.counts.parameters


def test_a_target_out_of_reach_says_how_far_it_came(deep: TorchModel, context: Context) -> None:
    with pytest.raises(StageError, match=r"at most 0\.010 .* without all 4 blocks .*, 0\.\d+ is left"):
        PruneBlocks(target=Share(macs=0.01)).run(deep, context)


def test_a_network_without_such_blocks_is_refused(context: Context) -> None:
    name = "tests.networks:LeNet"
    with pytest.raises(ArchitectureError, match="no block whose output has the shape of its input"):
        PruneBlocks(target=Share(macs=0.5)).run(context.new_model(name, {}), context)


def test_a_quantized_network_is_refused(int8: TorchModel, context: Context) -> None:
    with pytest.raises(ArchitectureError, match="prune before you quantize"):
        PruneBlocks(target=Share(macs=0.5)).run(int8, context)


def test_it_is_saved_and_can_shrink_further(deep: TorchModel, context: Context, tmp_path: Path) -> None:
    once = PruneBlocks(target=Share(macs=0.8)).run(deep, context)
    once.save(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, TorchModel)
    twice = PruneBlocks(target=Share(macs=0.8)).run(loaded, context)
    assert twice.details["blocks"] == 4 - len(once.details["removed"])
    twice.save(tmp_path)
    again = load(tmp_path)
    assert isinstance(again, TorchModel)
    assert torch.equal(again.predict(torch.ones(1, 1, 8, 8)), twice.predict(torch.ones(1, 1, 8, 8)))


@pytest.mark.parametrize("name", ["layer9.0", "layer1.0.conv1.weight", "fc.", ""])
def test_a_block_that_the_network_lacks_is_named(deep: TorchModel, context: Context, tmp_path: Path, name: str) -> None:
    PruneBlocks(target=Share(macs=0.8)).run(deep, context).save(tmp_path)
    manifest = tmp_path / "manifest.json"
    content = json.loads(manifest.read_text())
    content["changes"][0]["modules"] = [name]
    manifest.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=f"remove a module '{name}' that the network lacks"):
        load(tmp_path)


def test_which_blocks_of_known_networks_can_go() -> None:
    images = torch.zeros(2, 3, 32, 32)
    assert list(removable_blocks(ResNet([2, 3], [8, 16]), images)) == REMOVABLE
    assert list(removable_blocks(resnet18(), images)) == ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    transformer = VisionTransformer(8, 4, 3, 2, 16, 32)
    found = removable_blocks(transformer, torch.zeros(2, 3, 8, 8))
    assert list(found) == [f"encoder.layers.encoder_layer_{index}" for index in range(3)]  # not the encoder as a whole
    residual = [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]  # of equal channels and stride 1 (Sandler et al. 2018, table 2)
    assert list(removable_blocks(mobilenet_v2(), images)) == [f"features.{index}" for index in residual]


def test_hooks_go_and_blocks_come_back_when_a_forward_fails() -> None:
    network = ResNet([1, 1], [8, 16], num_classes=10, in_channels=1)
    with pytest.raises(RuntimeError):
        removable_blocks(network, torch.zeros(2, 3, 8, 8))
    assert not any(module._forward_hooks for module in network.modules())
    divergence = Divergence(ResNet([1], [8], in_channels=1), [torch.rand(4, 1, 8, 8)], torch.contiguous_format)
    block = network.get_submodule("layer2.0")
    with pytest.raises(RuntimeError):
        divergence.without(network, "layer2.0")  # the classifier is given 8 channels, and takes 16
    assert network.get_submodule("layer2.0") is block
