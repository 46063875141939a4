"""BatchNorm's running statistics, matched to the images at hand."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Norm = nn.BatchNorm1d | nn.BatchNorm2d


def estimate_batch_norm(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set running statistics to the average over `batches` of inputs, in place; dropout stays off."""
    norms = _norms(network)
    for norm in norms:
        norm.reset_running_stats()
    with _momentum(network, None), torch.no_grad():  # a plain average over batches
        for inputs in batches:
            network(inputs)


@torch.no_grad()
def match_batch_norm(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set running statistics to those of `batches` of inputs, and scale and shift so that every output stays the same.

    With γ (x - μ) / √(σ² + ε) + β, the statistics μ', σ'² of the images, and

        γ' = γ √(σ'² + ε) / √(σ² + ε),    β' = β + γ (μ' - μ) / √(σ² + ε),

    every output is unchanged. Otherwise a network that was trained with frozen statistics, or on other images, would
    compute something else as soon as they are estimated again (pruning) or taken from the batch (training).
    """
    norms = [norm for norm in _norms(network) if norm.affine and norm.track_running_stats]
    sums = {norm: _Sums(norm) for norm in norms}
    handles = [norm.register_forward_pre_hook(lambda module, given: sums[module].add(given[0])) for norm in norms]
    network.eval()
    try:
        for inputs in batches:
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for norm, seen in sums.items():
        if seen.count:
            _match(norm, *seen.mean_and_variance())


def _match(norm: Norm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    old = (norm.running_var.double() + norm.eps).sqrt()
    weight, bias = norm.weight.double(), norm.bias.double()
    norm.bias.copy_(bias + weight * (mean - norm.running_mean.double()) / old)
    norm.weight.copy_(weight * (variance + norm.eps).sqrt() / old)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


class _Sums:
    """Mean and variance of a norm's inputs, by channel."""

    def __init__(self, norm: Norm) -> None:
        self.count = 0
        self.values, self.squares = torch.zeros(2, norm.num_features, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        by_channel = x.double().transpose(0, 1).flatten(1)  # [C, N H W]
        self.count += by_channel.shape[1]
        self.values += by_channel.sum(1)
        self.squares += by_channel.square().sum(1)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        mean = self.values / self.count
        return mean, (self.squares / self.count - mean.square()).clamp(min=0)


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Norms use the statistics of the batch, as after `estimate_batch_norm`, and store none of them."""
    with _momentum(network, 0.0):
        yield


@contextmanager
def _momentum(network: nn.Module, momentum: float | None) -> Iterator[None]:
    """Only norms are in training mode, with this momentum; their own is restored afterwards."""
    norms = _norms(network)
    before = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.momentum = momentum
        norm.train()
    try:
        yield
    finally:
        for norm, own in zip(norms, before, strict=True):
            norm.momentum = own
        network.eval()


def _norms(network: nn.Module) -> list[Norm]:
    return [module for module in network.modules() if isinstance(module, Norm)]
