"""The train stage."""

from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import safetensors.torch
import torch
from rich.console import Console as RichConsole

from compressor import Context, Services, TorchModel
from compressor.console import Console
from compressor.errors import ArchitectureError, ArtifactError, UserError
from compressor.models.artifact import load
from compressor.storage.checkpoints import Checkpoints
from compressor.tracking import Tracker
from stages import Distill, Prune, Quantize, Target, Train
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


def test_a_state_dict_with_a_number_for_a_key_is_refused(context: Context, tmp_path: Path) -> None:
    torch.save({0: torch.zeros(1), "fc.weight": torch.zeros(1)}, tmp_path / "numbered.pt")
    with pytest.raises(ArtifactError, match=r"numbered\.pt is not a state dict \(names to tensors\)$"):
        Train(model="resnet8", weights=tmp_path / "numbered.pt", epochs=0).run(None, context)


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


STEM = "tests.networks:FrozenStem"
DECAYING = {"learning_rate": 0.1, "weight_decay": 0.1, "decay_all": True, "batch_size": 128}


def same_stem(a: TorchModel, b: TorchModel) -> bool:
    """Whether the convolution of two stems is the same to the bit, and what follows it is not."""
    one, two = a.network.state_dict(), b.network.state_dict()
    assert not torch.equal(one["conv.weight"], two["conv.weight"])
    return torch.equal(one["stem.weight"], two["stem.weight"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_frozen_parameters_stay_as_they_are(context: Context, optimizer: str, ema: float | None) -> None:
    untrained = Train(model=STEM, epochs=0).run(None, context)
    trained = Train(model=STEM, epochs=1, optimizer=optimizer, ema=ema, **DECAYING).run(None, context)
    assert same_stem(trained, untrained)
    for name in ("norm.weight", "norm.bias"):
        assert torch.equal(trained.network.get_parameter(name), untrained.network.get_parameter(name))


def test_frozen_parameters_stay_through_a_whole_pipeline(context: Context, tmp_path: Path) -> None:
    """Each stage is loaded from disk, as in a run, before the next one trains."""

    def kept(model: TorchModel, name: str) -> TorchModel:
        (tmp_path / name).mkdir()
        model.save(tmp_path / name)
        loaded = load(tmp_path / name, factories=frozenset({STEM}))
        assert isinstance(loaded, TorchModel)
        return loaded

    teacher = kept(Train(model=STEM, epochs=1, **DECAYING).run(None, context), "teacher")
    taught = replace(context, teachers={"teacher": teacher})
    start = Distill(model=STEM, teacher="teacher", epochs=0).run(None, taught)
    student = kept(Distill(model=STEM, teacher="teacher", epochs=1, **DECAYING).run(None, taught), "student")
    assert same_stem(student, start)
    pruned = kept(Prune(target=Target(macs=0.6), round_to=1).run(student, taught), "pruned")
    assert pruned.network.get_parameter("conv.weight").shape[0] < 16
    recovered = kept(Distill(teacher="teacher", epochs=1, **DECAYING).run(pruned, taught), "recovered")
    assert same_stem(recovered, pruned)
    again = kept(Train(epochs=1, **DECAYING).run(recovered, taught), "again")
    assert same_stem(again, recovered)
    settings = {"epochs": 1, "learning_rate": 0.01, "weight_decay": 0.1, "keep": "last"}
    before = Quantize(mode="ptq").run(again, taught)
    after = Quantize(mode="qat", teacher="teacher", **settings).run(again, taught)
    assert same_stem(after, before)


def test_a_network_with_nothing_left_to_train_is_refused(context: Context) -> None:
    model = Train(model="tests.networks:LeNet", epochs=0).run(None, context)
    frozen = replace(model, frozen=frozenset(name for name, _ in model.network.named_parameters()))
    with pytest.raises(ArchitectureError, match="every parameter of the network is frozen"):
        Train(epochs=1).run(frozen, context)


def test_resuming_with_another_number_of_threads_is_said(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Tracker):
        def on_epoch(self, stage: str, point: Mapping[str, float]) -> None:
            if point["epoch"] == 2:
                raise KeyboardInterrupt

    def services(*trackers: Tracker) -> tuple[Context, StringIO]:
        said = StringIO()
        console = Console(RichConsole(file=said), quiet=False)
        own = Services(console, trackers, checkpoints=Checkpoints(tmp_path, "key"))
        return replace(context, services=own), said

    stage = Train(model="resnet", arguments=TINY, epochs=3)
    threads = torch.get_num_threads()
    first, _ = services(Interrupted())
    monkeypatch.setattr("compressor.training.loop.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        stage.run(None, first)
    monkeypatch.undo()
    for now in (threads, threads + 1):
        again, said = services()
        monkeypatch.setattr("torch.get_num_threads", lambda now=now: now)
        stage.run(None, again)
        assert "train: resumes after epoch 1 of 3" in said.getvalue()
        sentence = f"train: began with {threads} threads, resumes with {now}; bits may differ"
        assert (sentence in said.getvalue()) == (now != threads)
