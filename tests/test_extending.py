"""Where something new goes: the examples of docs/design.md, built and run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compressor import Context, Dataset, Measure, Objective, Pipeline, Source, Split, TorchModel, run
from compressor.data.preprocess import Preprocess
from compressor.distillation.settings import Distillation
from compressor.evaluation.engines.base import Subject, engine_of, title_of
from compressor.evaluation.setting import Setting
from compressor.pruning.criteria import Importance
from compressor.report.writing import WRITTEN
from compressor.training import Batch, Training, Watched, fit
from stages import Export, Prune, Quantize, Target, Train
from tests.conftest import TINY, accuracy


class Confident(Objective):
    """A loss of one's own: cross-entropy less the entropy of the predictions (Pereyra et al. 2017)."""

    def forward(self, network: Watched, batch: Batch) -> Tensor:
        log_p = network.logits(batch).log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        return torch.nn.functional.nll_loss(log_p, batch.labels) - 0.1 * entropy


def test_a_loss_is_an_objective(context: Context) -> None:
    start = context.new_model("resnet", TINY)
    network = start.copy_network()
    fit(network, Confident(), Training(epochs=6, batch_size=64), context, label="mine")
    assert accuracy(start.with_network(network, details={}), context.data) > 0.8


def test_a_criterion_scores_the_channels_of_a_group(
    tiny: TorchModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first channels are the most important ones: each layer keeps its first half."""

    def first(criterion: str, network: nn.Module, data: Dataset) -> Importance:
        return lambda group: torch.arange(len(group), 0, -1.0)

    monkeypatch.setattr("compressor.pruning.channels.importance", first)
    pruned = Prune(target=Target(ratio=0.5), round_to=1).run(tiny, context)
    for layer, channels in (("layer1.0.conv1", 4), ("layer2.0.conv2", 8)):
        before, after = (model.network.get_parameter(f"{layer}.weight") for model in (tiny, pruned))
        assert torch.equal(after, before[:channels, :channels])


class Stripes(Source):
    """A source of one's own: images that are made when they are asked for, and never all of them."""

    def __init__(self, count: int) -> None:
        self.labels = torch.arange(count) % 2
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        self.asked.append(len(indices))
        noise = torch.randint(
            0, 64, (len(indices), 1, 8, 8), generator=torch.Generator().manual_seed(int(indices.sum()))
        )
        rows = torch.arange(8).view(8, 1).expand(8, 8) % 2
        stripes = torch.stack([rows, rows.T])[self.labels[indices]].unsqueeze(1)
        return (noise + 160 * stripes).to(torch.uint8)


def test_a_data_set_is_a_source(tmp_path: Path) -> None:
    stripes = Stripes(500)
    whole = Split.of(stripes)
    data = Dataset(
        train=whole.take(torch.arange(400)),
        validation=whole.take(torch.arange(400, 500)),
        calibration=whole.take(torch.arange(50)),
        test=whole.take(torch.arange(0)),
        labels=("rows", "columns"),
        preprocess=Preprocess(size=(8, 8), channels=1, mean=(0.5,), std=(0.25,)),
    )
    context = Context(data=data)
    trained = Train(model="resnet", arguments={"blocks": [1], "widths": [8]}, epochs=2, batch_size=40).run(
        None, context
    )
    shipped = Export().run(Quantize(mode="ptq").run(trained, context), context)
    assert shipped.details["agreement"]["images"] == 100
    assert accuracy(trained, data) == 1.0
    assert data.fingerprint == replace(data).fingerprint
    assert max(stripes.asked) <= 400


def test_an_engine_comes_with_a_package_and_is_timed(tmp_path: Path) -> None:
    stages = (Train(id="teacher", model="resnet", arguments={"blocks": [1], "widths": [4]}, epochs=0),)
    measure = Measure(engines=("reference",))
    pipeline = Pipeline(name="mine", data={"name": "digits"}, stages=stages, measure=measure)  # type: ignore[arg-type]
    report = run(pipeline, tmp_path / "run", device="cpu")
    on_cpu, on_gpu = (entry.model_dump() for entry in report.rows[0].latency)
    assert on_cpu["engine"] == "reference"
    assert on_cpu["median_ms"] > 0
    assert on_gpu["reason"] == "numpy computes on the CPU"
    assert "ONNX's reference, 1 thread, batch 1" in (tmp_path / "run" / "report.md").read_text().replace("&#x27;", "'")


@pytest.mark.parametrize("name", ["onnxruntime", "torch", "openvino", "reference"])
def test_every_engine_gives_the_networks_logits(name: str, tiny: TorchModel, int8: TorchModel, tmp_path: Path) -> None:
    engine = engine_of(name)
    setting = Setting(engine=name, device="cpu", threads=1, batch=3)
    inputs = np.random.default_rng(0).normal(0, 1, (3, 1, 8, 8)).astype(np.float32)
    for model in (tiny, int8):
        path = tmp_path / f"{model.quantized}.onnx"
        path.write_bytes(model.to_onnx("test").content)
        subject = Subject(path, model)
        if (reason := engine.why_not(subject, "cpu")) is not None:
            assert name in ("torch", "reference"), reason
            assert model.quantized
            continue
        session = engine.open(subject, setting)
        expected = model.predict(torch.from_numpy(inputs)).numpy()
        scale = np.abs(expected).max()
        assert np.abs(session.run(inputs) - expected).max() <= (0.05 if model.quantized else 1e-4) * scale
        assert session.seconds() > 0
    assert engine.why_not(Subject(path), "tpu") is not None or name != "openvino"
    assert title_of(name) == engine.title


def test_what_is_not_installed_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no engine 'openvin'; did you mean `openvino`"):
        Measure(engines=("openvin",))
    assert title_of("coreml") == "coreml"  # of a report from elsewhere


def test_a_tracker_comes_with_a_package_and_follows_the_run(tmp_path: Path) -> None:
    stages = (
        Train(id="teacher", model="resnet", arguments={"blocks": [1], "widths": [4]}, epochs=2),
        Export(id="shipped"),
    )
    measure = Measure(engines=("onnxruntime",), devices=("cpu",))
    pipeline = Pipeline(name="mine", data={"name": "digits"}, stages=stages, tracking=("journal",), measure=measure)  # type: ignore[arg-type]
    run(pipeline, tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / "journal.txt").read_text().splitlines() == [
        "begin mine",
        "epoch teacher 1 of 2",
        "epoch teacher 2 of 2",
        "row teacher scored",
        "row shipped scored",
        "row teacher measured",
        "row shipped measured",
        *(f"artifact {name}" for name in ("model.onnx", *WRITTEN)),
        "end",
    ]


def test_an_export_format_is_a_stage(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "name: halved\ndata: {name: digits}\nstages:\n"
        "  - {stage: train, id: teacher, model: resnet, arguments: {blocks: [1], widths: [16]}, epochs: 2}\n"
        "  - {stage: half}\nmeasure: {engines: []}\n"
    )
    report = run(Pipeline.load(tmp_path / "p.yaml"), tmp_path / "run", device="cpu")
    before, half = report.rows
    assert half.size_bytes < 0.7 * before.size_bytes
    assert abs(half.accuracy.correct - before.accuracy.correct) <= 2
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "run" / "model.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds


def test_losses_on_layers_are_settings_of_a_distillation() -> None:
    settings = {"epochs": 1, "teacher": "t", "features": [{"loss": "hints", "student": "a", "teacher": "b"}]}
    assert Distillation.model_validate(settings).features[0].weight == 1.0
    with pytest.raises(ValueError, match="features run the teacher at every step"):
        Distillation.model_validate({**settings, "cache": {"views": 2}})
    with pytest.raises(ValueError, match="features needs a teacher"):
        Distillation.model_validate({**settings, "teacher": None})
