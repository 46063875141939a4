"""Graphs compute what their networks do, whether torch's decompositions run or are left out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.pruning.groups import Groups
from compressor.quantization import quantize_network
from compressor.tracing import functional_graph

SHAPE = (2, 3, 4, 4)
decompose = torch.export.ExportedProgram.run_decompositions


class Plain(nn.Module):
    """A convolution, and something that is done to its output."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.then, self.fc = then, nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.then(self.norm(self.conv1(x)))).mean((2, 3)))


def dropped_in_place(y: Tensor) -> Tensor:
    """Dropout returns its input, which is written to and read once more."""
    seen = functional.dropout(y.flatten(1), 0.5, training=False, inplace=True)
    return functional.relu_(seen).view(y.shape) + y


def without_gradients(y: Tensor) -> Tensor:
    """A graph within the graph."""
    with torch.no_grad():
        return functional.relu(y)


def gated(y: Tensor) -> Tensor:
    """A product with a view."""
    return y * y.mean((2, 3), keepdim=True).expand_as(y)


@pytest.mark.parametrize(
    ("then", "decomposed"),
    [
        (functional.relu, False),
        (lambda y: functional.hardtanh(y, 0.0, 6.0, inplace=True), False),
        (lambda y: functional.dropout(y.flatten(1), 0.5, training=False, inplace=True).view(y.shape), False),
        (lambda y: torch.cat(y.chunk(2, 1), 1).contiguous(), False),
        (lambda y: y.float().type_as(y).to(torch.device("cpu")).to(y.dtype, copy=True), False),
        (lambda y: y.float().relu_() + y, True),  # that writes to y
        (lambda y: (y.double() * 2).float(), False),
        (lambda y: y.to(memory_format=torch.channels_last).permute(0, 2, 3, 1).view(-1, 128).view(-1, 8, 4, 4), False),
        (dropped_in_place, True),
        (without_gradients, True),
        (gated, True),
    ],
)
def test_a_graph_computes_what_its_network_does(
    then: Callable[[Tensor], Tensor], decomposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[bool] = []
    monkeypatch.setattr(
        torch.export.ExportedProgram, "run_decompositions", lambda *given: runs.append(True) or decompose(*given)
    )
    network = Plain(then).eval()
    network.norm.running_mean = torch.linspace(-1, 1, 8)
    graph = functional_graph(network, SHAPE)
    images = torch.rand(5, *SHAPE[1:])
    with torch.no_grad():
        assert torch.allclose(graph(images), network(images), atol=1e-6)
    assert bool(runs) == decomposed


def test_what_has_no_gradient_is_rounded_too() -> None:
    network = Plain(without_gradients).eval()
    points = quantize_network(network, SHAPE).points
    network.then = functional.relu
    assert points == quantize_network(network, SHAPE).points


@pytest.mark.parametrize("then", [gated, lambda y: (y.double().float() + y).type_as(y)])
def test_channels_stay_free(then: Callable[[Tensor], Tensor]) -> None:
    assert {"conv1", "conv2"} <= set(Groups(Plain(then).eval(), SHAPE).by_layer)
