"""Runs that are killed, damaged or started twice: nothing is lost, and the bits match an undisturbed run."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from compressor import Context, Measure, Pipeline, Services, TorchModel, run
from compressor.console import Console, TrainingProgress
from compressor.errors import ArtifactError, StageError, UserError
from compressor.models.artifact import WEIGHTS
from compressor.storage import tensors
from compressor.storage.checkpoints import Checkpoints
from compressor.storage.files import SEAL, damaged, seal, write_bytes
from stages import Export, Mask, Quantize, Train
from tests.conftest import TINY, accuracy, equal_states
from tests.test_runner import SHORT, TIMED, stage_runs

KILLS = 3
PIPELINE = """\
name: killed
data: {name: digits, train: 640, validation: 200, calibration: 64}
stages:
  - {stage: train, id: teacher, model: resnet, arguments: {blocks: [1], widths: [8]}, epochs: 8, batch_size: 64}
  - {stage: distill, id: student, model: resnet, arguments: {blocks: [1], widths: [8]}, teacher: teacher, epochs: 8, ema: 0.9}
  - {stage: quantize, id: int8, mode: qat, teacher: teacher, epochs: 3}
  - {stage: export, id: shipped}
measure: {engines: []}
"""
# Imports once, then runs in children that are forked and killed. There is a checkpoint after every epoch, and no dry run,
# because it leaves nothing behind and the kills should hit what is kept. An undisturbed run gets no time to be killed at.
RUNS = """
import os, random, signal, sys, time, warnings
import jinja2, matplotlib.figure, onnxscript, torch.onnx, torch._dynamo
import scipy.ndimage, scipy.stats, torchao.quantization.pt2e.observer
from sklearn import datasets, metrics, model_selection
from compressor.data import loading
from compressor.data.sources import digits
from compressor.distillation import objective
from compressor.commands import main as cli
from compressor.training import loop as fit
from compressor.runs import runner
from compressor.pipeline.stage import discover
discover()
warnings.simplefilter("ignore")
fit.CHECKPOINT_SECONDS = 0
runner.try_stages = lambda *_, **__: None

def run(out, seconds):
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(cli.main(["run", "p.yaml", "--out", out, "--device", "cpu"]))
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if seconds is not None and time.monotonic() - began > seconds:
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(ended[1]), time.monotonic() - began

code, seconds = run("alone", None)
assert code == 0, code
moments = random.Random(0)
kills = ended = 0
while kills < int(sys.argv[1]):
    code, _ = run("killed", moments.uniform(0, seconds / 3))
    kills += code == -signal.SIGKILL
    if code == 0:  # it came to its end between two kills, and the next one starts over
        ended += 1
        os.rename("killed", f"ended{ended}")
    assert code in (0, -signal.SIGKILL), code
assert run("killed", None)[0] == 0
"""


UNTIMED = Pipeline(
    name="tiny",
    data=SHORT.data,
    stages=(SHORT.stages[0], Quantize(mode="ptq"), Export(id="shipped")),
    measure=Measure(engines=()),
)


def made(out: Path) -> dict[str, bytes]:
    """The weights and ONNX files of a run."""
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.name in {WEIGHTS, "model.onnx"} and "/." not in str(p)
    }


def counts(out: Path) -> list[Any]:
    return [row["accuracy"] for row in json.loads((out / "report.json").read_text())["rows"]]


def test_a_run_killed_at_random_times_gives_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PIPELINE)
    done = subprocess.run([sys.executable, "-c", RUNS, str(KILLS)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(made(tmp_path / "alone")) == 4 + 3 + 1
    for out in [tmp_path / "killed", *tmp_path.glob("ended*")]:
        assert made(out) == made(tmp_path / "alone")
        assert counts(out) == counts(tmp_path / "alone")
        assert not [p for p in out.rglob("*") if p.name.endswith((".partial", ".old")) or "training" in p.name]


def keeping(context: Context, checkpoints: Checkpoints, console: Console | None = None) -> Context:
    """The context of a run that keeps checkpoints."""
    return Context(data=context.data, services=Services(console or Console(), checkpoints=checkpoints))


class Interrupting(Console):
    """A console in front of which someone presses Ctrl-C after so many epochs."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.left = epochs


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainingProgress.step

    def step(self: TrainingProgress) -> None:
        original(self)
        if isinstance(self.console, Interrupting):
            self.console.left -= 1
            if self.console.left < 0:
                raise KeyboardInterrupt

    monkeypatch.setattr(TrainingProgress, "step", step)
    monkeypatch.setattr("compressor.training.loop.CHECKPOINT_SECONDS", 0)


@pytest.mark.usefixtures("interrupting")
@pytest.mark.parametrize(
    "stage",
    [
        Train(model="resnet", arguments=TINY, epochs=5, warmup_epochs=2, ema=0.9, keep="best"),
        Train(model="tests.networks:Dropping", epochs=5, optimizer="adamw", schedule="one_cycle"),
        Train(model="resnet", arguments=TINY, epochs=5, momentum=0, schedule="multi_step", milestones=(1, 3)),
        Train(
            model="resnet",
            arguments=TINY,
            epochs=5,
            ema=0.9,
            warmup_epochs=1,
            learning_rates={"body": 0.01, "layer2": 0.03},
            freeze=("conv1", "layer1"),
            unfreeze=("layer1.0.bn2",),
        ),
    ],
    ids=["sgd, ema, best", "adamw, dropout", "multi_step", "partly frozen"],
)
def test_a_training_resumes_to_the_same_bits(stage: Train, context: Context, tmp_path: Path) -> None:
    alone = stage.run(None, Context(data=context.data))
    steps = -(-len(context.data.train) // stage.batch_size)
    for interrupted in (steps // 2, 2 * steps + 3, steps + 1):
        console = Interrupting(interrupted)
        with pytest.raises(KeyboardInterrupt):
            stage.run(None, keeping(context, Checkpoints(tmp_path, "key"), console))
    resumed = keeping(context, Checkpoints(tmp_path, "key"))
    assert equal_states(stage.run(None, resumed).network, alone.network)
    anew = stage.run(None, keeping(context, Checkpoints(tmp_path, "other")))
    assert equal_states(anew.network, alone.network)


@pytest.mark.usefixtures("interrupting")
def test_the_time_of_a_stage_includes_that_of_interrupted_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = UNTIMED.stages[0].model_copy(update={"epochs": 3})
    pipeline = UNTIMED.model_copy(update={"stages": (trained, UNTIMED.stages[-1])})

    def an_hour_ago(folder: Path, key: str) -> Checkpoints:
        return Checkpoints(folder, key, started=time.monotonic() - 3600)

    with monkeypatch.context() as patched:
        patched.setattr("compressor.runs.making.Checkpoints", an_hour_ago)
        with pytest.raises(KeyboardInterrupt):
            run(pipeline, tmp_path, device="cpu", console=Interrupting(25))
    report = run(pipeline, tmp_path, device="cpu")
    assert report.rows[0].seconds >= 3600 > report.rows[1].seconds


@pytest.mark.usefixtures("interrupting")
def test_a_masked_training_resumes_to_the_same_bits(context: Context, tiny: TorchModel, tmp_path: Path) -> None:
    masked = Mask(sparsity=0.6).run(tiny, context)
    stage = Train(epochs=3, learning_rate=0.01)
    checkpoints = Checkpoints(tmp_path, "key")
    with pytest.raises(KeyboardInterrupt):
        stage.run(masked, keeping(context, checkpoints, Interrupting(15)))
    assert len(list(tmp_path.iterdir())) == 1
    resumed = stage.run(masked, keeping(context, checkpoints))
    assert equal_states(resumed.network, stage.run(masked, Context(data=context.data)).network)
    assert resumed.counts.nonzero_parameters == masked.counts.nonzero_parameters


@pytest.mark.usefixtures("interrupting")
def test_a_damaged_checkpoint_is_reported_and_not_used(
    context: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Train(model="resnet", arguments=TINY, epochs=3)
    checkpoints = Checkpoints(tmp_path, "key")
    with pytest.raises(KeyboardInterrupt):
        stage.run(None, keeping(context, checkpoints, Interrupting(25)))
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    for broken in (bytes(content), bytes(content[:1000]), b""):
        write_bytes(path, broken)
        console = Console.terminal()
        resumed = stage.run(None, keeping(context, checkpoints, console))
        assert "is damaged; the training starts over" in " ".join(capsys.readouterr().out.split())
        assert equal_states(resumed.network, stage.run(None, Context(data=context.data)).network)


def test_a_network_that_needs_plain_strides_trains(context: Context) -> None:
    trained = Train(model="tests.networks:LeNet", epochs=2, batch_size=64).run(None, context)
    assert accuracy(trained, context.data) > 0.5


def test_the_last_good_weights_of_a_training_that_diverged_are_kept(context: Context, tmp_path: Path) -> None:
    stage = Train(model="tests.networks:Exploding", epochs=3, learning_rate=10)
    own = Context(
        data=context.data,
        services=Services(checkpoints=Checkpoints(tmp_path / "checkpoints" / "teacher", "key")),
    )
    with pytest.raises(StageError, match=r"the loss is (nan|inf) in epoch \d at learning rate .*last_good/teacher"):
        stage.run(None, own)
    kept = tmp_path / "last_good" / "teacher.safetensors"  # outside the checkpoints, which go when all is done
    again = Train(model="tests.networks:Exploding", epochs=0, weights=kept).run(None, own)
    assert all(torch.isfinite(tensor).all() for tensor in again.network.state_dict().values())


def test_a_training_that_diverges_in_its_last_step_is_reported(context: Context) -> None:
    stage = Train(model="tests.networks:Exploding", epochs=1, batch_size=65536, schedule="constant")
    with pytest.raises(StageError, match="a logit is not finite in epoch 1 at learning rate"):
        stage.model_copy(update={"learning_rate": 1e30}).run(None, context)  # one step, whose loss is still finite


@pytest.mark.parametrize(("old", "new"), [(b"best_epoch", b"best_epocX"), (b'"loss": ', b'"loss": 1'), (b"{", b"[")])
def test_a_damaged_note_of_a_checkpoint_starts_the_training_over(tmp_path: Path, old: bytes, new: bytes) -> None:
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save("t", "start", {"w": torch.zeros(2)}, {"best_epoch": 1, "curve": [{"loss": 0.5}]})
    assert checkpoints.load("t", "start") is not None
    (path,) = tmp_path.iterdir()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    metadata["notes"] = metadata["notes"].encode().replace(old, new).decode()
    path.write_bytes(safetensors.torch.save({"w": torch.zeros(2)}, metadata))
    with pytest.raises(ArtifactError, match="is damaged"):
        checkpoints.load("t", "start")


@pytest.mark.parametrize("seconds", ["", "nan", "inf", "-1"])
def test_a_checkpoint_without_a_time_is_refused(tmp_path: Path, seconds: str) -> None:
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save("t", "start", {"w": torch.zeros(2)}, {})
    (path,) = tmp_path.iterdir()
    weights, metadata = tensors.read(path)
    tensors.write(path, weights, metadata | {"seconds": seconds})
    with pytest.raises(ArtifactError, match=r"holds no notes or no time|says that it took"):
        checkpoints.load("t", "start")


def test_a_seal_is_over_all_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    seal(tmp_path)
    assert damaged(tmp_path) is None
    lines = (tmp_path / SEAL).read_text().splitlines(keepends=True)
    (tmp_path / SEAL).write_text(lines[0])
    assert "does not hold the files" in str(damaged(tmp_path))
    (tmp_path / SEAL).write_text("")
    assert damaged(tmp_path) is not None


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("short") / "out"
    run(UNTIMED, out, device="cpu")
    return out


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "a flipped byte":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()


@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnx", "manifest.json", "row.json", SEAL])
@pytest.mark.parametrize("how", ["a flipped byte", "truncated", "missing"])
def test_damage_to_any_file_is_noticed(name: str, how: str, short: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(short / "stages" / "quantize", tmp_path / "quantize"))
    assert damaged(folder) is None
    damage(folder / name, how)
    assert damaged(folder) is not None


@pytest.mark.parametrize(("name", "how"), [("weights.safetensors", "a flipped byte"), (SEAL, "missing")])
def test_a_damaged_artifact_is_made_again(
    name: str,
    how: str,
    short: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = Path(shutil.copytree(short, tmp_path / "out"))
    before = made(out)
    damage(out / "stages" / "quantize" / name, how)
    ran = stage_runs(monkeypatch)
    run(UNTIMED, out, device="cpu", console=Console.terminal())
    assert ran == ["quantize"]
    assert "it will be made again" in capsys.readouterr().out
    assert made(out) == before


def test_a_damaged_latency_is_measured_again(tmp_path: Path) -> None:
    first = run(TIMED, tmp_path / "out", device="cpu")
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    honest = content["rows"][0]["latency"][0]["median_ms"]
    content["rows"][0]["latency"][0]["median_ms"] = honest / 1000
    (tmp_path / "out" / "report.json").write_text(json.dumps(content))
    again = run(TIMED, tmp_path / "out", device="cpu")
    assert again.rows[0].model_dump()["latency"][0]["median_ms"] > honest / 100
    assert again.rows[1].latency != first.rows[1].latency  # rows of one report come from the same sessions
    assert [row.latency for row in run(TIMED, tmp_path / "out", device="cpu").rows] == [r.latency for r in again.rows]


def test_a_second_run_is_refused_while_the_first_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []
    original = Train.run

    def run_inside(self: Train, model: TorchModel | None, context: Context) -> TorchModel:
        if context.pipeline != "dry run":
            with pytest.raises(UserError, match="another run is working in") as caught:
                run(SHORT, tmp_path / "out", device="cpu")
            refused.append(str(caught.value))
        return original(self, model, context)

    monkeypatch.setattr(Train, "run", run_inside)
    run(SHORT, tmp_path / "out", device="cpu")
    assert len(refused) == 1
    run(SHORT.model_copy(update={"measure": Measure(engines=())}), tmp_path / "out", device="cpu")


def test_another_seed_or_other_data_runs_everything(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.runs.runner.try_stages", lambda *_, **__: None)
    for change in ({"seed": 1}, {"data": SHORT.data.model_copy(update={"validation": 150})}):
        out = Path(shutil.copytree(short, tmp_path / next(iter(change))))
        ran = stage_runs(monkeypatch)
        run(UNTIMED.model_copy(update=change), out, device="cpu")
        assert ran == ["teacher", "quantize", "shipped"]
        monkeypatch.undo()
        monkeypatch.setattr("compressor.runs.runner.try_stages", lambda *_, **__: None)
