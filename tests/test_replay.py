"""CUDA graphs: a recorded network trains as one whose kernels are launched one by one."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from compressor import Context, Data
from compressor.errors import ArchitectureError, UserError
from compressor.training import CrossEntropy, Training
from compressor.training.loop import made_faster
from compressor.training.replay import Replayed
from stages import Quantize, Train
from tests.conftest import TINY

SETTINGS: dict[str, Any] = {"model": "resnet", "arguments": TINY, "epochs": 2, "precision": "fp32"}


def recorder(module: nn.Module, sample: tuple[Tensor], **_: bool) -> Callable[[Tensor], Tensor]:
    """As torch does: run it some times, then patch its forward."""
    for _ in range(3):
        module(*sample)
    original = module.forward
    module.forward = lambda inputs: original(inputs)  # type: ignore[method-assign]
    return module


def test_each_size_is_recorded_once_and_leaves_no_trace() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    replayed = Replayed(network, network, lambda _: nullcontext())
    wide, narrow = torch.randn(4, 1, 3, 3), torch.randn(3, 1, 3, 3)
    with mock.patch("torch.cuda.make_graphed_callables", side_effect=recorder) as record:
        for inputs in (wide, narrow, wide, narrow, narrow):
            output = replayed(inputs)
            assert torch.allclose(output.mean((0, 2, 3)), torch.zeros(2), atol=1e-5)  # normalised by the batch
    assert record.call_count == 2
    assert network[1].num_batches_tracked == 5  # of the calls, not of the recording
    assert "forward" not in vars(network)
    assert network.state_dict().keys() == before.keys()
    assert torch.equal(network[0].weight, before["0.weight"])
    replayed.forget()
    assert not replayed.recorded


def test_a_compiled_network_is_recorded() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten()).train()
    training = Training(epochs=1, precision="fp32", cuda_graphs=True, compile=True)
    compiled = partial(torch.compile, backend="eager")
    with (
        mock.patch("torch.compile", side_effect=compiled) as compiles,
        mock.patch("torch.cuda.make_graphed_callables", side_effect=recorder) as record,
    ):
        images = torch.randn(4, 1, 3, 3)
        with made_faster(network, CrossEntropy(), training, torch.device("cuda")) as made:
            assert torch.allclose(made(images), network(images))
    assert (compiles.call_count, record.call_count) == (1, 1)


@pytest.mark.parametrize("setting", ["cuda_graphs", "compile"])
def test_objectives_that_read_inner_layers_exclude_it(setting: str) -> None:
    objective, training = CrossEntropy(), Training.model_validate({"epochs": 1, setting: True})
    objective.layers = ["0"]
    with (
        pytest.raises(UserError, match=f"{setting} does not work with losses on inner layers; leave it out"),
        made_faster(nn.Sequential(nn.Identity()), objective, training, torch.device("cuda")),
    ):
        pass


def test_what_cannot_be_recorded_is_said() -> None:
    with (
        mock.patch("torch.cuda.make_graphed_callables", side_effect=RuntimeError("operation not permitted\nmore")),
        pytest.raises(ArchitectureError, match="cannot be replayed: operation not permitted; leave cuda_graphs out"),
    ):
        Replayed(nn.Identity(), nn.Identity(), lambda _: nullcontext())(torch.zeros(1))


def test_gradients_that_are_replayed_cannot_add_up() -> None:
    with pytest.raises(ValidationError, match="leave accumulate or cuda_graphs out"):
        Train.model_validate({**SETTINGS, "accumulate": 2, "cuda_graphs": True})


def test_networks_on_integer_grids_are_not_recorded() -> None:
    for setting in ("cuda_graphs", "compile"):
        with pytest.raises(ValidationError, match="not recorded or compiled; leave cuda_graphs and compile out"):
            Quantize.model_validate({"mode": "qat", "epochs": 1, setting: True})


def test_on_a_cpu_nothing_is_recorded() -> None:
    context = Context(data=Data(name="digits", train=200).load(0).without_test())
    plain, same = (
        Train.model_validate({**SETTINGS, "cuda_graphs": graphs}).run(None, context) for graphs in (False, True)
    )
    assert plain.digest == same.digest


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_a_recorded_network_learns_the_same(precision: str) -> None:
    data = Data(name="digits").load(0).without_test()
    context = Context(data=data, device=torch.device("cuda"))
    curves = [
        Train.model_validate({**SETTINGS, "precision": precision, "cuda_graphs": graphs})
        .run(None, context)
        .details["curve"]
        for graphs in (False, True)
    ]
    for one, other in zip(*curves, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.05)
        assert one["validation_accuracy"] == pytest.approx(other["validation_accuracy"], abs=0.05)
