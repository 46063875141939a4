"""What ships for several engines: the file that each reads, checked, scored and timed where it runs."""

import importlib.util
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from compressor import Context, Data, Dataset, Measure, OnnxModel, Pipeline, TorchModel, load, run
from compressor.errors import ArtifactError
from compressor.evaluation import Predictions, Subject, engine_of, in_engines
from compressor.evaluation.engines import open_vino
from compressor.export import onnx_file
from compressor.models import Int8
from compressor.storage import files
from stages import Export, Quantize, Train
from tests.test_tampering import Heard

NO_TENSORRT = "this ONNX Runtime has no TensorRT provider (onnxruntime-gpu has)"
STAGES = (
    Train(id="teacher", model="resnet", arguments={"blocks": [1], "widths": [8]}, epochs=2, batch_size=64),
    Quantize(id="int8", mode="ptq"),
)


def shipping(*engines: str, **settings: Any) -> Pipeline:
    """A tiny pipeline whose export is for these engines."""
    export = Export.model_validate({"stage": "export", "id": "shipped", "for": engines, **settings})
    measure = Measure(engines=("onnxruntime",), devices=("cpu",))
    return Pipeline(name="tiny", data=Data(name="digits"), stages=(*STAGES, export), measure=measure)


@pytest.fixture(scope="module")
def made(int8: TorchModel, context: Context) -> OnnxModel:
    return Export(for_=("openvino", "tensorrt", "openvino")).run(int8, context)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engines") / "run"
    run(shipping("onnxruntime", "openvino", "tensorrt"), out, device="cpu")
    return out


def constants(content: bytes) -> tuple[onnx.GraphProto, dict[str, Any]]:
    """A file's graph and its constants by name."""
    graph = onnx.load_from_string(content).graph
    return graph, {each.name: numpy_helper.to_array(each) for each in graph.initializer}


def test_tensorrt_gets_symmetric_int8_and_float_biases(made: OnnxModel, int8: TorchModel) -> None:
    graph, held = constants(made.own_files["tensorrt"])
    (change,) = (each for each in int8.changes if isinstance(each, Int8))
    reach = {np.float32(max(zero, 255 - zero) * scale) for scale, zero in change.activations.values()}
    grids = [[held[name] for name in node.input[1:]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {(zero_point.dtype.name, int(zero_point)) for _, zero_point in grids} == {("int8", 0)}
    assert sorted({float(scale) * 127 for scale, _ in grids}) == pytest.approx(sorted(reach), rel=1e-6)
    read = [held[node.input[0]] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in held]
    assert {each.dtype for each in read} == {np.dtype(np.int8)}  # weights; no int32 bias
    biases = [held[node.input[2]] for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(biases) == len(read) > 0
    assert {each.dtype for each in biases} == {np.dtype(np.float32)}
    assert "Pad" not in {node.op_type for node in graph.node}


def test_its_file_computes_what_the_network_on_symmetric_grids_does(
    made: OnnxModel, int8: TorchModel, context: Context
) -> None:
    own = int8.for_engine("tensorrt")
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    got = onnxruntime.InferenceSession(made.own_files["tensorrt"]).run(None, {"input": inputs.numpy()})[0]
    expected = own.predict(inputs).numpy()
    assert (got.argmax(1) == expected.argmax(1)).mean() >= 0.99
    assert np.abs(got - expected).mean() < 0.01 * np.abs(expected).mean()
    other = int8.predict(inputs).numpy()
    assert np.abs(other - expected).mean() > 1e-3 * np.abs(expected).mean()  # they are other grids


def test_the_other_engines_read_the_same_file(made: OnnxModel, int8: TorchModel, tiny: TorchModel) -> None:
    assert made.content == int8.to_onnx("tests").content
    assert made.engines == ("openvino", "tensorrt")
    assert set(made.own_files) == {"tensorrt"}
    assert int8.for_engine("openvino") is int8
    assert tiny.for_engine("tensorrt") is tiny  # in float, there is nothing to round otherwise


def test_agreement_is_that_of_the_engine(made: OnnxModel, int8: TorchModel, context: Context, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    (tmp_path / "m.onnx").write_bytes(made.content)
    model = openvino.Core().compile_model(tmp_path / "m.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got = next(iter(model([inputs.numpy()]).values()))
    expected = int8.predict(inputs).numpy()
    found = made.details["agreement_in"]
    assert found["openvino"]["engine"] == "openvino"
    assert found["openvino"]["same_top1"] == (got.argmax(1) == expected.argmax(1)).sum()
    assert found["openvino"]["mean_logit_difference"] == pytest.approx(np.abs(got - expected).mean(), rel=1e-3)
    assert (found["tensorrt"]["engine"], found["tensorrt"]["reason"]) == ("onnxruntime", NO_TENSORRT)


def test_another_engine_may_disagree_and_it_is_said(
    int8: TorchModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    run_whole = in_engines._in_whole_batches
    monkeypatch.setattr(in_engines, "_in_whole_batches", lambda *given: -run_whole(*given))
    made = Export(for_=("openvino",)).run(int8, context)
    assert made.details["agreement_in"]["openvino"]["same_top1"] == 0
    assert made.details["agreement"]["same_top1"] >= 198


def test_the_network_computes_every_image_once(
    int8: TorchModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[int] = []
    predict = TorchModel.predict
    monkeypatch.setattr(TorchModel, "predict", lambda self, given: images.append(len(given)) or predict(self, given))
    Export(for_=("openvino",)).run(int8, context)
    assert sum(images) == len(context.data.validation)


def test_an_engine_that_cannot_run_it_is_an_error_in_one_sentence(
    int8: TorchModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino")

    def fail(*_: Any) -> None:
        raise RuntimeError("no kernel\nat line 3")

    monkeypatch.setattr(openvino.InferRequest, "infer", fail)
    with pytest.raises(ArtifactError, match=r"^OpenVINO cannot run the file for onnxruntime, openvino: no kernel$"):
        Export(for_=("openvino",)).run(int8, context)


def test_an_engine_takes_whole_batches_of_any_number_of_images() -> None:
    class Three:
        def run(self, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            assert len(inputs) == 3
            return inputs.sum((1, 2, 3))[:, None]

    for count in (1, 2, 3, 4, 7):
        inputs = np.arange(count * 4, dtype=np.float32).reshape(count, 1, 2, 2)
        assert in_engines._in_whole_batches(Three(), 3, inputs).tolist() == inputs.sum((1, 2, 3))[:, None].tolist()  # type: ignore[arg-type]


def test_it_is_loaded_as_it_was_saved(made: OnnxModel, tmp_path: Path) -> None:
    made.save(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, OnnxModel)
    assert (loaded.content, loaded.own_files, loaded.engines) == (made.content, made.own_files, made.engines)
    assert loaded.digest == made.digest
    (tmp_path / "model.tensorrt.onnx").write_bytes(made.content)
    with pytest.raises(ArtifactError, match="does not have the digest that its manifest names"):
        load(tmp_path)
    (tmp_path / "model.tensorrt.onnx").unlink()
    with pytest.raises(ArtifactError, match="holds no readable artifact"):
        load(tmp_path)


def test_a_manifest_names_no_file_elsewhere(made: OnnxModel, tmp_path: Path) -> None:
    made.save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["own_files"] = {"../../x": manifest["own_files"]["tensorrt"]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="not a manifest of this version"):
        load(tmp_path)


def test_a_run_says_how_each_engine_does(shipped: Path) -> None:
    report = json.loads((shipped / "report.json").read_text())
    by_engine = {each["engine"]: each for each in report["engines"]}
    row = report["rows"][-1]
    assert list(by_engine) == ["openvino", "tensorrt"]
    trt = by_engine["tensorrt"]
    content = (shipped / "model.tensorrt.onnx").read_bytes()
    data = Data(name="digits").load(0)
    inputs = data.preprocess.normalise(data.test.images).numpy()
    logits = onnxruntime.InferenceSession(content).run(None, {"input": inputs})[0]
    assert trt["accuracy"]["correct"] == (logits.argmax(1) == data.test.labels.numpy()).sum()
    assert trt["accuracy"]["engine"] == "onnxruntime"
    assert trt["size_bytes"] == len(content)
    usual = onnxruntime.InferenceSession(shipped / "model.onnx").run(None, {"input": inputs})[0]
    assert trt["same"] == (logits.argmax(1) == usual.argmax(1)).sum()
    ov = by_engine["openvino"]
    assert (ov["file"], ov["sha256"]) == ("model.onnx", row["sha256"])
    if importlib.util.find_spec("openvino"):
        import openvino

        how = {"INFERENCE_PRECISION_HINT": "f32"}
        model = openvino.Core().compile_model(shipped / "model.onnx", "CPU", how)
        right = (next(iter(model([inputs]).values())).argmax(1) == data.test.labels.numpy()).sum()
        assert (ov["accuracy"]["engine"], ov["accuracy"]["correct"]) == ("openvino", right)
    timed = [(entry["engine"], entry["device"], "median_ms" in entry) for entry in row["latency"]]
    assert timed[0] == ("onnxruntime", "cpu", True)
    assert timed[1] == ("openvino", "cpu", ov["accuracy"]["engine"] == "openvino")
    assert timed[2] == ("tensorrt", "cuda", False)
    assert row["latency"][2]["reason"] == NO_TENSORRT
    assert [entry["engine"] for entry in report["rows"][0]["latency"]] == ["onnxruntime"]


def test_the_reports_show_it(shipped: Path) -> None:
    text = (shipped / "report.md").read_text()
    assert "## Where it runs" in text
    assert "| TensorRT | model.tensorrt.onnx | " in text
    assert f"TensorRT did not run here: {NO_TENSORRT}." in text.replace("\\", "")
    assert "the file for TensorRT in ONNX Runtime, for lack of TensorRT, and torch agree on" in text
    assert "**For TensorRT** there is `model.tensorrt.onnx`" in (shipped / "README.md").read_text()
    page = (shipped / "report.html").read_text()
    assert "<h2>Where it runs</h2>" in page
    assert "(by ONNX Runtime)" in page
    assert f"TensorRT did not run here: {NO_TENSORRT}." in page


def test_nothing_is_scored_twice_and_what_is_not_asked_for_goes(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "again"
    shutil.copytree(shipped, out)
    monkeypatch.setattr(in_engines.Opened, "of", None)  # nothing is opened
    before = json.loads((out / "report.json").read_text())["engines"]
    run(shipping("onnxruntime", "openvino", "tensorrt"), out, device="cpu")
    assert json.loads((out / "report.json").read_text())["engines"] == before
    monkeypatch.undo()
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("compressor.runs.runner.try_stages", lambda *_, **__: None)
    run(shipping("onnxruntime"), out, device="cpu")
    assert not (out / "model.tensorrt.onnx").exists()
    assert json.loads((out / "report.json").read_text())["engines"] == []


def test_an_engine_that_comes_or_goes_is_asked_anew(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    out = tmp_path / "again"
    shutil.copytree(shipped, out)
    monkeypatch.setattr(open_vino.OpenVino, "why_not", lambda *_: "it is gone")
    report = run(shipping("onnxruntime", "openvino", "tensorrt"), out, device="cpu")
    assert (report.engines[0].accuracy.engine, report.engines[0].reason) == ("onnxruntime", "it is gone")
    entry = report.shipped_row.latency[1].model_dump()
    assert (entry["engine"], entry["reason"]) == ("openvino", "it is gone")


@pytest.mark.parametrize("figure", [{"same": 359}, {"sha256": "0" * 64}, {"reason": "so"}])
def test_figures_that_somebody_changed_are_made_anew(shipped: Path, tmp_path: Path, figure: dict[str, Any]) -> None:
    out = tmp_path / "again"
    shutil.copytree(shipped, out)
    report = json.loads((out / "report.json").read_text())
    before = dict(report["engines"][1])
    report["engines"][1] |= {**figure, "not_finite": 1}
    (out / "report.json").write_text(json.dumps(report))
    run(shipping("onnxruntime", "openvino", "tensorrt"), out, device="cpu")
    assert json.loads((out / "report.json").read_text())["engines"][1] == before


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"engines": ["zzz"]}, "is for other engines"), ({"own_files": {}}, "is for other engines")],
)
def test_a_manifest_for_other_engines_is_made_again(
    shipped: Path, tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    out = tmp_path / "again"
    shutil.copytree(shipped, out)
    folder = out / "stages" / "shipped"
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changed))
    (folder / "SHA256SUMS").unlink()
    files.seal(folder)
    heard = Heard()
    run(shipping("onnxruntime", "openvino", "tensorrt"), out, device="cpu", console=heard)
    assert any(says in line and "made again" in line for line in heard.said)
    assert (folder / "model.tensorrt.onnx").is_file()


def test_logits_that_are_not_finite_count_as_wrong(
    made: OnnxModel, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(made.content)
    usual = Predictions.of(path, digits.test, digits.preprocess)
    logits = partial(onnx_file.logits_of, onnx_file.session(path))

    def some_nan(inputs: Any) -> Any:
        given = logits(inputs)
        given[:3] = np.nan
        return given

    monkeypatch.setattr(in_engines.Opened, "of", lambda *_: in_engines.Opened("onnxruntime", None, some_nan))
    found = in_engines.in_engine("openvino", path, usual, digits)
    batches = -(-len(digits.test) // 250)
    assert found.not_finite == 3 * batches
    assert found.same == len(digits.test) - 3 * batches
    assert found.accuracy.correct <= usual.correct.sum()


def test_a_damaged_file_of_an_engine_is_made_again(shipped: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(shipped, out)
    whole = (out / "model.tensorrt.onnx").read_bytes()
    (out / "stages" / "shipped" / "model.tensorrt.onnx").write_bytes(whole[:-1])
    run(shipping("onnxruntime", "openvino", "tensorrt"), out, device="cpu")
    assert (out / "stages" / "shipped" / "model.tensorrt.onnx").read_bytes() == whole


def test_tensorrt_says_what_it_cannot_read(made: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("tensorrt")
    assert engine.why_not(None, "cpu") == "TensorRT computes on GPUs (cuda) only"
    assert engine.why_not(None, "cuda") == NO_TENSORRT
    monkeypatch.setattr(onnx_file, "why_not_on", lambda _: None)
    usual, own = tmp_path / "usual.onnx", tmp_path / "own.onnx"
    usual.write_bytes(made.content)
    own.write_bytes(made.own_files["tensorrt"])
    assert "reads no integers but int8" in str(engine.why_not(Subject(usual), "cuda"))
    assert engine.why_not(Subject(own), "cuda") is None
    assert files.digest(made.content) != files.digest(made.own_files["tensorrt"])


def test_a_provider_that_is_listed_may_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    opened: list[str] = []

    class OnTheCpu:
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnx_file, "session", lambda _, device: opened.append(device) or OnTheCpu())
    why_not = onnx_file.why_not_on.__wrapped__
    assert why_not("tensorrt") == "ONNX Runtime's TensorRT provider finds no GPU or no libraries"
    assert why_not("cuda") == "ONNX Runtime's CUDA provider finds no GPU or no libraries"
    assert opened == ["tensorrt", "cuda"]


def test_engines_are_named_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "name: x\ndata: {name: digits}\nstages:\n"
        "  - {stage: train, id: teacher, model: resnet8, epochs: 0}\n"
        "  - {stage: export, for: [tensort]}\n"
    )
    with pytest.raises(Exception, match=r"p.yaml:5:\d+: stages.1.for.0: .*tensorrt"):
        Pipeline.load(tmp_path / "p.yaml")
