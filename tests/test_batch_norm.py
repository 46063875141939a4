"""BatchNorm's statistics: estimated on the calibration images, or matched to them without changing the outputs."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor import Context, TorchModel
from compressor.pruning.batch_norm import batch_statistics, estimate_batch_norm, match_batch_norm


@pytest.fixture
def inputs(context: Context) -> Tensor:
    return context.data.preprocess.normalise(context.data.calibration.images)


@pytest.fixture
def frozen(tiny: TorchModel) -> nn.Module:
    """A network whose running statistics are not those of its images, as after training with frozen ones."""
    network = tiny.copy_network()
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            shift = 0.3 * torch.randn(module.num_features, generator=generator)
            module.running_mean += shift
            module.bias += shift * module.weight / (module.running_var + module.eps).sqrt()
            old = module.running_var.clone()
            module.running_var *= 4
            module.weight *= ((module.running_var + module.eps) / (old + module.eps)).sqrt()
    return network


def test_statistics_are_estimated_on_the_calibration_images(tiny: TorchModel, context: Context, inputs: Tensor) -> None:
    network = tiny.copy_network()
    network.get_buffer("bn1.running_mean").fill_(100)
    estimate_batch_norm(network, context.data.calibration_batches())
    with torch.no_grad():
        expected = network.get_submodule("conv1")(inputs).mean((0, 2, 3))
    assert torch.allclose(network.get_buffer("bn1.running_mean"), expected, atol=1e-4)
    assert not network.training


def test_dropout_stays_off_while_statistics_are_estimated(context: Context, inputs: Tensor) -> None:
    name = "tests.networks:Dropping"
    network = context.new_model(name, {}).copy_network()
    estimate_batch_norm(network, context.data.calibration_batches())
    with torch.no_grad():
        expected = network.get_submodule("conv")(inputs).mean((0, 2, 3))
    assert torch.allclose(network.get_buffer("bn.running_mean"), expected, atol=1e-4)


@torch.no_grad()
def test_matching_changes_no_output(frozen: nn.Module, context: Context, inputs: Tensor) -> None:
    before = frozen(inputs)
    match_batch_norm(frozen, context.data.calibration_batches())
    assert torch.allclose(frozen(inputs), before, atol=1e-3)
    x = frozen.get_submodule("conv1")(inputs).double().numpy()
    assert np.allclose(frozen.get_buffer("bn1.running_mean"), x.mean((0, 2, 3)), atol=1e-5)
    assert np.allclose(frozen.get_buffer("bn1.running_var"), x.var((0, 2, 3)), rtol=1e-4)


@torch.no_grad()
def test_after_matching_the_statistics_of_the_batch_give_the_same(
    frozen: nn.Module, context: Context, inputs: Tensor
) -> None:
    before = frozen(inputs)
    with batch_statistics(frozen):
        assert not torch.allclose(frozen(inputs), before, atol=0.1)
    match_batch_norm(frozen, context.data.calibration_batches())
    kept = {name: tensor.clone() for name, tensor in frozen.state_dict().items() if "running" in name}
    with batch_statistics(frozen):
        assert torch.allclose(frozen(inputs), before, atol=2e-2)
    assert all(torch.equal(frozen.state_dict()[name], tensor) for name, tensor in kept.items())
    assert not any(module.training for module in frozen.modules())


@torch.no_grad()
def test_a_norm_without_scale_is_left_as_it_is(context: Context, inputs: Tensor) -> None:
    name = "tests.networks:Odd"
    network = context.new_model(name, {}).copy_network()
    plain = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and not m.affine]
    before, statistics = network(inputs), [norm.running_mean for norm in plain]
    match_batch_norm(network, context.data.calibration_batches())
    assert plain
    assert torch.allclose(network(inputs), before, atol=1e-4)
    assert all(norm.running_mean is statistic for norm, statistic in zip(plain, statistics, strict=True))
