"""The train stage."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from compressor import Context, TorchModel
from compressor.errors import ArchitectureError, ArtifactError, UserError
from stages import Train
from tests.conftest import TINY, accuracy, equal_states


def test_it_learns_digits(tiny: TorchModel, context: Context) -> None:
    assert accuracy(tiny, context.data) > 0.9
    assert [entry["epoch"] for entry in tiny.details["curve"]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "learning_rate": 0.005, "schedule": "one_cycle"},
        {"ema": 0.9, "label_smoothing": 0.1, "warmup_epochs": 1, "learning_rate": 0.2},
        {"precision": "bf16"},
        {"precision": "fp32", "keep": "best"},
    ],
)
def test_every_setting_trains(settings: dict[str, object], context: Context) -> None:
    stage = Train.model_validate({"model": "resnet", "arguments": TINY, "epochs": 5, "batch_size": 32, **settings})
    assert accuracy(stage.run(None, context), context.data) > 0.8


def test_a_trained_network_is_taken_as_it_is(tiny: TorchModel, context: Context, tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny.network.state_dict(), tmp_path / "tiny.safetensors")
    stage = Train(model="resnet", arguments=TINY, weights=tmp_path / "tiny.safetensors", epochs=0)
    assert equal_states(stage.run(None, context).network, tiny.network)


def test_weights_of_another_network_are_refused(tiny: TorchModel, context: Context, tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny.network.state_dict(), tmp_path / "tiny.safetensors")
    with pytest.raises(ArtifactError, match=r"conv1.weight is \[8, 1, 3, 3\], the network needs \[16, 1, 3, 3\]"):
        Train(model="resnet8", weights=tmp_path / "tiny.safetensors", epochs=0).run(None, context)


def own(context: Context, name: str) -> tuple[Context, str]:
    factory = f"tests.networks:{name}"
    return Context(data=context.data), factory


def test_dropout_draws_from_the_seed(context: Context) -> None:
    own_context, factory = own(context, "Dropping")
    stage = Train(model=factory, epochs=2)
    first = stage.run(None, own_context)
    torch.rand(7)
    state = torch.random.get_rng_state()
    second = stage.run(None, own_context)
    assert equal_states(first.network, second.network)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_several_outputs_are_refused(context: Context) -> None:
    own_context, factory = own(context, "TwoOutputs")
    with pytest.raises(ArchitectureError, match="returns a tuple while training"):
        Train(model=factory, epochs=1).run(None, own_context)


def test_without_a_model_the_incoming_network_is_trained_further(tiny: TorchModel, context: Context) -> None:
    again = Train(epochs=1, learning_rate=0.01).run(tiny, context)
    assert again.architecture == tiny.architecture
    assert not equal_states(again.network, tiny.network)
    with pytest.raises(UserError, match="no network to train further"):
        Train(epochs=1).run(None, context)
