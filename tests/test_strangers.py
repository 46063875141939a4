"""Folders, files and names that others made: they are data, whatever they are called and wherever they lead."""

import json
import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

from compressor import Data, Measure, Pipeline, run
from compressor.console import Console, table
from compressor.data.photograph import FORMATS, opened
from compressor.errors import DataError, UserError, printable
from compressor.models.weights import read_weights
from compressor.report.writing import WRITTEN
from compressor.runs import dry_run, layout
from compressor.runs.trackers.ml_flow import MLflow
from compressor.storage import files, tensors
from compressor.storage.checkpoints import Checkpoints
from compressor_command import main
from stages import Train

QUICK = Pipeline(
    name="quick",
    data=Data(name="digits", validation=200),
    stages=(Train(id="teacher", model="resnet", arguments={"blocks": [1], "widths": [4]}, epochs=0),),
    measure=Measure(engines=()),
)
FORGED = "cat\n\x1b[2K\rphoto.png\tdog 1.0000\x9b31m\u202e"
SAID = "cat\\n\\x1b[2K\\rphoto.png\\tdog 1.0000\\x9b31m\\u202e"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quick") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compressor.runs.runner.try_stages", lambda *_, **__: None)
        run(QUICK, out, device="cpu")
    return out


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    """A file of the user's, which nothing may change."""
    path = tmp_path / "secret"
    path.write_text("mine")
    yield path
    assert path.read_text() == "mine"


# Code


def naming(folder: Path, model: str) -> None:
    """Let the pipeline in the report of a run name this model."""
    content = json.loads((folder / "report.json").read_text())
    content["spec"] = content["spec"].replace("model: resnet", f"model: {model}")
    (folder / "report.json").write_text(json.dumps(content))


MARKER = "from pathlib import Path\nPath(__file__).with_name('imported').touch()\ndef Net(**given): raise ValueError\n"


def test_code_that_a_folder_names_is_imported_only_if_the_user_says_so(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "planted_net.py").write_text(MARKER)
    monkeypatch.chdir(copied)
    monkeypatch.setattr(sys, "path", [*sys.path])
    naming(copied, "planted_net:Net")
    for command in (
        ["report"],
        ["compare", str(copied)],
        ["reproduce"],
        ["reproduce", "--factory", "planted_net:Other"],
    ):
        main([command[0], str(copied), *command[1:]])
        assert not (copied / "imported").exists()
    assert capsys.readouterr().err.splitlines() == 2 * [
        f"error: {copied / 'report.json'} names code, planted_net:Net, which is imported only if you say so: read it, "
        "then add --factory planted_net:Net"
    ]
    for said in (["--factory", "planted_net:Net"], ["--trust-code"]):
        assert main(["reproduce", str(copied), "--out", str(copied / "again"), *said]) == 2
        assert (copied / "imported").exists()
        (copied / "imported").unlink()
        sys.modules.pop("planted_net")


def test_a_folder_starts_no_process(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    naming(copied, "subprocess:Popen")
    assert main(["reproduce", str(copied)]) == 2
    assert "names code, subprocess:Popen, which" in capsys.readouterr().err


def test_no_folder_is_searched_for_modules_where_no_network_is_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [*sys.path]
    monkeypatch.setattr(sys, "path", [*before])
    (tmp_path / "p.yaml").write_text(QUICK.to_yaml().replace("widths:", "width:"))
    assert main(["validate", str(tmp_path / "p.yaml")]) == 2
    assert "width" in capsys.readouterr().err
    assert sys.path == before


# Links


def test_a_planted_partial_file_is_not_written_through(copied: Path, secret: Path) -> None:
    for name in WRITTEN:
        (copied / f".{name}.partial").symlink_to(secret)
    assert main(["report", str(copied)]) == 0
    assert all((copied / name).read_text() for name in WRITTEN)


def test_a_linked_report_is_replaced(copied: Path, secret: Path) -> None:
    (copied / "report.md").unlink()
    (copied / "report.md").symlink_to(secret)
    assert main(["report", str(copied)]) == 0
    assert not (copied / "report.md").is_symlink()


@pytest.mark.parametrize("name", [*layout.RESULTS, layout.LOCK, "stages/teacher", "stages/teacher/model.onnx"])
def test_a_run_refuses_links_in_its_folder(copied: Path, secret: Path, tmp_path: Path, name: str) -> None:
    path = copied / name
    elsewhere = tmp_path / "elsewhere"
    if path.exists():
        path.rename(elsewhere)
    else:
        (elsewhere / "file").mkdir(parents=True)
    path.symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*")) or elsewhere.read_bytes()
    with pytest.raises(UserError, match=f"{path} is a link, a pipe or a device, or lies too deep"):
        run(QUICK, copied, device="cpu")
    assert before == (sorted(elsewhere.rglob("*")) or elsewhere.read_bytes())


def test_a_linked_folder_is_replaced_whole(tmp_path: Path) -> None:
    mine, target = tmp_path / "mine", tmp_path / "target"
    mine.mkdir()
    (mine / "file").write_text("mine")
    target.symlink_to(mine)
    for _ in range(2):
        with files.whole_folder(target) as folder:
            (folder / "file").write_text("new")
        assert not target.is_symlink()
        assert (target / "file").read_text() == "new"
    assert (mine / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "target"}


def test_what_is_swept_is_removed_and_not_what_it_links_to(tmp_path: Path, secret: Path) -> None:
    (tmp_path / ".a.0123456789abcdef.partial").symlink_to(secret)
    (tmp_path / ".b.0123456789abcdef.old").symlink_to(tmp_path / "kept")
    (tmp_path / ".c.0123456789abcdef.old").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / ".config.old").mkdir()  # the user's own
    (tmp_path / ".bashrc.partial").touch()
    files.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"secret", "kept", ".config.old", ".bashrc.partial"}
    assert (tmp_path / "kept" / "file").exists()


def test_two_writers_never_share_a_partial_name(tmp_path: Path) -> None:
    target = tmp_path / "file"
    contents = [bytes([number]) * 200_000 for number in range(8)]
    threads = [threading.Thread(target=files.write_bytes, args=(target, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_partial_file_that_exists_is_never_written_to(
    tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "foreseen")
    (tmp_path / ".file.foreseen.partial").symlink_to(secret)
    with pytest.raises(FileExistsError):
        files.write_bytes(tmp_path / "file", b"content")


# Pipes, sockets and devices


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


ENDLESS = pytest.mark.parametrize("endless", [pipe, listening, device])


@ENDLESS
def test_what_may_never_end_is_refused_as_an_argument(
    tmp_path: Path, endless: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.png"
    endless(path)
    (tmp_path / "run").mkdir()
    endless(tmp_path / "run" / "report.json")
    endless(tmp_path / "run" / "model.onnx")
    commands = [["run"], ["validate"], ["bench"], ["predict", str(path)]]
    commands = [[command[0], str(path), *command[1:]] for command in commands]
    commands += [[name, str(tmp_path / "run")] for name in ("report", "reproduce", "bench")]
    for command in commands:
        assert main(command) == 2, command
        assert "is a pipe, a socket or a device" in capsys.readouterr().err, command


@ENDLESS
def test_what_may_never_end_is_refused_as_weights(tmp_path: Path, endless: Callable[[Path], None]) -> None:
    path = tmp_path / "weights.safetensors"
    endless(path)
    with pytest.raises(UserError, match="cannot be read: it is a pipe, a socket or a device"):
        read_weights(path)
    with pytest.raises(UserError, match="is damaged"):
        tensors.read(path)


@ENDLESS
def test_what_may_never_end_is_named_in_a_folder_of_images(tmp_path: Path, endless: Callable[[Path], None]) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(8):
            Image.new("L", (8, 8), number).save(tmp_path / label / f"{number}.png")
    endless(tmp_path / "cat" / "pipe.png")
    data = Data(name="image_folder", root=tmp_path, size=(8, 8), channels=1)
    with pytest.raises(DataError, match=r"pipe.png is not a usable image: .*it is a pipe, a socket or a device"):
        data.load(0)
    loaded = data.model_copy(update={"unreadable": "skip"}).load(0)
    assert sum(len(split) for split in (loaded.train, loaded.validation, loaded.test)) == 16
    assert "pipe.png" in " ".join(loaded.notes)


@ENDLESS
def test_what_may_never_end_is_refused_in_a_runs_folder(copied: Path, endless: Callable[[Path], None]) -> None:
    for name in ("stages/teacher/row.json", "pipeline.yaml", ".tried"):
        folder = Path(shutil.copytree(copied, copied.with_name(f"with-{Path(name).name}")))
        files.remove(folder / name)
        endless(folder / name)
        with pytest.raises(UserError, match="is a link, a pipe or a device"):
            run(QUICK, folder, device="cpu")
    shutil.rmtree(copied / "stages" / "teacher")
    endless(copied / "stages" / "teacher")
    with pytest.raises(UserError, match="is a link, a pipe or a device"):
        run(QUICK, copied, device="cpu")


def test_a_file_larger_than_any_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="it holds 1,099,511,627,776 bytes, more than the 2,147,483,648 that are read"):
        files.read_bytes(tmp_path / "sparse")


def test_folders_in_folders_without_end_are_refused(copied: Path) -> None:
    (copied / "checkpoints" / "/".join("a" * 50)).mkdir(parents=True)
    with pytest.raises(UserError, match="lies too deep, in the folder of a run"):
        run(QUICK, copied, device="cpu")


def test_a_checkpoint_and_soft_labels_larger_than_they_can_be_are_not_read(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, "key")
    kept.save("training", "start", {"weight": torch.zeros(4)}, {})
    (path,) = tmp_path.iterdir()
    with path.open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="holds 1,099,511,627,776 bytes, more than it can need"):
        kept.load("training", "start", most=2**20)
    with pytest.raises(UserError, match="more than it can need"):
        tensors.read(path, 2**20)


# Formats


def test_images_are_told_by_their_content(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (8, 8), "red").save(path, format="EPS")
    with pytest.raises(DataError, match=r"photo\.png is not a usable image: it is none of AVIF, BMP, GIF, JPEG"):
        opened(path).__enter__()
    for kind in FORMATS:
        if kind == "AVIF" and "AVIF" not in Image.SAVE:
            continue
        Image.new("RGB", (8, 8), "red").save(path, format=kind)
        with opened(path) as image:
            assert image.format == kind
            assert np.asarray(image.convert("RGB")).shape == (8, 8, 3)


# Names


def test_a_name_is_printed_on_one_line_and_moves_no_cursor() -> None:
    assert printable(FORGED) == SAID
    assert printable("Käse-Spätzle 雪 ½") == "Käse-Spätzle 雪 ½"


def test_predict_prints_names_as_they_are(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / f"{FORGED}.png")
    (folder / f"broken{FORGED}.png").write_text("no image")
    monkeypatch.setattr("compressor.evaluation.prediction.reading.about", labelled)
    assert main(["predict", str(copied), str(folder), "--top", "1"]) == 2
    said = capsys.readouterr()
    assert said.out.startswith(f"{folder}/{SAID}.png\t{SAID} 0.")
    assert said.out.count("\n") == 1
    assert said.err.splitlines()[0].startswith(f"error: {folder}/broken{SAID}.png is not a usable image")
    assert len(said.err.splitlines()) == 2
    assert main(["predict", str(copied), str(folder), "--json"]) == 2
    said = capsys.readouterr()
    assert said.out.replace("\n", "").isprintable()
    assert json.loads(said.out)[0]["classes"][FORGED] >= 0


def labelled(model: Path) -> tuple[object, tuple[str, ...]]:
    """What the file of `QUICK` says of itself, with one name for all classes."""
    preprocess = QUICK.data.preprocess()
    return preprocess, (FORGED,) * 10


def test_messages_and_tables_show_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console.terminal()
    console.say(f"note: {FORGED}")
    console.say(table(["[red]id", FORGED], [["[bold]a", FORGED]]))
    said = capsys.readouterr().out
    assert said.startswith(f"note: {SAID}\n")
    assert said.replace("\n", "").isprintable()
    assert "[red]id" in said
    assert "[bold]a" in said


def test_a_pipeline_forges_no_error_of_another_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.yaml").write_text('name: p\ndata: {name: digits}\n"x\\nerror: y\\e[0m": 1\nstages: []\n')
    assert main(["validate", str(tmp_path / "p.yaml")]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 2  # the unknown key, and the stages that are missing
    assert said.replace("\n", "").isprintable()
    assert main(["report", str(tmp_path / FORGED)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/{SAID}/report.json: there is no report to read")


# What no run made


def test_a_report_is_not_written_over_what_no_run_made(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(made / "report.json", tmp_path)
    (tmp_path / "README.md").write_text("mine")
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'README.md'} was not made by a run and would be overwritten; move it elsewhere\n"
    )
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "README.md").unlink()
    for _ in range(2):  # what it wrote itself, it writes again
        assert main(["report", str(tmp_path)]) == 0
        for name in WRITTEN:
            assert (tmp_path / name).read_bytes() == (made / name).read_bytes()


@pytest.mark.parametrize("name", [".lock", ".tried", "last_good", "report.md", "checkpoints"])
def test_what_only_looks_like_a_run_is_not_written_to(tmp_path: Path, name: str) -> None:
    (tmp_path / ".lock").write_text("mine")
    (tmp_path / name).write_text("mine")
    if name == ".lock":
        (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match="was not made by an earlier run and would be overwritten"):
        run(QUICK, tmp_path, device="cpu")
    assert all(path.read_text() == "mine" for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["report.md", "report.html", "doctor.html", "README.md"])
def test_no_page_of_the_users_is_written_over(made: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(made / "report.json", tmp_path)
    (tmp_path / name).write_text("mine")
    assert main(["report", str(tmp_path)]) == 2
    assert (tmp_path / name).read_text() == "mine"


def test_a_repetition_takes_nothing_from_a_folder_that_is_there(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = Path(shutil.copytree(copied, copied.with_name("run-again")))
    assert main(["reproduce", str(copied)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {planted} exists; remove it, or go on")
    assert main(["reproduce", str(copied), "--out", str(planted)]) == 0
    assert f"{planted} exists: stages in it that fit are taken from there, and not repeated" in capsys.readouterr().out


def test_a_recorded_pipeline_says_nothing_of_where_to_write(copied: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".config.old").mkdir(parents=True)
    content = json.loads((copied / "report.json").read_text())
    content["spec"] = content["spec"].replace("tracking: []", "tracking: [mlflow, tensorboard]")
    content["spec"] = content["spec"].replace("    folder: null", f"    folder: {home}")
    assert "mlflow" in content["spec"]
    assert str(home) in content["spec"]
    (copied / "report.json").write_text(json.dumps(content))
    main(["reproduce", str(copied), "--device", "cpu"])
    again = copied.with_name("run-again")
    assert (again / "report.json").exists()
    assert not (again / "tensorboard").exists()
    assert not (again.parent / "mlflow.db").exists()
    assert [path.name for path in home.iterdir()] == [".config.old"]


def test_mlflow_does_not_write_through_a_link(tmp_path: Path, secret: Path) -> None:
    (tmp_path / "mlflow.db").symlink_to(secret)
    with pytest.raises(UserError, match=r"mlflow\.db is a link, which MLflow would write through"):
        MLflow().begin(tmp_path / "run", {"name": "p", "seed": 0, "stages": []})


def test_predictions_of_other_images_are_not_compared(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Path(shutil.copytree(copied, copied.with_name("other")))
    path = other / "stages" / "teacher" / "answers.safetensors"
    held = safetensors.numpy.load_file(path)
    for count, words in ((10, "are of other images than their reports say"), (0, "holds no predictions")):
        path.write_bytes(safetensors.numpy.save({name: each[:count].copy() for name, each in held.items()}))
        assert main(["compare", str(copied), str(other)]) == 2
        assert words in capsys.readouterr().err


def test_a_recorded_pipeline_forges_no_line(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((copied / "report.json").read_text())
    for spec in ("name: !<a%0AOK> digits\n", '"n\\nOK: yes": 1\n"n\\nOK: yes": 2\n'):
        (copied / "report.json").write_text(json.dumps({**content, "spec": spec}))
        assert main(["reproduce", str(copied)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.dry_run
def test_what_a_killed_dry_run_leaves_goes_with_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary, out = tmp_path / "temporary", tmp_path / "run"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    seen: list[Path] = []

    class Killed(BaseException):
        pass

    def killed(*given: object, **named: object) -> None:
        seen.extend(path for path in out.iterdir() if path.name.startswith(".dry-run"))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(dry_run.artifact, "load", killed)
        patch.setattr(files, "remove", lambda _: None)  # no time for it
        with pytest.raises(Killed):
            run(QUICK, out, device="cpu")
    assert [path.exists() for path in seen] == [True]
    assert list(temporary.iterdir()) == []
    run(QUICK, out, device="cpu")
    assert not any(path.name.startswith(".dry-run") for path in out.iterdir())
