"""A whole run on real digits with a tiny budget, and the files it leaves."""

import functools
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch

from compressor import Data, Measure, Pipeline, run
from compressor.console import Console
from compressor.data.dataset import Dataset
from compressor.distillation.settings import Cache
from compressor.environment import environment
from compressor.errors import ArtifactError, StageError, UserError
from compressor.evaluation.engines.base import Session, Subject
from compressor.evaluation.engines.onnx_runtime import OnnxRuntime
from compressor.evaluation.setting import Setting
from compressor.models.resnet import ResNet
from compressor.report.report import Report
from compressor.report.wording import remarks
from stages import Distill, Export, Prune, Quantize, Target, Train
from tests.conftest import IDS, PIPELINE, STUDENT


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "tiny"))


def content(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def test_everything_is_where_readers_look(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert {"model.onnx", "pipeline.yaml", "stages"} <= names
    assert {"report.json", "report.md", "report.html", "doctor.html", "README.md"} <= names
    assert sorted(p.name for p in (finished / "stages").iterdir()) == sorted(IDS)
    for stage_id in IDS:
        assert (finished / "stages" / stage_id / "model.onnx").is_file()
    assert (finished / "model.onnx").read_bytes() == (finished / "stages" / "shipped" / "model.onnx").read_bytes()
    assert Pipeline.load(finished / "pipeline.yaml") == PIPELINE


def test_the_report_has_the_agreed_keys(finished: Path) -> None:
    report = content(finished)
    assert (report["schema"], report["pipeline"]) == (1, "tiny")
    assert (report["baseline"], report["shipped"]) == ("teacher", "shipped")
    assert {"cpu", "isa", "cores", "gpu", "torch", "onnxruntime", "commit"} <= set(report["environment"])
    assert [row["id"] for row in report["rows"]] == IDS
    for row in report["rows"]:
        assert {"id", "stage", "artifact", "seconds", "parameters", "nonzero_parameters", "macs", "size_bytes"} <= set(
            row
        )
        assert set(row["accuracy"]) == {"split", "engine", "correct", "total", "value", "low", "high"}
        assert row["artifact"] == f"stages/{row['id']}"
        assert row["size_bytes"] == (finished / row["artifact"] / "model.onnx").stat().st_size


def test_the_doctor_looked_at_what_ships(finished: Path) -> None:
    found, shipped = content(finished)["doctor"], content(finished)["rows"][-1]
    assert (found["model"], found["sha256"]) == ("model.onnx", shipped["sha256"])
    assert "QLinearConv" in {node["operator"] for node in found["nodes"]}
    said = f"{found['microseconds']:,.0f} µs an image on one thread"
    assert (
        f"""<a href="doctor.html">Where the shipped file's time goes</a>: {said}"""
        in (finished / "report.html").read_text()
    )
    assert f"(doctor.html): {said}" in (finished / "report.md").read_text()
    assert "QLinearConv" in (finished / "doctor.html").read_text()


def test_a_file_that_no_doctor_can_look_at_has_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise ArtifactError("it holds an If")

    monkeypatch.setattr("compressor.runs.runner.diagnose", refuse)
    assert run(SHORT, tmp_path, device="cpu").doctor is None
    assert content(tmp_path)["doctor"] is None
    assert not (tmp_path / "doctor.html").exists()


def test_accuracy_is_that_of_the_onnx_file_on_the_whole_test_split(finished: Path) -> None:
    """Scored here from the file and its own metadata, with none of the project's code."""
    data = PIPELINE.data.load(PIPELINE.seed)
    for row in content(finished)["rows"]:
        path = finished / row["artifact"] / "model.onnx"
        preprocess = {p.key: p.value for p in onnx.load(path).metadata_props}["compressor.preprocess"]
        mean, std = (np.float32(json.loads(preprocess)[key][0]) for key in ("mean", "std"))
        inputs = (data.test.images.numpy().astype("f4") / 255 - mean) / std
        logits = onnxruntime.InferenceSession(path).run(["logits"], {"input": inputs})[0]
        assert row["accuracy"]["total"] == len(inputs) == 359
        assert row["accuracy"]["correct"] == int((logits.argmax(1) == data.test.labels.numpy()).sum())
        assert row["accuracy"]["engine"] == "onnxruntime"


def test_the_chain_compresses_and_still_knows_digits(finished: Path) -> None:
    rows = {row["id"]: row for row in content(finished)["rows"]}
    assert rows["teacher"]["accuracy"]["value"] > 0.9
    assert rows["shipped"]["accuracy"]["value"] > 0.9
    assert rows["pruned"]["macs"] <= 0.8 * rows["student"]["macs"]
    assert rows["shipped"]["size_bytes"] < rows["recovered"]["size_bytes"] < rows["teacher"]["size_bytes"] / 3
    for key in ("macs", "parameters"):
        assert rows["shipped"][key] == rows["int8"][key] == rows["recovered"][key]


def test_latency_has_figures_or_a_reason(finished: Path) -> None:
    expected = {(engine, device) for engine in ("torch", "onnxruntime") for device in ("cpu", "cuda")}
    for row in content(finished)["rows"]:
        entries = {(e["engine"], e["device"]): e for e in row["latency"]}
        assert set(entries) == expected
        onnx_entry = entries["onnxruntime", "cpu"]
        assert 1 <= len(onnx_entry["moments"]) <= 3
        assert onnx_entry["speedup"] == float(np.median(onnx_entry["moments"]))
        assert onnx_entry["speedup_low"] <= min(onnx_entry["moments"])
        assert onnx_entry["speedup_high"] >= max(onnx_entry["moments"])
        assert onnx_entry["median_ms"] <= onnx_entry["p95_ms"]
        timed_in_torch = "median_ms" in entries["torch", "cpu"]
        assert timed_in_torch == (row["id"] not in {"int8", "shipped"})
        assert timed_in_torch or entries["torch", "cpu"]["reason"]


def test_details_say_what_stages_did(finished: Path) -> None:
    rows: Mapping[str, Any] = {row["id"]: row for row in content(finished)["rows"]}
    assert [entry["epoch"] for entry in rows["teacher"]["details"]["curve"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert rows["pruned"]["details"]["widths"]["fc"] == [10, 10]
    assert rows["shipped"]["details"]["agreement"]["top1_agreement"] >= 0.99
    (versus_float,) = rows["int8"]["versus_float"]
    assert versus_float["engine"] == "onnxruntime"
    assert all(not row["versus_float"] for row_id, row in rows.items() if row_id != "int8")


def test_markdown_says_it_in_words(finished: Path) -> None:
    text = (finished / "report.md").read_text()
    assert "shipped against teacher: accuracy" in text
    assert "ONNX Runtime and torch agree on" in text
    assert "seed 0" in text
    report = content(finished)
    assert ("Int8 is faster than" in text) == (report["rows"][4]["versus_float"][0]["speedup_low"] > 1)
    advice = "Where speed counts more than size, stages/recovered/model.onnx is the file to take."
    for high, advised in ((1.1, False), (0.95, True)):
        report["rows"][4]["versus_float"][0].update(speedup=0.9, speedup_low=0.8, speedup_high=high)
        slow = Report.model_validate(report)
        said = remarks(slow)
        assert any("Int8 is not faster than the same network's float ONNX on this machine" in each for each in said)
        assert (advice in said) == advised


def stage_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the stages that run from here on."""
    ran: list[str] = []
    for kind in (Train, Distill, Prune, Quantize, Export):
        original = kind.run

        @functools.wraps(original)
        def spy(self: Any, model: Any, context: Any, original: Any = original) -> Any:
            if context.pipeline != "dry run":
                ran.append(self.id)
            return original(self, model, context)

        monkeypatch.setattr(kind, "run", spy)
    return ran


def test_what_is_done_is_not_repeated(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(copied)
    ran = stage_runs(monkeypatch)
    run(PIPELINE, copied, device="cpu")
    assert ran == []
    after = content(copied)
    assert (after["rows"], after["doctor"]) == (before["rows"], before["doctor"])


def test_a_changed_stage_runs_with_those_after_it(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = stage_runs(monkeypatch)
    stages = (*PIPELINE.stages[:4], Quantize(id="int8", mode="ptq"), PIPELINE.stages[5])
    run(PIPELINE.model_copy(update={"stages": stages, "measure": Measure(engines=())}), copied, device="cpu")
    assert ran == ["int8", "shipped"]


QUICK = Measure(engines=("onnxruntime",), devices=("cpu",))
SHORT = PIPELINE.model_copy(
    update={
        "stages": (Train(id="teacher", model="resnet", arguments=STUDENT, epochs=0), Export(id="shipped")),
        "measure": Measure(engines=()),
    }
)
TIMED = SHORT.model_copy(update={"measure": QUICK})


def test_a_renamed_stage_is_reported_by_its_new_name(tmp_path: Path) -> None:
    run(SHORT, tmp_path / "out", device="cpu")
    renamed = SHORT.model_copy(update={"stages": (SHORT.stages[0], Export(id="deliverable"))})
    report = run(renamed, tmp_path / "out", device="cpu")
    assert [row.artifact for row in report.rows] == ["stages/teacher", "stages/deliverable"]
    assert report.shipped == "deliverable"


def test_every_row_is_timed_once_before_any_is_a_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []

    class Fixed(Session):
        def run(self, inputs: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
            return inputs

        def seconds(self) -> float:
            return 0.01

    def opened(self: OnnxRuntime, subject: Subject, setting: Setting) -> Session:
        timed.append(subject.onnx.parent.name)
        return Fixed()

    monkeypatch.setattr(OnnxRuntime, "open", opened)
    report = run(TIMED, tmp_path / "out", device="cpu")
    once = ["teacher", "teacher", "shipped", "teacher"]
    assert timed == [*once, "teacher", "teacher", "teacher", "shipped", *once]  # the baseline is opened first in turns
    assert [entry.sessions for row in report.rows for entry in row.timed.values()] == [(1.0, 1.0, 1.0)] * 2


def test_other_measurements_are_made_even_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(TIMED, tmp_path / "out", device="cpu")
    wider = TIMED.model_copy(update={"measure": QUICK.model_copy(update={"batches": (1, 3)})})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("compressor.evaluation.pair.compare", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(wider, tmp_path / "out", device="cpu")
    report = run(wider, tmp_path / "out", device="cpu")
    assert [[entry.batch for entry in row.latency] for row in report.rows] == [[1, 3], [1, 3]]


def test_a_changed_test_split_is_scored_but_nothing_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(SHORT, tmp_path / "out", device="cpu")
    ran = stage_runs(monkeypatch)
    load = Data.load

    def with_half_the_tests(self: Data, seed: int, console: Console) -> Dataset:
        data = load(self, seed, console)
        return replace(data, test=data.test.take(torch.arange(100)))

    monkeypatch.setattr(Data, "load", with_half_the_tests)
    second = run(SHORT, tmp_path / "out", device="cpu")
    assert ran == []
    assert [row.accuracy.total for row in (*first.rows, *second.rows)] == [359, 359, 100, 100]


def test_what_learns_from_other_weights_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "teacher.safetensors"
    taken = Train(id="teacher", model="resnet", arguments=STUDENT, weights=weights, epochs=0)
    pipeline = SHORT.model_copy(update={"stages": (taken, SHORT.stages[1])})
    for seed in (1, 2):
        torch.manual_seed(seed)
        safetensors.torch.save_file(ResNet([1, 1], [8, 16], in_channels=1).state_dict(), weights)
        ran = stage_runs(monkeypatch)
        run(pipeline, tmp_path / "out", device="cpu")
        assert ran == ["teacher", "shipped"]
        monkeypatch.undo()
    elsewhere = tmp_path / "moved.safetensors"
    weights.rename(elsewhere)
    moved = pipeline.model_copy(update={"stages": (taken.model_copy(update={"weights": elsewhere}), SHORT.stages[1])})
    ran = stage_runs(monkeypatch)
    run(moved, tmp_path / "out", device="cpu")
    assert "teacher" not in ran


def test_stored_soft_labels_serve_a_student_that_is_made_again(tmp_path: Path) -> None:
    student = Distill(
        id="student", model="resnet", arguments=STUDENT, teacher="teacher", epochs=2, cache=Cache(views=2)
    )
    kept: list[dict[str, int]] = []
    for learning_rate, seed in ((0.1, 0), (0.05, 0), (0.05, 1)):
        changed = student.model_copy(update={"learning_rate": learning_rate})
        stages = (SHORT.stages[0], changed, SHORT.stages[-1])
        run(
            SHORT.model_copy(update={"stages": stages, "seed": seed, "measure": Measure(engines=())}),
            tmp_path,
            device="cpu",
        )
        kept.append({path.name: path.stat().st_ino for path in (tmp_path / "soft_labels").iterdir()})
    assert len(kept[0]) == 2
    assert kept[1] == kept[0]
    assert len(kept[2]) == 4


def test_fresh_removes_what_a_run_made_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    run(SHORT, out, device="cpu")
    (out / "thesis.txt").write_text("years")
    (out / "stages" / "of_mine").mkdir()
    ran = stage_runs(monkeypatch)
    run(SHORT, out, device="cpu", fresh=True)
    assert ran == ["teacher", "shipped"]
    assert (out / "thesis.txt").read_text() == "years"
    assert (out / "stages" / "of_mine").is_dir()


def test_a_pipeline_file_of_the_users_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text("name: mine\n")
    for fresh in (False, True):
        with pytest.raises(UserError, match="would be overwritten; choose another --out"):
            run(SHORT, tmp_path, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline.yaml"]
    assert (tmp_path / "pipeline.yaml").read_text() == "name: mine\n"


@pytest.mark.parametrize("name", ["checkpoints/mine.pt", "stages/teacher/notes.txt", "model.onnx", "README.md"])
def test_nothing_of_the_users_is_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(
        UserError, match="was not made by an earlier run and would be overwritten; choose another --out"
    ):
        run(SHORT, tmp_path)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


def contents(folder: Path) -> dict[Path, bytes]:
    """The files of a run, but what says that its dry run passed."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".tried"}


def test_a_run_that_fails_leaves_the_record_of_the_one_before(tmp_path: Path) -> None:
    run(SHORT, tmp_path / "out", device="cpu")
    before = contents(tmp_path / "out")
    wrong = Train(id="teacher", model="tests.networks:Colour", epochs=1)
    with pytest.raises(UserError, match="does not take images"):
        run(SHORT.model_copy(update={"stages": (wrong, *SHORT.stages[1:])}), tmp_path / "out", device="cpu")
    assert contents(tmp_path / "out") == before


def test_the_file_names_the_pipeline_that_reuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = SHORT.model_copy(update={"stages": SHORT.stages[:1]})
    first = run(teacher, tmp_path / "out", device="cpu")
    ran = stage_runs(monkeypatch)
    again = run(SHORT, tmp_path / "out", device="cpu")
    assert ran == ["shipped"]
    assert first.digest != again.digest
    for name in ("model.onnx", "stages/teacher/model.onnx"):
        session = onnxruntime.InferenceSession(tmp_path / "out" / name)
        assert session.get_modelmeta().custom_metadata_map["compressor.pipeline"] == again.digest
    assert again.row("teacher").accuracy == first.row("teacher").accuracy


def test_where_the_data_lie_is_no_part_of_the_digest() -> None:
    moved = SHORT.model_copy(update={"data": SHORT.data.model_copy(update={"root": Path("elsewhere")})})
    assert moved.digest == SHORT.digest
    assert moved.model_copy(update={"seed": 1}).digest != SHORT.digest


def test_training_that_was_not_worth_it_is_reported(finished: Path) -> None:
    report = content(finished)
    report["rows"][4]["details"]["kept_epoch"] = 0
    said = remarks(Report.model_validate(report))
    assert "int8: no epoch of training beat the initial network on validation, so that was kept." in said


@pytest.mark.dry_run
def test_stages_never_see_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Dataset] = []
    original = Train.run

    def spy(self: Train, model: Any, context: Any) -> Any:
        seen.append(context.data)
        return original(self, model, context)

    monkeypatch.setattr(Train, "run", spy)
    stages = (Train(id="teacher", model="resnet", arguments=STUDENT, epochs=0),)
    run(PIPELINE.model_copy(update={"stages": stages, "measure": Measure(engines=())}), tmp_path / "out")
    assert [len(data.test) for data in seen] == [0, 0]  # in the dry run and in the run


@pytest.mark.dry_run
def test_a_failing_stage_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = (
        Train(id="teacher", model="resnet", arguments=STUDENT, epochs=0),
        Prune(id="pruned", target=Target(macs=0.001)),
    )
    with monkeypatch.context() as patch:
        patch.setattr("compressor.runs.runner.try_stages", lambda *_, **__: None)
        with pytest.raises(
            StageError, match=r"stage .pruned.: the target, at most 0\.001 of the incoming network, is out of reach"
        ):
            run(PIPELINE.model_copy(update={"stages": stages}), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out" / "stages").iterdir()] == ["teacher"]
    with pytest.raises(StageError, match="out of reach"):
        run(PIPELINE.model_copy(update={"stages": stages}), tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == [
        ".compress.lock"
    ]  # known before anything was trained
    assert not (tmp_path / "out" / "report.json").exists()


def test_an_absent_device_is_reported() -> None:
    with pytest.raises(UserError, match="there is no device 'tpu'"):
        run(PIPELINE, device="tpu")


def test_an_unusable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"):
        run(PIPELINE, tmp_path / "file" / "out")


def test_timings_are_kept_if_what_follows_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = SHORT.model_copy(update={"measure": Measure(engines=("onnxruntime",))})

    def interrupted(path: Path) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("compressor.runs.runner.diagnose", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(pipeline, tmp_path, device="cpu")
    assert (tmp_path / "model.onnx").is_file()
    before = Report.load(tmp_path)
    assert before.doctor is None
    after = run(pipeline, tmp_path, device="cpu")
    assert after.doctor is not None
    assert after.rows == before.rows


def test_another_engine_scores_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    untimed = SHORT.model_copy(update={"measure": Measure(engines=())})
    before = run(untimed, tmp_path, device="cpu")
    ran = stage_runs(monkeypatch)
    newer = environment().model_copy(update={"onnxruntime": "99.0"})
    monkeypatch.setattr("compressor.runs.keys.environment", lambda: newer)
    after = run(untimed, tmp_path, device="cpu")
    assert ran == ["shipped"]
    assert before.rows[0].scored_by != after.rows[0].scored_by
    assert before.rows[0].accuracy == after.rows[0].accuracy


def test_an_engine_in_which_nothing_was_timed_is_named(tmp_path: Path) -> None:
    pipeline = SHORT.model_copy(update={"measure": Measure(engines=("onnxruntime", "tensorrt"))})
    (said,) = (each for each in remarks(run(pipeline, tmp_path, device="cpu")) if each.startswith("Not timed in"))
    assert said.startswith("Not timed in TensorRT: ")
