"""Trackers against their real local stores."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from compressor import Measure, Pipeline, Tracker, run
from compressor.errors import StageError, UserError
from compressor.report import Report
from compressor.runs.trackers import following
from stages import Export, Train
from tests.conftest import TINY

PIPELINE = Pipeline(
    name="followed",
    data={"name": "digits"},  # type: ignore[arg-type]
    stages=(Train(id="teacher", model="resnet", arguments=TINY, epochs=3), Export(id="shipped")),
    tracking=("tensorboard", "mlflow"),
    measure=Measure(engines=("onnxruntime",), devices=("cpu",)),
)
SETTING = "onnxruntime-cpu-1-threads-batch-1"


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracked") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run(PIPELINE, folder, device="cpu")
    return folder


def test_tensorboard_has_curves_rows_report_and_model(followed: Path) -> None:
    report = Report.load(followed)
    events = EventAccumulator(str(followed / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    curve = report.row("teacher").details["curve"]
    for name in ("loss", "validation_accuracy", "learning_rate"):
        logged = events.Scalars(f"teacher/{name}")
        assert [each.step for each in logged] == [1, 2, 3]
        assert [each.value for each in logged] == pytest.approx([point[name] for point in curve])
    shipped = report.shipped_row
    (entry,) = shipped.timed.values()
    for name, value in (
        ("accuracy", shipped.accuracy.value),
        ("size_bytes", shipped.size_bytes),
        (f"latency_ms/{SETTING}", entry.median_ms),
        (f"speedup/{SETTING}", entry.speedup),
    ):
        assert events.Scalars(f"shipped/{name}")[-1].value == pytest.approx(value)
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    assert texts["report.md/text_summary"] == (followed / "report.md").read_text()
    assert texts["model.onnx/text_summary"].endswith("run/model.onnx")


def test_mlflow_has_curves_rows_report_and_model(followed: Path, tmp_path: Path) -> None:
    report = Report.load(followed)
    client = MlflowClient(f"sqlite:///{followed.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("followed")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.data.params["teacher.epochs"] == "3"
    assert logged.data.params["seed"] == "0"
    history = client.get_metric_history(logged.info.run_id, "teacher/loss")
    assert [(each.step, each.value) for each in history] == [
        (point["epoch"], pytest.approx(point["loss"])) for point in report.row("teacher").details["curve"]
    ]
    shipped = report.shipped_row
    assert logged.data.metrics["shipped/accuracy"] == shipped.accuracy.value
    assert logged.data.metrics[f"shipped/speedup/{SETTING}"] == next(iter(shipped.timed.values())).speedup
    files = {each.path for each in client.list_artifacts(logged.info.run_id)}
    assert {"model.onnx", "report.html", "report.json"} <= files
    kept = client.download_artifacts(logged.info.run_id, "model.onnx", str(tmp_path))
    assert Path(kept).read_bytes() == (followed / "model.onnx").read_bytes()


class Heard(Tracker):
    def __init__(self) -> None:
        self.calls = list[str]()

    def begin(self, folder: Path, pipeline: Mapping[str, Any]) -> None:
        self.calls.append(f"begin {folder.name}, seed {pipeline['seed']}")

    def on_failure(self, error: BaseException) -> None:
        self.calls.append(f"on_failure {type(error).__name__}")

    def end(self) -> None:
        self.calls.append("end")


def test_trackers_end_with_a_run_that_fails(tmp_path: Path) -> None:
    failing = (Train(id="teacher", model="tests.networks:Exploding", epochs=1, learning_rate=10),)
    pipeline = PIPELINE.model_copy(update={"stages": failing, "tracking": ()})
    heard = Heard()
    with pytest.raises(StageError, match=r"not finite|the loss is"):
        run(pipeline, tmp_path / "run", device="cpu", trackers=[heard])
    assert heard.calls == ["begin run, seed 0", "on_failure StageError", "end"]


def test_a_tracker_from_python_follows_the_first_of_several_seeds(tmp_path: Path) -> None:
    heard = Heard()
    pipeline = PIPELINE.model_copy(update={"seeds": (3, 4), "tracking": ()})
    run(pipeline, tmp_path / "run", device="cpu", trackers=[heard])
    assert heard.calls == ["begin run, seed 3", "end"]


def test_mlflow_says_how_a_run_ended_and_has_all_seeds_in_one_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".compress.lock").touch()  # somebody's run
    for folder, error in (("run", StageError("diverged")), ("run/seeds/4", KeyboardInterrupt())):
        with pytest.raises(type(error)), following(PIPELINE, tmp_path / folder, ()):
            raise error
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("followed")
    assert experiment is not None
    logged = client.search_runs([experiment.experiment_id])
    assert {each.info.run_name: each.info.status for each in logged} == {"run": "FAILED", "run/seeds/4": "KILLED"}


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")])
def test_what_is_not_installed_is_reported(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        UserError, match=rf"tracking: {name} is not installed; run `pip install 'compressor\[{name}\]'`"
    ):
        run(PIPELINE.model_copy(update={"tracking": (name,)}), tmp_path / "run", device="cpu")
