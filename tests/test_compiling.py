"""`compile: true`: a compiled network learns what it would learn as it is."""

import shutil
from unittest import mock

import pytest
import torch
from pydantic import ValidationError

from compressor import Context, Data
from compressor.errors import ArchitectureError, StageError
from stages import Distill, Hints, Train
from tests.conftest import TINY

COMPILER = shutil.which("g++") or shutil.which("clang++")
TRAIN = Train.model_validate(
    {"model": "resnet", "arguments": TINY, "epochs": 1, "batch_size": 100, "precision": "fp32"}
)


@pytest.fixture(scope="module")
def few() -> Context:
    return Context(data=Data(name="digits", train=200, validation=100).load(0).without_test())


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_a_compiled_network_learns_the_same(few: Context) -> None:
    plain, compiled = (TRAIN.model_copy(update={"compile": compiled}).run(None, few) for compiled in (False, True))
    (one,), (other,) = plain.details["curve"], compiled.details["curve"]
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
    expected, state = plain.copy_network().state_dict(), compiled.copy_network().state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=1e-3)


def test_the_compiler_is_given_the_network_and_forgets_it(few: Context) -> None:
    with (
        mock.patch("torch.compile", side_effect=lambda network, **_: network) as compiled,
        mock.patch("torch.compiler.reset") as reset,
    ):
        TRAIN.model_copy(update={"compile": True}).run(None, few)
        TRAIN.model_copy(update={"compile": True}).for_dry_run().run(None, few)
    assert (compiled.call_count, reset.call_count) == (1, 1)


def test_what_was_compiled_is_forgotten_if_training_fails(few: Context) -> None:
    with (
        mock.patch("torch.compile", side_effect=lambda network, **_: lambda inputs: network(inputs) * float("nan")),
        mock.patch("torch.compiler.reset") as reset,
        pytest.raises(StageError, match="the loss is nan"),
    ):
        TRAIN.model_copy(update={"compile": True}).run(None, few)
    assert reset.call_count == 1


def test_what_does_not_compile_is_said(few: Context) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("no compiler\nmore")

    with (
        mock.patch("torch.compile", return_value=fails),
        pytest.raises(ArchitectureError, match=r"cannot train on inputs .*: no compiler; leave compile out"),
    ):
        TRAIN.model_copy(update={"compile": True}).run(None, few)


@pytest.mark.parametrize("setting", ["compile", "cuda_graphs"])
def test_inner_layers_exclude_it(setting: str) -> None:
    with pytest.raises(ValidationError, match=r"features read inner layers .* leave compile and cuda_graphs out"):
        Distill.model_validate({"teacher": "teacher", "epochs": 1, "features": [Hints()], setting: True})
