"""Structured pruning: exact counts, a network that runs, and targets that mean at most."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from compressor import Context, TorchModel, load
from compressor.errors import ArchitectureError, StageError
from compressor.models.artifact import count_macs
from compressor.pruning.batch_norm import match_batch_norm
from stages import Prune, Target
from tests.conftest import accuracy


def conv_macs(network: nn.Module, resolution: dict[str, int]) -> int:
    """MACs from the widths of a pruned tiny ResNet, layer by layer."""
    total = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1]
            total += module.in_channels * module.out_channels * kernel * resolution[name] ** 2
        elif isinstance(module, nn.Linear):
            total += module.in_features * module.out_features
    return total


RESOLUTION = {
    "conv1": 8,
    "layer1.0.conv1": 8,
    "layer1.0.conv2": 8,
    "layer2.0.conv1": 4,
    "layer2.0.conv2": 4,
    "layer2.0.downsample.0": 4,
}


@pytest.mark.parametrize("importance", ["l1", "l2", "taylor", "bn_scale", "random"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_at_most_the_target_is_kept(tiny: TorchModel, context: Context, importance: str, scope: str) -> None:
    stage = Prune.model_validate({"target": {"macs": 0.6}, "importance": importance, "scope": scope, "round_to": 2})
    pruned = stage.run(tiny, context)
    macs = conv_macs(pruned.network, RESOLUTION)
    assert pruned.counts.macs == macs
    assert 0.3 < macs / tiny.counts.macs <= 0.6
    assert pruned.details["kept"]["macs"] == macs / tiny.counts.macs
    assert pruned.predict(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_target_in_parameters(tiny: TorchModel, context: Context) -> None:
    pruned = Prune(target=Target(parameters=0.5), round_to=1).run(tiny, context)
    kept = sum(p.numel() for p in pruned.network.parameters()) / sum(p.numel() for p in tiny.network.parameters())
    assert 0.4 < kept <= 0.5


def test_a_ratio_halves_every_width_but_the_classifiers(tiny: TorchModel, context: Context) -> None:
    pruned = Prune(target=Target(ratio=0.5), round_to=1).run(tiny, context)
    widths = {n: m.out_channels for n, m in pruned.network.named_modules() if isinstance(m, nn.Conv2d)}
    assert widths == {n: 4 if n.startswith(("conv1", "layer1")) else 8 for n in RESOLUTION}
    assert pruned.network.get_submodule("fc").out_features == 10
    assert pruned.details["widths"]["layer2.0.conv1"] == [16, 8]


def test_widths_are_multiples_of_round_to(tiny: TorchModel, context: Context) -> None:
    pruned = Prune(target=Target(macs=0.8), round_to=4, scope="global").run(tiny, context)
    convolutions = [m for m in pruned.network.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.out_channels % 4 == 0 for m in convolutions)


def test_several_steps_reach_the_target_too(tiny: TorchModel, context: Context) -> None:
    pruned = Prune(target=Target(macs=0.5), importance="taylor", steps=4, round_to=1).run(tiny, context)
    assert pruned.counts.macs / tiny.counts.macs <= 0.5


def test_a_target_out_of_reach_says_how_far_it_came(tiny: TorchModel, context: Context) -> None:
    with pytest.raises(
        StageError, match=r"at most 0\.010 .* out of reach with round_to 8; the smallest network keeps 0\.\d+"
    ):
        Prune(target=Target(macs=0.01), round_to=8).run(tiny, context)


def test_nothing_to_remove_is_an_error(tiny: TorchModel, context: Context) -> None:
    with pytest.raises(StageError, match="no channel can be removed"):
        Prune(target=Target(ratio=0.1), round_to=16).run(tiny, context)


@pytest.mark.parametrize("target", [{}, {"macs": 0.5, "ratio": 0.5}, {"macs": 0}, {"macs": 1.5}])
def test_a_target_is_one_fraction(target: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Prune.model_validate({"target": target})


def test_the_important_channels_stay(tiny: TorchModel, context: Context) -> None:
    """Channels of one inner layer are made tiny; those are the ones to go."""
    network = tiny.copy_network()
    doomed = [1, 2, 5, 6]
    for name in ("layer1.0.conv1.weight", "layer1.0.bn1.weight"):
        network.get_parameter(name).data[doomed] = 1e-4
    network.get_parameter("layer1.0.conv2.weight").data[:, doomed] = 1e-4
    marked = tiny.with_network(network, details={})
    pruned = Prune(target=Target(ratio=0.5), round_to=1).run(marked, context)
    match_batch_norm(network, context.data.calibration_batches())
    left = pruned.network.get_parameter("layer1.0.bn1.weight")
    assert torch.equal(left, network.get_parameter("layer1.0.bn1.weight")[[0, 3, 4, 7]])


def test_it_is_rebuilt_without_torch_pruning(tiny: TorchModel, context: Context, tmp_path: Any) -> None:
    pruned = Prune(target=Target(macs=0.5), round_to=1).run(tiny, context)
    pruned.save(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, TorchModel)
    assert count_macs(loaded.network, loaded.preprocess) == pruned.counts.macs
    again = Prune(target=Target(macs=0.8), round_to=1).run(loaded, context)
    again.save(tmp_path)
    twice = load(tmp_path)
    assert isinstance(twice, TorchModel)
    assert len(twice.changes) == 2
    assert torch.equal(twice.predict(torch.ones(1, 1, 8, 8)), again.predict(torch.ones(1, 1, 8, 8)))


def test_a_network_of_ones_own_is_pruned(context: Context) -> None:
    name = "tests.networks:LeNet"
    lenet = context.new_model(name, {})
    pruned = Prune(target=Target(macs=0.5), round_to=1).run(lenet, context)
    assert pruned.network.get_submodule("fc2").out_features == 10
    assert pruned.counts.macs / lenet.counts.macs <= 0.5


def test_a_width_written_into_forward_is_named(context: Context) -> None:
    name = "tests.networks:PaddedShortcut"
    with pytest.raises(ArchitectureError, match="PaddedShortcut does not work with channels removed"):
        Prune(target=Target(macs=0.5), round_to=1).run(context.new_model(name, {}), context)


def test_a_quantized_network_is_refused(int8: TorchModel, context: Context) -> None:
    with pytest.raises(ArchitectureError, match="prune before you quantize"):
        Prune(target=Target(macs=0.5)).run(int8, context)


def test_pruning_little_costs_little(tiny: TorchModel, context: Context) -> None:
    pruned = Prune(target=Target(macs=0.95), round_to=1, scope="global").run(tiny, context)
    assert accuracy(pruned, context.data) > 0.6
