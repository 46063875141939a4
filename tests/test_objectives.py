"""What a loss may look at and own: hints (Romero et al. 2015) against numpy, from YAML, resumed with the same bits."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from pydantic import ValidationError
from torch import Tensor, nn

from compressor import Context, Pipeline, Services, TorchModel, run
from compressor.console import Console, TrainingProgress
from compressor.distillation.layers import classifier_of, shared_layers
from compressor.distillation.losses.attention import Attention
from compressor.distillation.losses.hints import Hint
from compressor.distillation.losses.srd import SRD
from compressor.distillation.teacher import Teacher
from compressor.errors import ArchitectureError, UserError
from compressor.storage.checkpoints import Checkpoints
from compressor.training import Batch, CrossEntropy, Objective, Training, Watched, WeightedSum, fit, layer_outputs
from stages import Distill, Prune, Target
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
            r"the student's layer 'fc' has output \[2, 10\]; this loss needs \[N, C, H, W\]",
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


def shown_by(network: nn.Module, layer: str, batch: Batch) -> np.ndarray:  # type: ignore[type-arg]
    return layer_outputs(network, [layer], batch.inputs)[layer].double().numpy()


def test_attention_by_numpy(context: Context, tiny: TorchModel) -> None:
    """The student's map is 8 x 8, the teacher's 4 x 4."""
    batch = batch_of(context)
    teacher, student = Teacher(tiny, context, None, ("layer2",)), tiny.copy_network()
    g, h = shown_by(student, "layer1", batch), shown_by(tiny.copy_network(), "layer2", batch)
    loss = Attention(teacher, "layer1", "layer2", torch.from_numpy(g), torch.from_numpy(h))
    watched = Watched(student)
    with watched.watching(loss.layers):
        got = loss(watched, batch)
    own = (g**2).mean(1).reshape(5, 4, 2, 4, 2).mean((2, 4)).reshape(5, 16)
    hint = (h**2).mean(1).reshape(5, 16)
    own, hint = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (own, hint))
    assert got.item() == pytest.approx(((own - hint) ** 2).sum(1).mean(), rel=0.02)  # the teacher may run in bf16


def test_srd_by_numpy(context: Context, tiny: TorchModel) -> None:
    batch = batch_of(context, 16)
    name = "input of fc"
    teacher, student = Teacher(tiny, context, None, (name,)), tiny.copy_network()
    with torch.no_grad():
        student.get_parameter("conv1.weight").mul_(torch.linspace(-1, 1, 8).view(8, 1, 1, 1))
    f, h = shown_by(student, name, batch), shown_by(tiny.copy_network(), name, batch)
    assert f.shape == h.shape == (16, 16)
    loss = SRD(teacher, name, name, torch.from_numpy(f), torch.from_numpy(h))
    watched = Watched(student)
    with watched.watching(loss.layers):
        got = loss(watched, batch)
    f = f @ loss.projector.weight.detach().double().numpy().T
    f, h = ((each - each.mean(0)) / np.sqrt(each.var(0) + 1e-5) for each in (f, h))
    assert got.exp().item() == pytest.approx(((f - h) ** 4).sum(1).mean(), rel=0.05)  # the teacher may run in bf16


@pytest.mark.parametrize("count", [1, 4])
def test_srd_of_equal_features_and_of_an_only_image_is_finite(context: Context, tiny: TorchModel, count: int) -> None:
    batch, name = batch_of(context, count), "input of fc"
    features = torch.rand(count, 16)
    loss = SRD(Teacher(tiny, context, None, (name,)), name, name, features, features)
    student = tiny.copy_network()
    torch.nn.init.eye_(loss.projector.weight)
    watched = Watched(student)
    with watched.watching(loss.layers):
        got = loss(watched, batch)
    got.backward()
    assert got.isfinite()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in student.parameters())


def test_layers_of_a_pruned_network_are_found_without_being_named(context: Context, tiny: TorchModel) -> None:
    pruned = Prune(target=Target(ratio=0.5), round_to=4).run(tiny, context)
    example = torch.zeros(context.data.preprocess.input_shape(2))
    assert shared_layers(pruned.network, tiny.network, example) == ["layer1", "layer2"]
    assert (classifier_of(pruned.network, example), classifier_of(tiny.network, example)) == ("fc", "fc")
    features = [{"loss": "hints"}, {"loss": "attention", "weight": 3}, {"loss": "srd"}]
    stage = Distill.model_validate({"teacher": "t", "epochs": 1, "features": features})
    teaching = Context(data=context.data, teachers={"t": tiny})
    objective, _ = stage.objective(pruned.copy_network(), teaching)
    assert isinstance(objective, WeightedSum)
    assert [type(term).__name__ for term in objective.terms] == ["Lesson", *["Hint"] * 2, *["Attention"] * 2, "SRD"]
    assert objective.weights == [1, 0.5, 0.5, 1.5, 1.5, 1]
    assert list(objective.layers) == ["layer1", "layer2", "layer1", "layer2", "input of fc"]
    trained = stage.run(pruned, teaching)
    assert not equal_states(trained.network, pruned.network)
    assert set(trained.network.state_dict()) == set(tiny.network.state_dict())


def test_a_student_of_other_blocks_has_to_name_layers(context: Context, tiny: TorchModel) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).mean((2, 3)))

    stage = Distill.model_validate({"teacher": "t", "epochs": 1, "features": [{"loss": "hints"}]})
    with pytest.raises(ArchitectureError, match=r"no block of maps .* by the same name; name a layer of each"):
        stage.objective(Other(), Context(data=context.data, teachers={"t": tiny}))
    with pytest.raises(ValidationError, match="name both, or neither"):
        Distill.model_validate({"teacher": "t", "epochs": 1, "features": [{"loss": "attention", "student": "a"}]})


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("mobilenet_v2", ["features.1", "features.3", "features.6", "features.13", "features"]),
        ("convnext_tiny", ["features.1", "features.3", "features.5", "features"]),
        ("regnet_x_400mf", ["stem", *(f"trunk_output.block{number}" for number in (1, 2, 3)), "trunk_output"]),
    ],
)
def test_found_layers_end_stages(name: str, layers: list[str]) -> None:
    network = getattr(torchvision.models, name)().eval()
    assert shared_layers(network, network, torch.zeros(2, 3, 64, 64)) == layers


def test_what_runs_twice_or_has_channels_last_is_not_found() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.relu = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2), nn.ReLU()
            self.fc = nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.relu(self.two(self.relu(self.one(x)))).mean((2, 3)))

    assert shared_layers(Shared(), Shared(), torch.zeros(2, 3, 32, 32)) == ["one", "two"]
    swin = torchvision.models.swin_t().eval()  # [N, H, W, C], but for the first convolution and before the last mean
    assert shared_layers(swin, swin, torch.zeros(2, 3, 64, 64)) == ["features.0.0", "permute"]


class Tokens(nn.Module):
    """A network with a parameter of its own, whose classifier reads `[N, tokens, C]`, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(16, 4))
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(input=x.flatten(1).view(len(x), 16, 4) + self.token).mean(1)


def test_the_classifier_is_a_layer_without_layers(context: Context, tiny: TorchModel) -> None:
    wrapped = nn.ModuleDict({"model": Tokens()})
    wrapped.forward = wrapped["model"].forward  # type: ignore[method-assign]
    assert classifier_of(wrapped, torch.zeros(2, 1, 8, 8)) == "model.fc"
    stage = Distill.model_validate({"teacher": "t", "epochs": 1, "features": [{"loss": "srd"}]})
    with pytest.raises(ArchitectureError, match=r"'input of fc' has output \[2, 16, 4\]; this loss needs \[N, C\] or"):
        stage.objective(Tokens(), Context(data=context.data, teachers={"t": tiny}))


def test_a_layer_is_shown_as_it_was_before_the_next_one_worked_in_place() -> None:
    network = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU(inplace=True))
    watched = Watched(network)
    batch = Batch(torch.tensor([[-2.0, 3.0]]), torch.zeros(1, dtype=torch.int64), torch.arange(1), 0)
    with watched.watching(["0", "input of 1"]):
        assert watched.layer("0", batch).tolist() == [[-2.0, 3.0]]
        assert watched.layer("input of 1", batch).tolist() == [[-2.0, 3.0]]
