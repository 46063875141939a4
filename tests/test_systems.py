"""The systems this project grew from: each pipeline runs, with a small budget, and ends in an integer file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from compressor import Pipeline, run
from tests.conftest import executed

PIPELINES = Path(__file__).parent.parent / "pipelines"
FLOAT = {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
SMALL = ["data.train=1240", "data.validation=310", "data.test=310"]
NARROW = ["stages.teacher.arguments.widths=[128]", "stages.student.arguments.widths=[64]"]
BATCHES = [f"stages.{stage}.batch_size=32" for stage in ("teacher", "student", "recovered")]
OPTIONS = {  # that keep it short, besides epochs
    "s3_characters": [*SMALL, *NARROW, *BATCHES],
    "s4_lenet": ["stages.student.milestones=[8]", "stages.student.cache.views=1"],
}
SYSTEMS: Mapping[str, tuple[dict[str, int], dict[str, int], float]] = {  # epochs, integer operators, accuracy
    "s1_soft_labels": ({"teacher": 15, "student": 20}, {"QGemm": 2}, 0.7),
    "s2_temperature": ({"convolutional": 15, "connected": 5, "student": 20, "int8": 1}, {"QGemm": 2}, 0.7),
    "s3_characters": (
        {"teacher": 2, "student": 2, "recovered": 1},
        {"QLinearConv": 2, "QGemm": 2},
        0.1,
    ),  # of 62 classes
    "s4_lenet": ({"teacher": 1, "student": 10, "recovered": 2, "int8": 1}, {"QLinearConv": 2, "QGemm": 3}, 0.5),
    "s5_perceptron": ({"teacher": 6, "student": 6, "recovered": 3, "int8": 1}, {"QGemm": 3}, 0.7),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_it_runs_to_an_integer_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PIPELINES)  # the networks lie beside the pipelines
    epochs, integer, least = SYSTEMS[name]
    options = [f"data.root={tmp_path}", "measure.engines=[]"]
    options += [f"stages.{stage}.epochs={count}" for stage, count in epochs.items()]
    options += OPTIONS.get(name, [])
    monkeypatch.setattr("compressor.data.sources.glyphs.TRAIN", 2_480)  # the others would take long to render
    monkeypatch.setattr("compressor.data.sources.glyphs.TEST", 620)
    pipeline = Pipeline.load(PIPELINES / f"{name}.yaml", options)
    report = run(pipeline, tmp_path / "run", device="cpu")

    content = (tmp_path / "run" / "model.onnx").read_bytes()
    operators = executed(content, tmp_path)
    assert {kind: operators[kind] for kind in integer} == integer
    assert not FLOAT & set(operators)
    data = pipeline.data.load(pipeline.seed)
    images = data.preprocess.normalise(data.test.images).numpy()
    logits = onnxruntime.InferenceSession(content).run(["logits"], {"input": images})[0]
    correct = int((logits.argmax(1) == data.test.labels.numpy()).sum())
    accuracy = report.shipped_row.accuracy
    assert (accuracy.correct, accuracy.total) == (correct, len(images))
    assert accuracy.value > least
    assert report.shipped_row.size_bytes == len(content) < 0.5 * report.baseline_row.size_bytes
    assert np.isfinite(logits).all()
    if name == "s4_lenet":
        masked = report.row("masked").nonzero_parameters
        assert masked < 0.35 * report.shipped_row.parameters
        assert report.shipped_row.nonzero_parameters == masked
