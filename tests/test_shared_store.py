"""Runs share what they finish: nothing is made twice, whatever the pipeline, the folder or the process."""

import errno
import json
import os
import secrets
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from compressor import Data, Measure, Pipeline, TorchModel, load, run
from compressor.distillation.settings import Cache
from compressor.errors import UserError
from compressor.export import onnx_file
from compressor.report.report import Report
from compressor.runs.shared import SharedStore
from compressor.storage import files
from compressor_command import main
from stages import Distill, Export, Quantize, Train
from tests.conftest import STUDENT
from tests.test_cli import started, wait_for
from tests.test_runner import stage_runs
from tests.test_tampering import Heard

TEACHER = Train(id="teacher", model="resnet", arguments={"blocks": [1], "widths": [4]}, epochs=1)
STUDENT_STAGE = Distill(
    id="student", model="resnet", arguments=STUDENT, teacher="teacher", epochs=2, cache=Cache(views=2)
)
PIPELINE = Pipeline(
    name="first",
    data=Data(name="digits", validation=200, calibration=128),
    stages=(TEACHER, STUDENT_STAGE, Export(id="shipped")),
    measure=Measure(engines=()),
)
SHORT = PIPELINE.model_copy(update={"stages": (TEACHER, Export(id="shipped"))})
OTHER = PIPELINE.model_copy(
    update={"name": "other", "stages": (TEACHER, STUDENT_STAGE, Quantize(id="int8", mode="ptq"), Export(id="shipped"))}
)


@pytest.fixture
def store(tmp_path: Path) -> SharedStore:
    return SharedStore(tmp_path / "store")


def stage_folders(store: SharedStore) -> list[Path]:
    return sorted(path for path in (store.folder / "stages").iterdir())


def test_another_pipeline_repeats_nothing(store: SharedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(PIPELINE, tmp_path / "first", device="cpu", store=store.folder)
    ran, exported, original = stage_runs(monkeypatch), list[str](), onnx_file.export_onnx

    def export(network: Any, preprocess: Any, metadata: dict[str, str], *rest: Any, **more: Any) -> bytes:
        exported.append(metadata["compressor.pipeline"])
        return original(network, preprocess, metadata, *rest, **more)

    monkeypatch.setattr(onnx_file, "export_onnx", export)
    console = Heard()
    other = run(OTHER, tmp_path / "other", device="cpu", store=store.folder, console=console)
    assert ran == ["int8", "shipped"]
    assert exported.count(OTHER.digest) == 1  # of int8
    assert "[1/4] teacher (train): taken from the store" in console.said
    assert "[2/4] student (distill): taken from the store" in console.said
    for before, after in zip(first.rows[:2], other.rows[:2], strict=True):
        assert (before.accuracy, before.seconds, before.key) == (after.accuracy, after.seconds, after.key)
        folder = tmp_path / "other" / after.artifact  # its file names the pipeline that it ships from
        taken = load(folder)
        assert isinstance(taken, TorchModel)
        assert (folder / "model.onnx").read_bytes() == taken.to_onnx(OTHER.digest).content


def test_what_a_pipeline_calls_it_does_not_matter(
    store: SharedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = stage_runs(monkeypatch)
    for name in ("teacher", "large"):
        stages = (TEACHER.model_copy(update={"id": name}), Export(id="shipped"))
        run(SHORT.model_copy(update={"stages": stages}), tmp_path / name, device="cpu", store=store.folder)
        report = Report.load(tmp_path / name)
        assert (report.rows[0].id, report.rows[0].artifact) == (name, f"stages/{name}")
        assert files.damaged(tmp_path / name / "stages" / name) is None
    assert "large" not in ran


def test_what_would_come_out_otherwise_is_made(
    store: SharedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(SHORT, tmp_path / "first", device="cpu", store=store.folder)
    ran = stage_runs(monkeypatch)
    run(SHORT.model_copy(update={"seed": 1}), tmp_path / "seed", device="cpu", store=store.folder)
    assert ran == ["teacher", "shipped"]
    run(SHORT, tmp_path / "fresh", device="cpu", store=store.folder, fresh=True)
    assert ran[2:] == ["teacher", "shipped"]
    run(SHORT, tmp_path / "alone", device="cpu", store=None)
    assert ran[4:] == ["teacher", "shipped"]
    run(SHORT, tmp_path / "again", device="cpu", store=store.folder)
    assert len(ran) == 6


def test_teachers_outputs_are_shared(store: SharedStore, tmp_path: Path) -> None:
    run(PIPELINE, tmp_path / "first", device="cpu", store=store.folder)
    assert len(list(store.soft_labels.iterdir())) == 2
    assert not (tmp_path / "first" / "soft_labels").exists()
    longer = STUDENT_STAGE.model_copy(update={"learning_rate": 0.03})
    changed = PIPELINE.model_copy(update={"stages": (TEACHER, longer, Export(id="shipped"))})
    console = Heard()
    run(changed, tmp_path / "second", device="cpu", store=store.folder, console=console)
    assert "  2 of 2 views of the teacher's outputs are reused" in console.said


@pytest.mark.parametrize("how", ["changed", "cut short", "a file more", "no row", "another version", "a link"])
def test_a_damaged_entry_is_noticed(
    how: str, store: SharedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(SHORT, tmp_path / "first", device="cpu", store=store.folder)
    weights = (tmp_path / "first" / "stages" / "teacher" / "weights.safetensors").read_bytes()
    entry = next(each for each in store.entries() if each.row is not None and each.row.id == "teacher").path
    match how:
        case "changed":
            files.write_bytes(entry / "weights.safetensors", weights[:-1] + bytes([weights[-1] ^ 1]))
        case "cut short":
            files.write_bytes(entry / "weights.safetensors", weights[:-1])
        case "a file more":
            (entry / "thesis.txt").write_text("years")
        case "no row":
            (entry / "row.json").unlink()
        case "another version":
            files.write_text(entry / "row.json", "{}")
            files.seal(entry)
        case "a link":
            (entry / "weights.safetensors").unlink()
            (entry / "weights.safetensors").symlink_to("/etc/passwd")
    ran, console = stage_runs(monkeypatch), Heard()
    run(SHORT, tmp_path / "second", device="cpu", store=store.folder, console=console)
    assert ran == ["teacher"]
    (said,) = (line for line in console.said if "removed from the store" in line)
    assert str(entry) in said
    assert files.damaged(entry) is None
    assert (tmp_path / "second" / "stages" / "teacher" / "weights.safetensors").read_bytes() == weights
    load(tmp_path / "first" / "stages" / "teacher")  # the other run's copy is as it was


def test_what_was_not_used_for_longest_makes_room(store: SharedStore, tmp_path: Path) -> None:
    run(PIPELINE, tmp_path / "first", device="cpu", store=store.folder)
    for age, entry in enumerate(store.entries()):
        seal = entry.path if entry.is_view else entry.path / files.SEAL
        os.utime(seal, (1000.0 + age, 1000.0 + age))
    oldest, *others = store.entries()
    total = sum(entry.size_bytes for entry in (oldest, *others))
    assert store.make_room(total) == []
    assert store.make_room(total - 1) == [oldest]
    assert [entry.path for entry in store.entries()] == [entry.path for entry in others]
    assert [entry.path for entry in store.make_room(0, used_before=1002.0)] == [others[0].path]  # of 1001
    assert [entry.path for entry in store.make_room(float("inf"), unused_since=1003.0)] == [others[1].path]
    assert [entry.path for entry in store.entries()] == [entry.path for entry in others[2:]]
    load(tmp_path / "first" / "stages" / "teacher")  # runs keep what they use


def test_keeping_a_stage_makes_room_but_takes_nothing_that_was_just_used(store: SharedStore, tmp_path: Path) -> None:
    run(SHORT, tmp_path / "first", device="cpu", store=store.folder)
    small, key = SharedStore(store.folder, limit_bytes=1), "d" * 64
    old, recent = store.entries()
    os.utime(old.path / files.SEAL, (1000.0, 1000.0))
    small.keep(key, tmp_path / "first" / "stages" / "teacher", print)
    assert {entry.key for entry in small.entries()} == {recent.key, key}


def test_what_a_killed_run_left_goes_a_day_later(store: SharedStore) -> None:
    store.prepare()
    left = [store.folder / part / f".{'e' * 64}.{'0' * 16}.partial" for part in ("stages", "soft_labels")]
    left[0].mkdir()
    left[1].write_text("half")
    store.make_room(0)
    assert all(path.exists() for path in left)
    for path in left:
        os.utime(path, (1000.0, 1000.0))
    store.make_room(0)
    assert not any(path.exists() for path in left)


def test_room_is_made_while_others_write(store: SharedStore) -> None:
    store.prepare()
    ends = time.monotonic() + 1

    def write() -> None:
        while time.monotonic() < ends:
            files.write_text(store.soft_labels / f"{secrets.token_hex(32)}.safetensors", "view")

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    removed = 0
    while time.monotonic() < ends:
        removed += len(store.make_room(0))
    for thread in threads:
        thread.join()
    assert removed + len(store.entries()) > 0
    store.make_room(0)
    assert list(store.soft_labels.iterdir()) == []


def test_strangers_files_are_left_alone(store: SharedStore) -> None:
    store.prepare()
    (store.folder / "stages" / "mine").mkdir()
    (store.folder / "soft_labels" / "mine.safetensors").write_text("mine")
    (store.folder / "stages" / ("a" * 64)).mkdir()  # no seal
    store.make_room(0, unused_since=time.time() + 60)
    assert len(stage_folders(store)) == 2
    assert (store.folder / "soft_labels" / "mine.safetensors").exists()


def test_one_makes_it_and_the_others_wait(store: SharedStore) -> None:
    store.prepare()
    console, order = Heard(), []
    key = "b" * 64

    def wait() -> None:
        with store.making(key, console.say):
            order.append("second")

    with store.making(key, console.say):
        thread = threading.Thread(target=wait)
        thread.start()
        ends = time.monotonic() + 60
        while not console.said and time.monotonic() < ends:
            time.sleep(0.01)
        order.append("first")
        with store.making("c" * 64, console.say):  # another stage goes on meanwhile
            order.append("other")
    thread.join()
    assert order == ["first", "other", "second"]
    (said,) = console.said
    assert said.startswith("  another run is making the same; waiting for it (")


LONG = """\
name: {name}
data: {{name: digits}}
stages:
  - {{stage: train, id: teacher, model: resnet8, epochs: 1000}}
  - {{stage: export, id: shipped}}
measure: {{engines: []}}
"""


def test_a_run_waits_for_another_process_and_goes_on_if_that_is_killed(tmp_path: Path) -> None:
    first = started(tmp_path, LONG.format(name="first"), until="epoch 1/")
    second = started(tmp_path, LONG.format(name="second"), until="waiting for it")
    first.kill()
    wait_for(second, "epoch 1/")
    second.kill()
    for process in (first, second):
        process.communicate()


def test_a_store_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the store .*file cannot be used"):
        run(PIPELINE, tmp_path / "out", store=tmp_path / "file")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "stages").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"stages is a link; remove it, or choose another --store"):
        run(PIPELINE, tmp_path / "out", store=tmp_path / "linked")


def test_a_store_that_may_not_be_written_is_named(
    store: SharedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match=r"may not be written; choose another --store, or --no-store"):
        run(SHORT, tmp_path / "out", store=store.folder)


def test_a_stage_that_cannot_be_kept_is_done_all_the_same(
    store: SharedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr("compressor.runs.shared.files.link", full)
    console = Heard()
    run(SHORT, tmp_path / "out", device="cpu", store=store.folder, console=console)
    assert sum("the store cannot keep it: [Errno 28] No space left on device" in line for line in console.said) == 2
    assert store.entries() == []
    assert list((store.folder / "stages").iterdir()) == []
    monkeypatch.undo()
    run(SHORT, tmp_path / "out", device="cpu", store=store.folder)  # what a run has finished is kept later, too
    assert len(store.entries()) == 2


def test_a_run_is_no_store_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"cannot be both the run's folder and the store"):
        run(SHORT, tmp_path / "out", store=tmp_path / "other" / ".." / "out")
    run(SHORT, tmp_path / "run", device="cpu")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    for command in (["list"], ["prune", "--gigabytes", "0"]):
        assert main(["store", *command, "--store", str(tmp_path / "run")]) == 2
        assert "there is no store" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def test_a_link_in_the_place_of_a_lock_is_not_followed(store: SharedStore, tmp_path: Path) -> None:
    store.prepare()
    (tmp_path / "thesis.txt").write_text("years")
    (store.folder / "locks" / "room.lock").symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(UserError, match=r"room.lock is a link"):
        store.make_room(0)
    assert (tmp_path / "thesis.txt").read_text() == "years"


def test_fresh_outputs_of_teachers_are_computed(store: SharedStore, tmp_path: Path) -> None:
    run(PIPELINE, tmp_path / "first", device="cpu", store=store.folder)
    console = Heard()
    run(PIPELINE, tmp_path / "first", device="cpu", store=store.folder, fresh=True, console=console)
    assert not any("views of the teacher's outputs are reused" in line for line in console.said)


def test_the_command_shares_runs_in_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COMPRESS_STORE")
    (tmp_path / "short.yaml").write_text(SHORT.to_yaml())
    assert main(["run", "short.yaml", "--quiet", "--no-store"]) == 0
    assert not (tmp_path / "runs" / ".store").exists()
    assert main(["run", "short.yaml", "--quiet"]) == 0
    assert len(SharedStore(tmp_path / "runs" / ".store").entries()) == 2
    said = Heard()
    run(SHORT, "runs/third", device="cpu", store="runs/.store", console=said)
    assert "[1/2] teacher (train): taken from the store" in said.said


def test_commands(
    store: SharedStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run(PIPELINE, tmp_path / "first", device="cpu", store=store.folder)
    where = ["--store", str(store.folder)]
    capsys.readouterr()
    assert main(["store", "list", *where]) == 0
    shown = capsys.readouterr().out
    teacher = next(each for each in store.entries() if each.row is not None and each.row.id == "teacher")
    assert teacher.row is not None
    assert f"{teacher.key[:12]}" in shown
    assert f"{teacher.row.accuracy.value:.2%} test" in shown
    assert f"3 stages, {sum(e.size_bytes for e in store.entries() if not e.is_view) / 1e6:.1f} MB; 2 views" in shown
    assert main(["store", "list", *where, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {each["kind"] for each in listed} == {"stage", "teacher's outputs"}
    shown_teacher = next(each for each in listed if each.get("id") == "teacher")
    assert (shown_teacher["key"], shown_teacher["split"]) == (teacher.key, "test")
    assert main(["store", "prune", *where, "--days", "1"]) == 0
    assert "0 removed" in capsys.readouterr().out
    assert main(["store", "prune", *where, "--gigabytes", "0"]) == 0
    assert "5 removed" in capsys.readouterr().out
    assert store.entries() == []
    for wrong, words in (
        (["prune", *where], "say what may stay"),
        (["list", "--store", "nowhere"], "no store nowhere"),
    ):
        assert main(["store", *wrong]) == 2
        assert words in capsys.readouterr().err


def test_what_a_folder_has_is_kept_under_the_stages_lock(
    store: SharedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(PIPELINE, tmp_path, device="cpu")
    kept = SharedStore.keep
    tried: list[str] = []

    def keep(self: SharedStore, key: str, made: Path, say: Any) -> None:
        with pytest.raises(Timeout):
            FileLock(self.folder / "locks" / f"{key}.lock").acquire(timeout=0)
        tried.append(key)
        kept(self, key, made, say)

    monkeypatch.setattr(SharedStore, "keep", keep)
    report = run(PIPELINE, tmp_path, device="cpu", store=store.folder)
    assert len(tried) == len(PIPELINE.stages)
    files.remove(store.folder / "stages")
    key = report.rows[0].key
    of_another_run = FileLock(store.folder / "locks" / f"{key}.lock")  # which makes the same, and is not waited for
    with of_another_run:
        run(PIPELINE, tmp_path, device="cpu", store=store.folder)
    assert not store.holds(key)
    assert len(tried) == 2 * len(PIPELINE.stages) - 1
