"""Latency from made-up times; real timings are never asserted."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from compressor.errors import ArtifactError
from compressor.evaluation.engines.base import Subject, clocked
from compressor.evaluation.latency import Latency, in_sessions, latency_of, speedup_of
from compressor.evaluation.pair import Pair
from compressor.evaluation.recording import MIN_TURNS, OtherLoad, Recording, compare, warm_up
from compressor.evaluation.setting import Setting
from compressor.export import onnx_file
from compressor.report.wording import speed


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.evaluation.recording.MIN_SECONDS", 0.4)
    monkeypatch.setattr("compressor.evaluation.recording.MAX_WARMUP_SECONDS", 3.0)


CPU = Setting(engine="onnxruntime", device="cpu", threads=1, batch=2)


def test_runs_alternate_until_both_have_enough() -> None:
    calls: list[str] = []

    def run(name: str) -> Callable[[], float]:
        return lambda: clocked(lambda: (calls.append(name), time.sleep(0.005)))

    threads = torch.get_num_threads()
    recording = compare(run("a"), run("b"), CPU)
    warmup, timed_runs = calls[: 2 * recording.warmup_runs], calls[2 * recording.warmup_runs :]
    assert warmup == ["a", "b"] * recording.warmup_runs
    assert timed_runs == ["a", "b", "b", "a"] * len(recording.seconds)
    assert len(recording.seconds) >= MIN_TURNS
    assert recording.seconds.min() >= 0.005
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("seconds", "expected"), [(0.25, 40), (2**-10, 410)])
def test_turns_go_on_until_the_faster_has_had_its_time(seconds: float, expected: int) -> None:
    assert compare(lambda: seconds, lambda: 2 * seconds, CPU).seconds[:, 0].size == expected


def test_the_two_take_turns_at_being_opened_first(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Opened:
        on_cpu = ()

        def __init__(self, subject: Subject) -> None:
            opened.append(subject.onnx.stem)
            self.seconds = {"small": lambda: 0.25, "large": lambda: 1.0}[subject.onnx.stem]

    class Engine:
        def open(self, subject: Subject, setting: Setting) -> Opened:
            return Opened(subject)

    monkeypatch.setattr("compressor.evaluation.pair.engine_of", lambda name: Engine())
    pair = Pair(Subject(Path("small.onnx")), Subject(Path("large.onnx")), CPU)
    assert [pair().seconds[0, :, 0].tolist() for _ in range(3)] == [[0.25, 1.0]] * 3
    assert opened == ["small", "large", "large", "small", "small", "large"]


def test_warm_up_continues_until_times_are_steady() -> None:
    slow_start = itertools.chain([9.0] * 10, [5.0] * 10, itertools.repeat(1.0))
    assert warm_up(lambda: next(slow_start), lambda: 1.0) == (40, True)


def test_times_that_never_settle_are_reported_as_unsteady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.evaluation.recording.MAX_WARMUP_SECONDS", 0.0)
    growing = (1.1**index for index in itertools.count())
    assert warm_up(lambda: next(growing), lambda: 1.0) == (20, False)


def test_the_interval_holds_the_ratio_of_known_times() -> None:
    generator = np.random.default_rng(0)
    runs = generator.normal([0.8, 1.2, 2.5, 3.5], [0.01, 0.01, 0.03, 0.03], (500, 4))
    speedup, low, high = speedup_of(runs)
    assert 2.98 < low < 3.0 < high < 3.02
    assert low < speedup < high


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.9, 2.1, "2x faster (1.90 to 2.10)"),
        (0.99, 1.4, "neither faster nor slower (0.99x to 1.40x)"),
        (1.0, 1.4, "neither faster nor slower (1.00x to 1.40x)"),
        (0.4, 0.6, "2x slower (1.67 to 2.50)"),
    ],
)
def test_faster_is_never_said_when_the_interval_holds_1(low: float, high: float, expected: str) -> None:
    middle = {1.9: 2.0, 0.99: 1.2, 1.0: 1.2, 0.4: 0.5}[low]
    entry = Latency(
        **CPU.model_dump(), median_ms=1, p95_ms=1, runs=100, speedup=middle, speedup_low=low, speedup_high=high,
        warmup_runs=20, steady=True, other_load=0,
    )  # fmt: skip
    assert speed(entry) == expected


def recorded(ratios: list[float], *, ms: float = 1, interrupted: bool = False, **others: object) -> Recording:
    """A session whose turns have these ratios, at `ms` for a run of the candidate."""
    seconds = np.array([[[ms / 1e3] * 2, [ratio * ms / 1e3] * 2] for ratio in ratios])
    about = {"warmup_runs": 20, "steady": True, "other_load": 0.0} | others
    return Recording(CPU, seconds, np.full(seconds.shape, interrupted), **about)  # type: ignore[arg-type]


def test_an_interval_covers_every_session() -> None:
    sessions = [
        recorded([9.5] * 20, ms=5),
        recorded([8.9] * 20, ms=5.1, steady=False),
        recorded([9] * 20, other_load=0.5, ms=5.2),
    ]
    at_each, other = iter(sessions), recorded([1] * 20)
    first, second = in_sessions([lambda: next(at_each), lambda: other])
    assert (first.median_ms, first.p95_ms) == pytest.approx((5.1, 5.1))
    assert (first.speedup, first.speedup_low, first.speedup_high) == pytest.approx((9, 8.9, 9.5))
    assert first.sessions == pytest.approx((9.5, 8.9, 9))
    assert (first.runs, first.warmup_runs, first.steady, first.other_load, first.quiet) == (120, 60, False, 0.5, 1)
    assert second.sessions == (1, 1, 1)


def test_runs_that_were_slow_or_interrupted_do_not_count() -> None:
    """Of 40 turns, 5 took twice as long, and 5 quick runs of the baseline after itself were interrupted."""
    turns = recorded([4.0] * 40)
    turns.seconds[:5] *= 2
    turns.seconds[5:10, 1, 0] /= 2
    turns.interrupted[5:10, 1, 0] = True
    latency = latency_of([turns])
    assert (latency.speedup, latency.speedup_low, latency.speedup_high) == pytest.approx((4, 4, 4))
    assert latency.median_ms == pytest.approx(1)
    assert latency.p95_ms == pytest.approx(2)
    assert latency.quiet == (160 - 20 - 5) / 160


def test_runs_after_itself_and_after_the_other_are_judged_apart() -> None:
    turns = recorded([4.0] * 20)
    turns.seconds[:, 0] = (0.5e-3, 1.5e-3)  # the candidate
    latency = latency_of([turns])
    assert (latency.speedup, latency.quiet) == (pytest.approx(8 / 2), 1)


def test_both_networks_are_compared_at_the_same_moments() -> None:
    """A clock that slows down by 4% in the middle, where more runs of the baseline are too slow to be quiet."""
    turns = recorded([10.0] * 200)
    turns.seconds[60:] *= 1.04
    turns.seconds[60:160, 1] *= 1.1
    latency = latency_of([turns])
    assert (latency.speedup, latency.speedup_low, latency.speedup_high) == pytest.approx((10, 10, 10))


def test_a_session_that_was_quiet_for_a_moment_does_not_count() -> None:
    """15 turns of 200 are quiet, in two of 20 blocks: too few to tell how far they can be trusted."""
    turns = recorded([4.0] * 200)
    turns.interrupted[15:] = True
    latency = latency_of([turns])
    assert (latency.speedup, latency.quiet) == (pytest.approx(4), 0)


def test_a_session_slower_than_the_others_does_not_count() -> None:
    latency = latency_of([recorded([4.0] * 20), recorded([3.6] * 20, ms=1.2), recorded([4.2] * 20)])
    assert latency.sessions == pytest.approx((4, 4.2))
    assert latency.quiet == pytest.approx(2 / 3)


def test_sessions_without_quiet_are_repeated_after_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("compressor.evaluation.latency.PAUSES_SECONDS", (5.0, 10.0, 20.0))
    monkeypatch.setattr("time.sleep", pauses.append)
    quiet, busy = recorded([4.0] * 20), recorded([3.0] * 20, interrupted=True)
    sessions, others = iter([quiet, busy, quiet, busy, quiet]), iter([quiet] * 3)
    first, second = in_sessions([lambda: next(sessions), lambda: next(others)])
    assert pauses == [5, 10]
    assert (first.sessions, first.quiet) == ((4, 4, 4), 0.6)
    assert (second.sessions, second.quiet) == ((4, 4, 4), 1)


def test_where_nothing_was_quiet_every_turn_counts_and_the_share_is_0() -> None:
    latency = latency_of([recorded([ratio] * 20, interrupted=True) for ratio in (3.0, 5.0, 4.0)])
    assert (latency.sessions, latency.quiet) == (pytest.approx((3, 5, 4)), 0)


@pytest.mark.parametrize(
    ("after", "interrupted"),
    [((4, 1.75, 11.0), True), ((3, 1.75, 11.0), False), ((4, 1.99, 11.0), False)],  # put aside; waiting; for a moment
)
def test_a_run_is_interrupted_if_the_scheduler_takes_its_time(
    monkeypatch: pytest.MonkeyPatch, after: tuple[int, float, float], interrupted: bool
) -> None:
    counters = itertools.cycle([(3, 1.0, 10.0), after])
    monkeypatch.setattr("compressor.evaluation.recording._counters", lambda: next(counters))
    assert (compare(lambda: 1.0, lambda: 1.0, CPU).interrupted == interrupted).all()


def test_other_load_is_what_the_machine_does_without_us(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([(100.0, 10.0, 0.0), (106.0, 12.0, 4.0)])  # 6 s of work in 4 s, 2 s of it our own
    monkeypatch.setattr(OtherLoad, "_seconds", staticmethod(lambda: next(clock)))
    with OtherLoad() as load:
        pass
    assert load.cores == 1.0


def test_operators_on_the_cpu_are_counted_from_what_was_executed(tmp_path: Path) -> None:
    path = write(tmp_path, [1, 4], [("Relu", "x", "a"), ("Sigmoid", "a", "b"), ("Relu", "b", "y")])
    counted = onnx_file.operators_elsewhere(path, {"x": np.zeros((1, 4), np.float32)}, "cpu")
    assert counted == ("Relu x 2", "Sigmoid x 1")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        (["batch", 4], TensorProto.INT64, r"takes x \(tensor\(int64\)\)"),
        (["batch", "side"], TensorProto.FLOAT, "leaves the shape of its input open"),
        ([3, 4], TensorProto.FLOAT, "takes batches of 3 only; ask for --batch 3"),
    ],
)
def test_files_that_cannot_be_timed(tmp_path: Path, shape: list[int | str], kind: int, message: str) -> None:
    path = write(tmp_path, shape, [("Identity", "x", "y")], kind)
    with pytest.raises(ArtifactError, match=message):
        onnx_file.input_of(onnx_file.session(path), 2, source=path)


def write(folder: Path, shape: list[int | str] | list[int], nodes: list[tuple[str, str, str]], kind: int = 1) -> Path:
    graph = helper.make_graph(
        [helper.make_node(op, [source], [target]) for op, source, target in nodes],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path
