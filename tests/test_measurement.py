"""Intervals against formulas worked by hand; timings are not asserted."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from compressor.measurement import Accuracy, Setting, _speedup, compare, onnx_runner, score, torch_runner

from compressor import Dataset, TorchModel

CPU = Setting(engine="onnxruntime", device="cpu", threads=1, batch=2)


@pytest.mark.parametrize(("k", "n"), [(356, 360), (0, 10), (10, 10), (8986, 10000)])
def test_wilson_by_its_formula(k: int, n: int) -> None:
    z, p = 1.959963984540054, k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    got = Accuracy.of(k, n, split="test", engine="onnxruntime")
    assert got.value == p
    assert got.low == pytest.approx(max(centre - half, 0), abs=1e-9)
    assert got.high == pytest.approx(min(centre + half, 1), abs=1e-9)


def test_score_counts_over_the_whole_split(tiny: TorchModel, digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny.to_onnx("test").content)
    inputs = digits.preprocess.normalise(digits.test.images)
    with torch.no_grad():
        expected = int((tiny.network(inputs).argmax(1) == digits.test.labels).sum())
    got = score(path, digits.test, digits.preprocess, name="test")
    assert (got.correct, got.total, got.engine) == (expected, 359, "onnxruntime")


def test_runs_alternate_until_both_have_enough() -> None:
    calls: list[str] = []

    def run(name: str) -> Callable[[], None]:
        return lambda: (calls.append(name), time.sleep(0.005))[0]

    threads = torch.get_num_threads()
    latency = compare(run("a"), run("b"), CPU)
    assert calls == ["a", "b"] * (len(calls) // 2)
    assert latency.runs == len(calls) // 2 - 10
    assert latency.runs >= 100
    assert latency.median_ms >= 5
    assert torch.get_num_threads() == threads


def test_the_interval_holds_the_ratio_of_known_times() -> None:
    generator = np.random.default_rng(0)
    times = np.stack([generator.normal(1.0, 0.01, 500), generator.normal(3.0, 0.03, 500)], axis=1)
    speedup, low, high = _speedup(times)
    assert 2.98 < low < 3.0 < high < 3.02
    assert low < speedup < high


def test_both_engines_run_the_network(tiny: TorchModel, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny.to_onnx("test").content)
    (logits,) = onnx_runner(path, tiny.preprocess, CPU)()  # type: ignore[misc]
    assert logits.shape == (2, 10)
    torch_runner(tiny.copy_network(), tiny.preprocess, Setting(engine="torch", device="cpu", threads=1, batch=3))()
