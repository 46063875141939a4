"""What a loss may look at and own: hints (Romero et al. 2015) against numpy, from YAML, resumed with the same bits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor import Context, Pipeline, Services, TorchModel, run
from compressor.console import Console, TrainingProgress
from compressor.distillation.losses.hints import Hint
from compressor.distillation.teacher import Teacher
from compressor.errors import ArchitectureError, UserError
from compressor.storage.checkpoints import Checkpoints
from compressor.training import Batch, CrossEntropy, Objective, Training, Watched, WeightedSum, fit, layer_outputs
from stages import Distill
from tests.conftest import TINY, equal_states


def batch_of(context: Context, count: int = 5) -> Batch:
    split = context.data.train.take(torch.arange(count))
    return Batch(context.data.preprocess.normalise(split.images), split.labels, torch.arange(count), 0)


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Flatten()
        self.fc = nn.Linear(64, 10)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.fc(self.inner(x))


def test_a_network_runs_once_a_batch_however_many_objectives_ask(context: Context) -> None:
    network, batch = Counted(), batch_of(context)
    watched = Watched(network)
    with watched.watching(["inner"]):
        loss = WeightedSum([(0.25, CrossEntropy()), (0.75, CrossEntropy())])(watched, batch)
        assert torch.equal(watched.layer("inner", batch), batch.inputs.flatten(1))
        assert network.passes == 1
        expected = nn.functional.cross_entropy(network(batch.inputs), batch.labels)
        assert loss.item() == pytest.approx(expected.item())
        watched.logits(batch_of(context))  # another batch, though it is equal
        assert network.passes == 3
    assert not network.inner._forward_hooks


def test_hooks_are_removed_whatever_happens() -> None:
    watched = Watched(network := Counted())
    with pytest.raises(KeyboardInterrupt), watched.watching(["inner"]):
        raise KeyboardInterrupt
    assert not network.inner._forward_hooks
    with pytest.raises(ArchitectureError, match="the network has no layer 'iner'; did you mean `inner`"):
        watched.watch(["iner"])


def test_a_hint_by_numpy(context: Context, tiny: TorchModel) -> None:
    """The student's map is 8 x 8 x 8, the teacher's 4 x 4 x 16: the larger one is averaged down over 2 x 2."""
    batch = batch_of(context)
    teacher = Teacher(tiny, context, None, ("layer2",))
    student = tiny.copy_network()
    given = layer_outputs(student, ["layer1"], batch.inputs)["layer1"]
    wanted = layer_outputs(tiny.copy_network(), ["layer2"], batch.inputs)["layer2"]
    hint = Hint(teacher, "layer1", "layer2", given, wanted)
    watched = Watched(student)
    with watched.watching(hint.layers):
        loss = hint(watched, batch)
    weight, bias = (p.detach().numpy() for p in hint.regressor.parameters())  # [16, 8, 1, 1], [16]
    predicted = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], given.numpy()) + bias[:, None, None]
    small = predicted.reshape(5, 16, 4, 2, 4, 2).mean((3, 5))
    expected = ((small - wanted.numpy()) ** 2).mean() / 2
    assert loss.item() == pytest.approx(expected, rel=0.02)  # the teacher may run in bf16
    assert {name for name, _ in hint.named_parameters()} == {"regressor.weight", "regressor.bias"}


HINTED = {"features": ({"loss": "hints", "student": "layer1", "teacher": "layer2"},)}


def distilled(
    context: Context, tiny: TorchModel, checkpoints: Checkpoints | None = None, epochs: int = 3
) -> TorchModel:
    stage = Distill.model_validate({"teacher": "t", "model": "resnet", "arguments": TINY, "epochs": epochs, **HINTED})
    services = Services(checkpoints=checkpoints)
    return stage.run(None, Context(data=context.data, teachers={"t": tiny}, services=services))


def test_adapters_are_trained_checkpointed_and_dropped(
    context: Context, tiny: TorchModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = distilled(context, tiny)
    assert set(alone.network.state_dict()) == set(tiny.network.state_dict())
    monkeypatch.setattr("compressor.training.loop.CHECKPOINT_SECONDS", 0)
    steps = 0

    def step(self: TrainingProgress) -> None:
        nonlocal steps
        steps += 1
        if steps == 15:
            raise KeyboardInterrupt

    checkpoints = Checkpoints(tmp_path, "key")
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "step", step)
        with pytest.raises(KeyboardInterrupt):
            distilled(context, tiny, checkpoints)
    tensors, _ = checkpoints.load("distill", tensors_start(context)) or ({}, {})
    assert {"objective/terms.1.regressor.weight", "objective/terms.1.regressor.bias"} <= set(tensors)
    assert equal_states(distilled(context, tiny, checkpoints).network, alone.network)


def tensors_start(context: Context) -> str:
    from compressor.storage import tensors

    return tensors.digest(context.new_model("resnet", TINY).network.state_dict())


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        ({"student": "layer9", "teacher": "layer2"}, "the network has no layer 'layer9'; did you mean `layer"),
        ({"student": "layer1", "teacher": "layr2"}, "the network has no layer 'layr2'; did you mean `layer2`"),
        (
            {"student": "fc", "teacher": "layer2"},
            r"the student's layer 'fc' has output \[2, 10\]; a hint needs \[N, C, H, W\]",
        ),
    ],
)
def test_layers_that_do_not_fit_are_reported(
    context: Context, tiny: TorchModel, feature: dict[str, str], words: str
) -> None:
    settings = {"teacher": "t", "model": "resnet", "arguments": TINY, "epochs": 1}
    stage = Distill.model_validate({**settings, "features": [{"loss": "hints", **feature}]})
    with pytest.raises(UserError, match=words):
        stage.run(None, Context(data=context.data, teachers={"t": tiny}))


def test_hints_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("""\
name: hinted
data: {name: digits}
stages:
  - {stage: train, id: teacher, model: resnet, arguments: {blocks: [1, 1], widths: [8, 16]}, epochs: 2}
  - {stage: distill, id: student, model: resnet, arguments: {blocks: [1, 1], widths: [4, 8]}, teacher: teacher, epochs: 2,
     features: [{loss: hints, student: layer2, teacher: layer2, weight: 0.5}]}
measure: {engines: []}
""")
    report = run(Pipeline.load(tmp_path / "p.yaml"), tmp_path / "out", device="cpu", console=Console())
    curve = report.row("student").details["curve"]
    assert len(curve) == 2
    assert curve[1]["loss"] < curve[0]["loss"]


def test_a_layer_that_never_runs_is_reported(context: Context) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(64, 10), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x.flatten(1))

    class Looks(Objective):
        layers = ("idle",)

        def forward(self, network: Watched, batch: Batch) -> Tensor:
            return network.layer("idle", batch).mean()

    with pytest.raises(ArchitectureError, match="layer 'idle' outputs no tensor when the network runs"):
        fit(Idle(), Looks(), Training(epochs=1), context, label="x")
