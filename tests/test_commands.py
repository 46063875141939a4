"""What users do with a finished run: time it, predict with it, compare it, repeat it."""

import json
import os
import re
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from compressor import Data, Measure, Pipeline, run
from compressor.evaluation.accuracy import Predictions
from compressor.report.report import Report
from compressor.report.wording import headline
from compressor.runs.seeds import over_seeds
from compressor_command import main
from stages import Export, Train
from tests.conftest import STUDENT

QUICK = Pipeline(
    name="quick",
    data=Data(name="digits", validation=200, calibration=128),
    stages=(Train(id="teacher", model="resnet", arguments=STUDENT, epochs=1), Export(id="shipped")),
    measure=Measure(engines=("onnxruntime",), devices=("cpu",)),
)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quick") / "run"
    run(QUICK, out, device="cpu")
    return out


def test_bench_times_two_files_in_turn_and_takes_folders(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", str(finished), "--against", str(finished / "stages" / "teacher"), "--batch", "1,4"]
    assert main([*command, "--json"]) == 0
    said = capsys.readouterr()
    written = json.loads(said.out)
    entries = [(entry["threads"], entry["batch"]) for entry in written["latency"]]
    assert entries == [(1, 1), (1, 4)]
    assert all(1 <= len(entry["moments"]) <= 3 for entry in written["latency"])
    rows = {row.id: row for row in Report.load(finished).rows}
    assert (written["sha256"], written["against_sha256"]) == (rows["shipped"].sha256, rows["teacher"].sha256)
    assert written["environment"]["onnxruntime"] == onnxruntime.__version__
    assert said.err == ""


def test_more_threads_than_cores_are_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    cores = len(os.sched_getaffinity(0))
    assert main(["bench", "none.onnx", "--threads", f"{cores},{cores + 1}"]) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning == f"warning: {cores + 1} threads on {cores} cores wait for one another"
    assert error.startswith("error: none.onnx cannot be read")
    assert main(["bench", "none.onnx", "--threads", str(cores)]) == 2
    assert "warning" not in capsys.readouterr().err


def test_bench_times_the_file_that_an_engine_has_of_its_own(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    shutil.copy(finished / "model.onnx", tmp_path / "model.openvino.onnx")
    assert main(["bench", str(tmp_path), "--engine", "openvino", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(tmp_path / "model.openvino.onnx")
    assert main(["bench", str(tmp_path)]) == 2  # model.onnx is for all others


def test_bench_alone_shows_the_noise(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    assert main(["bench", str(finished / "model.onnx"), "--engine", "openvino"]) == 0
    said = capsys.readouterr()
    assert "against itself: noise" in " ".join(said.out.split())
    assert "OpenVINO" in said.out
    assert said.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "none.onnx"], "none.onnx cannot be read: No such file or directory"),
        (["bench", "text.onnx"], "text.onnx is not an ONNX file"),
        (["bench", "model.onnx", "--device", "cuda"], "has no CUDA provider"),
        (["predict", "text.onnx", "."], "text.onnx is not an ONNX file"),
        (["predict", "model.onnx", "none"], "there is no none; expected an image"),
        (["predict", "model.onnx", "empty"], "empty holds no image"),
        (["compare", "empty", "empty"], "there is no report to read"),
        (["reproduce", "none"], "none is not the folder of a run"),
    ],
)
def test_unusable_input_is_reported(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(finished / "model.onnx", tmp_path)
    (tmp_path / "text.onnx").write_text("text")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("count", ["0", "-1", "x", "1.5", "99999999", "1,"])
def test_counts_are_checked(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "model.onnx", "--threads", count]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Usage: compress bench ")
    assert f"{count!r}; expected whole numbers from 1 to 65536, as in 1,4" in said


def test_predict_reads_a_folder_by_the_files_own_metadata(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = Pipeline.load(finished / "pipeline.yaml")
    test = pipeline.data.load(0).test
    (tmp_path / "deeper").mkdir()
    for index in range(20):
        Image.fromarray(test.images[index, 0].numpy()).save(tmp_path / "deeper" / f"{index:02}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "._00.png").write_bytes(b"what macOS leaves beside a file")
    (tmp_path / "folder.png").mkdir()
    assert main(["predict", str(finished / "model.onnx"), str(tmp_path), "--top", "2"]) == 2
    said = capsys.readouterr()
    lines = [line.split("\t") for line in said.out.splitlines()]
    predictions = Predictions.load(finished / "stages" / "shipped" / "answers.safetensors")
    assert [line[1].split()[0] for line in lines] == [str(label) for label in predictions.classes[:20]]
    assert [float(line[1].split()[1]) for line in lines] == pytest.approx(predictions.confidence[:20], abs=1e-4)
    assert all(len(line) == 3 for line in lines)
    assert "broken.png is not a usable image" in said.err
    assert said.err.endswith("1 image could not be read; the others are above\n")
    assert main(["predict", str(finished / "model.onnx"), str(tmp_path / "broken.png")]) == 2
    assert capsys.readouterr().err.endswith("1 image could not be read\n")


def test_predict_takes_several_paths_and_answers_in_json(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = Pipeline.load(finished / "pipeline.yaml").data.load(0).test
    (tmp_path / "more").mkdir()
    paths = [str(tmp_path / name) for name in ("more/0.png", "more/1.png", "2.png")]
    for path, image in zip(paths, test.images[:3], strict=True):
        Image.fromarray(image[0].numpy()).save(path)
    assert main(["predict", str(finished), str(tmp_path / "more"), paths[2], "--top", "10", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert said.err == ""
    assert [entry["image"] for entry in found] == paths
    predictions = Predictions.load(finished / "stages" / "shipped" / "answers.safetensors")
    assert [next(iter(entry["classes"])) for entry in found] == [str(label) for label in predictions.classes[:3]]
    assert [sum(entry["classes"].values()) for entry in found] == pytest.approx([1, 1, 1])
    (tmp_path / "broken.png").write_bytes(b"")
    assert main(["predict", str(finished), str(tmp_path), "--json"]) == 2
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 3
    assert "broken.png is not a usable image" in said.err


def test_validate_answers_in_json(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = str(finished / "pipeline.yaml")
    without = ["--set", "stages.recovered={stage: mask, id: recovered, sparsity: 0.5}"]
    assert main(["validate", spec, "--json", *without]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pipeline"], found["classes"]) == ("tiny", 10)
    assert [stage["id"] for stage in found["stages"]] == [
        "teacher",
        "student",
        "pruned",
        "recovered",
        "int8",
        "shipped",
    ]
    rows = {row.id: row for row in Report.load(finished).rows}
    for stage in found["stages"][:2]:
        row = rows[stage["id"]]
        assert (stage["parameters"], stage["macs"]) == (row.parameters, row.macs)
    assert any("needs recovery" in warning for warning in found["warnings"])


def test_a_run_is_reproduced_to_the_byte(quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", str(quick), "--out", str(tmp_path / "again"), "--device", "cpu"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("byte-identical") == 2
    assert f"{quick} was reproduced" in said
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (quick / "model.onnx").read_bytes()


def test_drift_is_told_from_noise(quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = Path(shutil.copytree(quick, tmp_path / "recorded"))
    content = json.loads((recorded / "report.json").read_text())
    content["environment"]["torch"] = "1.0"
    for row in content["rows"]:
        scored = recorded / "stages" / row["id"] / "row.json"
        scored.write_text(scored.read_text().replace(row["sha256"], "0" * 64))
        row["sha256"] = "0" * 64
    content["doctor"] = None
    (recorded / "report.json").write_text(json.dumps(content))
    assert main(["reproduce", str(recorded), "--device", "cpu"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "within noise: correct on the same images as recorded" in said
    assert "torch: 1.0 | " in said
    stage = recorded / "stages" / "shipped"
    predictions = Predictions.load(stage / "answers.safetensors")
    better = Predictions(predictions.labels, predictions.confidence, predictions.labels)
    better.save(stage / "answers.safetensors")
    assert main(["reproduce", str(recorded), "--device", "cpu", "--out", str(tmp_path / "recorded-again")]) == 1
    said = capsys.readouterr()
    assert re.search(r"differs:\s+worse\s+by", " ".join(said.out.split()))
    assert "was not reproduced" in said.err


def test_two_runs_side_by_side(quick: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(quick), str(finished)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "On the same 359 test images" in said
    assert "McNemar's exact p" in said
    assert "name: quick | tiny" in said
    assert "stages.teacher.epochs: 1 | 8" in said
    assert main(["compare", str(quick), str(finished), "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["runs"] == [str(quick), str(finished)]
    assert found["paired"]["total"] == 359
    files = [folder / "model.onnx" for folder in (quick, finished)]
    assert [row["sha256"] for row in found["shipped"]] == [sha256(file.read_bytes()).hexdigest() for file in files]
    assert "stages.teacher.epochs: 1 | 8" in found["differences"]
    assert shown.err == ""
    shutil.copy(quick / "report.json", tmp_path)
    assert main(["compare", str(tmp_path), str(finished)]) == 0
    assert "Not compared image by image" in " ".join(capsys.readouterr().out.split())
    rerun = Path(shutil.copytree(quick, tmp_path / "rerun"))  # and stopped before its report
    shutil.rmtree(rerun / "stages" / "shipped")
    shutil.copytree(finished / "stages" / "shipped", rerun / "stages" / "shipped")
    assert main(["compare", str(rerun), str(finished)]) == 0
    assert "newer than the report" in " ".join(capsys.readouterr().out.split())


def test_seeds_share_nothing_that_depends_on_the_seed(quick: Path, tmp_path: Path) -> None:
    pipeline = QUICK.model_copy(update={"seeds": (0, 3, 4)})
    out = Path(shutil.copytree(quick, tmp_path / "run"))  # what the first seed made is there already
    report = run(pipeline, out, device="cpu")
    assert (out / "model.onnx").read_bytes() == (quick / "model.onnx").read_bytes()
    assert report == Report.load(out)
    assert (report.seed, report.seeds) == (0, (0, 3, 4))
    each = [Report.load(folder) for folder in (quick, out / "seeds" / "3", out / "seeds" / "4")]
    assert [other.seed for other in each] == [0, 3, 4]
    assert len({other.data.fingerprint for other in each}) == 3
    assert len({other.row("teacher").sha256 for other in each}) == 3
    values = [other.row("shipped").accuracy.value for other in each]
    spread = report.over_seeds[1]
    assert spread.id == "shipped"
    assert list(spread.accuracy.values) == values
    assert spread.accuracy.mean == pytest.approx(np.mean(values))
    assert spread.accuracy.deviation == pytest.approx(np.std(values, ddof=1))
    assert spread.speedup is not None
    page = (out / "report.html").read_text()
    assert "Variation across seeds" in page
    repeated = f"{100 * np.mean(values):.2f}% ± {100 * np.std(values, ddof=1):.2f}"
    assert f"; over 3 seeds {repeated}</small>" in page
    assert f"; mean accuracy over 3 seeds {repeated}.\n" in (out / "report.md").read_text()
    assert "seeds" not in headline(each[0])
    again = Pipeline.load(out / "pipeline.yaml")
    assert again.seeds == (0, 3, 4)
    assert over_seeds(each)[1].accuracy == spread.accuracy


def test_seeds_are_checked() -> None:
    with pytest.raises(ValueError, match="a seed is listed twice"):
        Pipeline(name="x", data=QUICK.data, stages=QUICK.stages, seeds=(1, 1))
    with pytest.raises(ValueError, match="seed and seeds are both given"):
        Pipeline(name="x", data=QUICK.data, stages=QUICK.stages, seed=1, seeds=(1, 2))


def test_the_interval_of_a_stage_that_came_out_the_same(quick: Path) -> None:
    report = Report.load(quick)
    assert over_seeds([report, report])[0].accuracy.deviation == 0


def test_what_ships_may_be_timed_in_an_engine_more_than_the_others(quick: Path) -> None:
    report = Report.load(quick)
    teacher, shipped = report.rows
    elsewhere = report.model_copy(update={"rows": (teacher.model_copy(update={"latency": []}), shipped)})
    spreads = over_seeds([elsewhere, elsewhere])
    assert spreads[0].speedup is None
    assert spreads[1].speedup is not None
    assert spreads[1].speedup.deviation == 0
