"""Searches on real digits: what is tried, what is judged on which images, and what survives a kill."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from compressor.errors import StageError, UserError
from compressor.evaluation import Accuracy, Latency, Paired
from compressor.evaluation.accuracy import Predictions
from compressor.search import load, search
from compressor.search.early import beaten_in_latency, beaten_in_training
from compressor.search.found import Found, command_of
from compressor.search.lease import Lease
from compressor.search.outcome import Moment, Outcome, Shipped, as_fast, front, outcome_in
from compressor.search.settings import Budget, Goal, Search
from compressor.search.space import Space
from compressor.search.study import Study
from compressor_command import main
from tests.test_cli import wait_for
from tests.test_runner import stage_runs
from tests.test_tampering import Heard

ROOT = Path(__file__).parent.parent
FILE = """\
search: {goal: {max_drop: 60, confidence: 0.9}, budget: {trials: 3}, stop_early: false}
name: small
data: {name: digits, validation: 200}
stages:
  - {stage: train, id: teacher, model: resnet, arguments: {blocks: [1], widths: [8]}, epochs: 1}
  - stage: distill
    id: student
    model: resnet
    arguments: {blocks: [1], widths: {choose: [[4], [8], [12], [16]]}}
    teacher: teacher
    epochs: 1
  - {stage: export, id: shipped}
measure: {engines: [onnxruntime], devices: [cpu]}
"""
FRONT = FILE.replace("max_drop: 60, confidence: 0.9", "maximize: accuracy")


@pytest.fixture(autouse=True)
def own_machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that run at the same time do not wait for each other's timings; nor is anything tried before."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("machine")))
    monkeypatch.setattr("compressor.runs.try_stages", lambda *_, **__: None)


def found(folder: Path, text: str = FILE, *overrides: str, **options: Any) -> Found:
    path = folder / "search.yaml"
    path.write_text(text)
    settings, space = load(path, overrides)
    return search(settings, space, folder / "out", store=folder / "store", device="cpu", **options)


def space_of(folder: Path, text: str = FILE) -> tuple[Search, Space]:
    path = folder / "search.yaml"
    path.write_text(text)
    return load(path)


def outcome(
    number: int,
    *,
    share: float = 0.5,
    correct: int = 90,
    lost: int = 5,
    curve: tuple[float, ...] = (),
    state: Any = "complete",
) -> Outcome:
    """A trial that takes `share` of the reference's time, with `correct` of 100 images."""
    moments = tuple(Moment(share=(i + 1) / len(curve), accuracy=each) for i, each in enumerate(curve))
    latency = Latency(
        engine="onnxruntime",
        device="cpu",
        threads=1,
        batch=1,
        median_ms=share,
        p95_ms=share,
        runs=100,
        speedup=1 / share,
        speedup_low=1 / share,
        speedup_high=1 / share,
        warmup_runs=1,
        steady=True,
        other_load=0.0,
    )
    shipped = Shipped(
        accuracy=Accuracy.of(correct, 100, split="validation"),
        baseline=Accuracy.of(95, 100, split="validation"),
        versus_baseline=Paired.of(lost, 0, 100),
        latency=latency,
        parameters=1,
        macs=1,
        size_bytes=1,
    )
    return Outcome(
        number=number,
        values={},
        state=state,
        shipped=shipped if state == "complete" else None,
        expected_share=share,
        curves={"student": moments},
        seconds=1.0,
    )


# What a trial is worth


@pytest.mark.parametrize(("lost", "won", "total", "confidence"), [(8, 3, 400, 0.95), (0, 0, 50, 0.9), (2, 9, 100, 0.5)])
def test_the_points_that_are_lost_at_most(lost: int, won: int, total: int, confidence: float) -> None:
    """Bonett and Price (2012), one-sided: by hand from the counts with one image added to each."""
    p_lost, p_won, n = (lost + 1) / (total + 2), (won + 1) / (total + 2), total + 2
    deviation = math.sqrt((p_lost + p_won - (p_lost - p_won) ** 2) / n)
    expected = (p_lost - p_won) + NormalDist().inv_cdf(confidence) * deviation
    assert -Paired.of(lost, won, total).at_least(confidence) == pytest.approx(expected)


def test_the_front_and_the_contract() -> None:
    outcomes = [
        outcome(0, share=0.5, correct=90, lost=5),
        outcome(1, share=0.4, correct=80, lost=15),
        outcome(2, share=0.6, correct=89, lost=6),  # slower and worse than 0
        outcome(3, share=0.3, correct=95, state="stopped"),
        outcome(4, share=0.7, correct=94, lost=1),
        outcome(5, share=0.7, correct=94, lost=1),  # the same
    ]
    assert [each.number for each in front(outcomes)] == [1, 0, 4]
    goal = Goal(max_drop=12, confidence=0.95)
    assert outcomes[0].shipped is not None
    assert outcomes[0].shipped.drop(0.95) < 12 < outcomes[1].shipped.drop(0.95)  # type: ignore[union-attr]
    assert [each.number for each in as_fast(goal, outcomes)] == [0]  # 2 is 1.2 times as slow
    assert [each.number for each in as_fast(Goal(max_drop=30), outcomes)] == [1]
    ties = [outcome(n, share=0.5 + 0.001 * n, lost=20 - n) for n in range(10)]
    assert [each.number for each in as_fast(Goal(max_drop=50), ties)] == [0, 5, 6, 7, 8, 9]


def test_a_trial_that_is_too_slow_for_the_contract_cannot_win() -> None:
    goal, rivals = Goal(max_drop=12), [outcome(0, share=0.5), outcome(1, share=0.2, lost=40)]
    assert beaten_in_latency(0.52, goal, rivals) is None  # not by more than the noise of an expectation
    why = beaten_in_latency(0.6, goal, rivals)
    assert why == "trial 0 keeps the contract, and is 1.20x faster"
    assert beaten_in_latency(0.4, goal, rivals) is None  # trial 1 is faster, but loses too much
    assert beaten_in_latency(9.0, Goal(maximize="accuracy"), rivals) is None


@pytest.mark.parametrize(
    ("share", "accuracy", "expected", "stopped"),
    [
        (0.5, 0.6, 0.6, True),  # slower, and 20 points below
        (0.5, 0.6, 0.4, False),  # faster: it may be on the front
        (0.5, 0.76, 0.6, False),  # two deviations are 5.7 points here
        (0.5, 0.73, 0.6, True),
        (0.2, 0.1, 0.6, False),  # too early to say
        (1.0, 0.73, 0.6, True),
    ],
)
def test_a_trial_that_learns_worse_and_is_slower_cannot_win(
    share: float, accuracy: float, expected: float, stopped: bool
) -> None:
    rivals = [outcome(3, share=0.5, curve=(0.5, 0.8, 0.81, 0.82)), outcome(4, share=0.1, state="stopped", curve=(0.9,))]
    why = beaten_in_training("student", Moment(share=share, accuracy=accuracy), expected, 400, rivals)
    assert (why is not None) == stopped
    assert why is None or why.startswith("trial 3 is no slower, and had 8")
    assert beaten_in_training("another", Moment(share=share, accuracy=0.0), expected, 400, rivals) is None


# Who has the machine


def test_who_times_waits_for_those_who_train_and_is_not_disturbed(tmp_path: Path) -> None:
    events, training, leave = list[str](), threading.Event(), threading.Event()

    def train() -> None:
        lease = Lease(tmp_path)
        with lease.training():
            training.set()
            leave.wait(20)
            events.append("epoch")
            lease.give_way()
            events.append("next epoch")

    def time_alone() -> None:
        lease = Lease(tmp_path)
        with lease.timing():
            events.append("timing")
            time.sleep(0.3)
            events.append("timed")

    trains, times = threading.Thread(target=train), threading.Thread(target=time_alone)
    trains.start()
    training.wait(20)
    times.start()
    time.sleep(0.5)
    assert events == []  # it waits
    leave.set()
    trains.join(20)
    times.join(20)
    assert events == ["epoch", "timing", "timed", "next epoch"]


def test_several_may_train(tmp_path: Path) -> None:
    with Lease(tmp_path).training():
        entered = threading.Event()

        def train() -> None:
            with Lease(tmp_path).training():
                entered.set()

        other = threading.Thread(target=train)
        other.start()
        assert entered.wait(20)
        other.join(20)


def test_who_is_interrupted_in_giving_way_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(tmp_path)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with contextlib.ExitStack() as training:
        training.enter_context(lease.training())
        monkeypatch.setattr(lease, "_enter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lease.give_way()
    with Lease(tmp_path).timing():
        pass


# What is tried


def draws(folder: Path, settings: Search, space: Space, count: int) -> list[dict[str, Any]]:
    """The values of so many trials, the first of which are the slower the more channels they have."""
    folder.mkdir(exist_ok=True)
    study = Study(folder, settings, space)
    for _ in range(count):
        number = study.begin()
        assert number is not None
        width = study.begun[number]["stages.student.arguments.widths"][0]
        study.end(outcome(number, share=width / 20, lost=0).model_copy(update={"values": study.begun[number]}))
    return list(study.begun.values())


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
@pytest.mark.parametrize("text", [FILE, FRONT], ids=["contract", "front"])
def test_no_pipeline_is_tried_twice_and_the_end_of_a_small_space_is_found(
    tmp_path: Path, sampler: str, text: str
) -> None:
    settings, space = space_of(tmp_path, text.replace("budget:", f"sampler: {sampler}, budget:"))
    tried = draws(tmp_path / "study", settings, space, 4)
    assert sorted(each["stages.student.arguments.widths"][0] for each in tried) == [4, 8, 12, 16]
    assert Study(tmp_path / "study", settings, space).begin() is None


def test_a_later_process_goes_on_as_one_process_would(tmp_path: Path) -> None:
    text = FILE.replace("epochs: 1\n  - {stage: export", "epochs: {low: 1, high: 1000}\n  - {stage: export")
    settings, space = space_of(tmp_path, text)
    whole = draws(tmp_path / "whole", settings, space, 14)
    for _ in range(7):
        draws(tmp_path / "parts", settings, space, 2)
    assert list(Study(tmp_path / "parts", settings, space).begun.values()) == whole


def test_what_a_killed_process_left_is_taken_up(tmp_path: Path) -> None:
    settings, space = space_of(tmp_path)
    study = Study(tmp_path, settings, space)
    assert (study.begin(), study.begin()) == (0, 1)
    study.end(outcome(0))
    study.spend(7.5)
    study._study.ask()  # killed before its values were noted
    later = Study(tmp_path, settings, space)
    assert (later.unfinished, later.seconds, later.begin()) == ([1], 7.5, 2)
    later.end(outcome(1))
    later.end(outcome(1))  # told twice by two processes
    assert later.unfinished == [2]


def test_a_folder_holds_one_search(tmp_path: Path) -> None:
    settings, space = space_of(tmp_path)
    Study(tmp_path, settings, space)
    Study(tmp_path, settings.model_copy(update={"budget": Budget(hours=1)}), space)  # may go on for longer
    with pytest.raises(UserError, match="holds another search"):
        Study(tmp_path, settings.model_copy(update={"seed": 1}), space)
    with pytest.raises(UserError, match="holds another search"):
        Study(tmp_path, *space_of(tmp_path, FILE.replace("[4], [8]", "[8]")))


# Searches


def test_a_search_looks_at_the_test_images_once_for_the_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, scored, original = stage_runs(monkeypatch), list[int](), Predictions.of

    def spy(model: Path, split: Any, preprocess: Any) -> Predictions:
        scored.append(len(split))
        return original(model, split, preprocess)

    monkeypatch.setattr(Predictions, "of", spy)
    console = Heard()
    result = found(tmp_path, console=console)
    assert [each.state for each in result.outcomes] == ["complete"] * 3
    assert ran.count("teacher") == 1
    assert (ran.count("student"), ran.count("shipped")) == (3, 3)  # the winner's come from the store
    test = scored.index(359)
    assert set(scored[:test]) == {200}
    assert set(scored[test:]) == {359}
    assert result.winner == result.judged[0].number
    assert result.judged[0].as_tried
    for each in result.outcomes:
        assert each.shipped is not None
        assert (each.shipped.accuracy.total, each.shipped.accuracy.split) == (200, "validation")
    assert result.judged[0].accuracy.total == 359
    slowest_that_ties = result.best[0].latency.speedup_low
    as_quick = [each.number for each in result.best if each.latency.speedup_high >= slowest_that_ties]
    drops = {each.number: each.shipped.drop(0.9) for each in result.outcomes if each.shipped}
    assert drops[result.winner] == min(drops[number] for number in as_quick)  # type: ignore[index]
    out = tmp_path / "out"
    assert json.loads((out / "search.json").read_text())["winner"] == result.winner
    page = (out / "search.html").read_text()
    for trial in (out / "trials" / str(number) for number in range(3)):
        assert f"compress run {trial / 'pipeline.yaml'} --out {trial / 'run'} --store {tmp_path / 'store'}" in page
    named = command_of(result, out, 0, ["/own networks", "/own networks", "/here"])
    assert named.startswith("PYTHONPATH='/own networks':/here${PYTHONPATH:+:$PYTHONPATH} compress run ")
    assert (out / "winner" / "model.onnx").is_file()
    again = found(tmp_path, FILE, "search.budget.trials=4")  # goes on
    assert [each.number for each in again.outcomes] == [0, 1, 2, 3]
    assert ran.count("student") == 4
    assert again.outcomes[:3] == result.outcomes


def test_the_front_is_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("search.yaml").write_text(FRONT)
    assert main(["search", "search.yaml", "--device", "cpu", "--set", "search.budget.trials=2"]) == 0
    said = capsys.readouterr().out
    assert "on the front: " in said
    assert "runs/small/search.html shows every trial" in said
    result = Found.model_validate_json(Path("runs/small/search.json").read_text())
    assert (result.winner, result.judged) == (None, ())
    accuracies = [outcome.accuracy for each in result.best if (outcome := result.outcome(each.number))]
    assert accuracies == sorted(accuracies)  # type: ignore[type-var]
    assert not Path("runs/small/winner").exists()
    command = ["run", "runs/small/trials/0/pipeline.yaml", "--device", "cpu"]
    assert main(command) == 2  # in the place of the search
    assert "runs/small is the folder of a search" in capsys.readouterr().err
    assert main([*command, "--out", "runs/small/trials/0/run"]) == 0
    assert "student (distill): taken from the store" in capsys.readouterr().out


def test_a_winner_that_comes_back_is_what_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    winners = iter([0, 1, 0])
    monkeypatch.setattr("compressor.search.searching.as_fast", lambda _, outcomes: list(outcomes))
    monkeypatch.setattr("compressor.search.searching._fastest", lambda *_: next(winners))
    for trials in (2, 3, 4):
        result = found(tmp_path, FILE, f"search.budget.trials={trials}")
        shipped = (tmp_path / "out" / "winner" / "model.onnx").read_bytes()
        assert shipped == (tmp_path / "out" / "trials" / str(result.winner) / "model.onnx").read_bytes()
    assert sorted(each.number for each in result.judged) == [0, 1]


def test_a_trial_whose_process_dies_again_and_again_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object) -> None:
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr("compressor.search.trial.completed", dies)
        for _ in range(4):
            with pytest.raises(SystemExit):
                found(tmp_path)
    result = found(tmp_path)
    assert result.outcomes[0].state == "failed"
    assert result.outcomes[0].reason.startswith("its process died 4 times")
    assert [each.state for each in result.outcomes[1:]] == ["complete", "complete"]


def test_a_trial_that_fails_says_why_and_the_search_goes_on(tmp_path: Path) -> None:
    text = FILE.replace("[[4], [8], [12], [16]]", "[[4], [8, 8]]").replace("trials: 3", "trials: 2")
    result = found(tmp_path, text)
    reasons = {each.state: each.reason for each in result.outcomes}
    assert reasons["complete"] == ""
    assert reasons["failed"].startswith("stage 'student': model 'resnet' with arguments")


def test_a_search_without_a_trial_that_works_fails(tmp_path: Path) -> None:
    text = FILE.replace("[[4], [8], [12], [16]]", "[[4, 4], [8, 8]]")
    with pytest.raises(StageError, match="no trial was completed: stage 'student'"):
        found(tmp_path, text)


def test_a_trial_that_cannot_win_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its expected latency, before it trains; the teacher is the slowest of networks here, and keeps any contract."""
    ran = stage_runs(monkeypatch)
    text = FILE.replace("stop_early: false", "seed: 3").replace("[[4], [8], [12], [16]]", "[[4], [512]]")
    result = found(tmp_path, text.replace("trials: 3", "trials: 2"))
    small, large = sorted(result.outcomes, key=lambda each: each.values["stages.student.arguments.widths"])
    assert small.state == "complete"
    if large.number == 1:
        assert (large.state, ran.count("student")) == ("stopped", 1)
        assert large.reason.startswith("trial 0 keeps the contract, and is ")
    else:
        pytest.fail("choose a seed that tries the small network first")


def test_a_search_that_is_killed_goes_on(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(FRONT)
    command = ["search", "search.yaml", "--out", "out", "--store", "store", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "compressor", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(process, "trial 0")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    first, console = outcome_in(tmp_path / "out" / "trials" / "0"), Heard()
    assert first is not None
    result = found(tmp_path, FRONT, console=console)
    assert "  1 of its trials done; the search goes on" in console.said
    assert [each.number for each in result.outcomes] == [0, 1, 2]
    assert result.outcomes[0] == first
    assert len({str(each.values) for each in result.outcomes}) == 3


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds something else than a search"):
        found(tmp_path)
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [(["--on", "moon"], "trials cannot run on 'moon'"), (["--set", "search.goal.max_drop=-1"], "expected at least 0")],
)
def test_wrong_input_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("search.yaml").write_text(FILE)
    assert main(["search", "search.yaml", *arguments]) == 2
    assert problem in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize("validation", ["200", "null"])
def test_a_contract_that_equal_predictions_would_not_keep_is_warned_of_once(tmp_path: Path, validation: str) -> None:
    images = 200 if validation == "200" else 143  # a tenth of 1,438
    console = Heard()
    settings = ("search.goal.max_drop=0.01", "search.budget.trials=2", f"data.validation={validation}")
    found(tmp_path, FILE, *settings, console=console)
    warnings = [said for said in console.said if "warning" in said]
    assert len(warnings) == 1
    assert f"on {images} validation images, a network with the very predictions of its baseline loses" in warnings[0]
