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
from compressor.evaluation.engines.base import clocked
from compressor.evaluation.latency import (
    MIN_ROUNDS,
    Latency,
    OtherLoad,
    compare,
    in_sessions,
    speedup_of,
    warm_up,
)
from compressor.evaluation.setting import Setting
from compressor.export import onnx_file
from compressor.report.wording import speed


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.evaluation.latency.MIN_SECONDS", 0.4)
    monkeypatch.setattr("compressor.evaluation.latency.MAX_WARMUP_SECONDS", 3.0)


CPU = Setting(engine="onnxruntime", device="cpu", threads=1, batch=2)


def test_runs_alternate_until_both_have_enough() -> None:
    calls: list[str] = []

    def run(name: str) -> Callable[[], float]:
        return lambda: clocked(lambda: (calls.append(name), time.sleep(0.005)))

    threads = torch.get_num_threads()
    latency = compare(run("a"), run("b"), CPU)
    warmup, timed_runs = calls[: 2 * latency.warmup_runs], calls[2 * latency.warmup_runs :]
    assert warmup == ["a", "b"] * latency.warmup_runs
    assert timed_runs == (["a", "b", "b", "a"] * len(calls))[: 2 * latency.runs]
    assert latency.runs >= MIN_ROUNDS
    assert latency.median_ms >= 5
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("seconds", "expected"), [(0.25, 40), (2**-10, 410)])
def test_rounds_go_on_until_the_faster_has_had_its_time(seconds: float, expected: int) -> None:
    assert compare(lambda: seconds, lambda: 2 * seconds, CPU).runs == expected


def test_warm_up_continues_until_times_are_steady() -> None:
    slow_start = itertools.chain([9.0] * 10, [5.0] * 10, itertools.repeat(1.0))
    assert warm_up(lambda: next(slow_start), lambda: 1.0) == (40, True)


def test_times_that_never_settle_are_reported_as_unsteady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.evaluation.latency.MAX_WARMUP_SECONDS", 0.0)
    growing = (1.1**index for index in itertools.count())
    assert warm_up(lambda: next(growing), lambda: 1.0) == (20, False)


def test_the_interval_holds_the_ratio_of_known_times() -> None:
    generator = np.random.default_rng(0)
    times = np.stack([generator.normal(1.0, 0.01, 500), generator.normal(3.0, 0.03, 500)], axis=1)
    speedup, low, high = speedup_of(times)
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


def test_an_interval_covers_every_session() -> None:
    entries = [
        Latency(
            **CPU.model_dump(), median_ms=median, p95_ms=median + 1, runs=40, speedup=speedup, speedup_low=speedup - 0.1,
            speedup_high=speedup + 0.1, warmup_runs=20, steady=steady, other_load=load,
        )
        for median, speedup, steady, load in [(5.0, 9.5, True, 0.0), (8.0, 6.0, False, 0.5), (6.0, 9.0, True, 0.25)]
    ]  # fmt: skip
    at_each, other = iter(entries), Latency(**{**entries[0].model_dump(), "speedup": 1.0})
    first, second = in_sessions([lambda: next(at_each), lambda: other])
    assert first == Latency(
        **CPU.model_dump(), median_ms=6, p95_ms=7, runs=120, speedup=9, speedup_low=5.9, speedup_high=9.6,
        warmup_runs=60, steady=False, other_load=0.5, moments=(9.5, 6, 9),
    )  # fmt: skip
    assert second.sessions == (1, 1, 1)


def test_other_load_is_what_the_machine_does_without_us(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([(100.0, 10.0, 0.0), (106.0, 12.0, 4.0)])  # 6 s of work in 4 s, 2 s of it our own
    monkeypatch.setattr(OtherLoad, "_seconds", staticmethod(lambda: next(clock)))
    with OtherLoad() as load:
        pass
    assert load.cores == 1.0


def test_operators_on_the_cpu_are_counted_from_what_was_executed(tmp_path: Path) -> None:
    path = write(tmp_path, [1, 4], [("Relu", "x", "a"), ("Sigmoid", "a", "b"), ("Relu", "b", "y")])
    counted = onnx_file.operators_on_cpu(path, {"x": np.zeros((1, 4), np.float32)}, "cpu")
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
