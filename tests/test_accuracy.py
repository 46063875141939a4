"""Intervals and tests against formulas worked by hand, with nothing but Python."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor import Dataset, TorchModel
from compressor.errors import ArtifactError
from compressor.evaluation.accuracy import Accuracy, Paired, Predictions, class_scores, probabilities
from compressor.report.wording import difference


def predictions(classes: list[int], labels: list[int], confidence: list[float] | None = None) -> Predictions:
    sure = confidence or [1.0] * len(classes)
    return Predictions(np.array(classes), np.array(sure, np.float32), np.array(labels))


@pytest.mark.parametrize(("k", "n"), [(356, 360), (0, 10), (10, 10), (8986, 10000)])
def test_wilson_by_its_formula(k: int, n: int) -> None:
    z, p = 1.959963984540054, k / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    got = Accuracy.of(k, n, split="test")
    assert got.value == p
    assert got.low == pytest.approx(max(centre - half, 0), abs=1e-9)
    assert got.high == pytest.approx(min(centre + half, 1), abs=1e-9)


def tail(k: int, n: int, p: float) -> float:
    """P(X >= k) of a binomial."""
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


@pytest.mark.parametrize(("lost", "won"), [(14, 4), (3, 4), (0, 5), (0, 6), (6, 0), (40, 12), (1, 0)])
def test_mcnemar_by_counting(lost: int, won: int) -> None:
    total = 359
    got = Paired.of(lost, won, total)
    assert got.p_value == pytest.approx(min(2 * tail(max(lost, won), lost + won, 0.5), 1.0))
    assert got.difference == (won - lost) / total
    a, b, n = (lost + 1) / (total + 2), (won + 1) / (total + 2), total + 2  # Bonett and Price
    half = 1.959963984540054 * math.sqrt((a + b - (b - a) ** 2) / n)
    low, high = b - a - half, b - a + half
    if got.p_value >= 0.05:
        low, high = min(low, 0), max(high, 0)
    assert (got.low, got.high) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_holds_0_exactly_where_the_test_does_not_reject() -> None:
    for total in (61, 359, 10_000):
        for lost in range(0, 60, 3):
            for won in range(60 - lost):
                got = Paired.of(lost, won, total)
                assert (got.low <= 0 <= got.high) == (got.p_value >= 0.05), (lost, won, total)


def test_networks_that_never_differ() -> None:
    got = Paired.of(0, 0, 100)
    assert got.p_value == 1.0
    assert got.low == -got.high == pytest.approx(-1.96 * math.sqrt(2 / 102 / 102), rel=1e-4)
    assert difference(got, "teacher") == "correct on the same images as teacher"


def test_a_difference_in_words() -> None:
    assert difference(Paired.of(100, 25, 10_000), "teacher") == "worse by 0.53 to 0.97 points"
    assert difference(Paired.of(25, 100, 10_000), "teacher") == "better by 0.53 to 0.97 points"
    assert difference(Paired.of(3, 4, 359), "teacher").startswith("not distinguishable from teacher (1.4 points worse")
    assert difference(Paired.of(3, 11, 359), "teacher").startswith(
        "not distinguishable from teacher (0 points worse to"
    )


def test_predictions_against_a_baseline() -> None:
    labels = [0, 1, 2, 0, 1]
    before, after = predictions([0, 1, 2, 1, 0], labels), predictions([0, 2, 0, 0, 0], labels)
    got = after.against(before)
    assert (got.lost, got.won, got.total) == (2, 1, 5)
    assert after.accuracy(split="test").correct == 2
    assert after.confusion() == [(0, 0, 2), (1, 0, 1), (1, 2, 1), (2, 0, 1)]


def test_calibration_error_by_hand() -> None:
    # Bins of width 1/15: 0.97 and 0.99 share one (1 of 2 correct, mean confidence 0.98), 0.5 has its own (correct).
    got = predictions([0, 0, 1], [0, 1, 1], [0.97, 0.99, 0.5]).calibration_error()
    assert got == pytest.approx((2 * abs(0.5 - 0.98) + abs(1 - 0.5)) / 3, abs=1e-6)
    assert predictions([0], [0], [1.0]).calibration_error() == 0


def test_class_scores_by_hand() -> None:
    scores = class_scores(predictions([0, 0, 1, 1, 1], [0, 1, 1, 1, 0]), 3)
    assert [(s.images, s.precision, s.recall) for s in scores] == [
        (2, 0.5, 0.5),
        (3, pytest.approx(2 / 3), pytest.approx(2 / 3)),
        (0, 0.0, 0.0),
    ]
    assert scores[0].f1 == 0.5


def test_a_file_predicts_what_its_network_does(tiny: TorchModel, digits: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny.to_onnx("test").content)
    with torch.no_grad():
        logits = tiny.network(digits.preprocess.normalise(digits.test.images))
    got = Predictions.of(path, digits.test, digits.preprocess)
    assert got.classes.tolist() == logits.argmax(1).tolist()
    assert got.confidence == pytest.approx(logits.softmax(1).amax(1).numpy(), abs=1e-5)
    assert len(got.labels) == 359


def test_predictions_are_read_back_as_written(tmp_path: Path) -> None:
    written = predictions([0, 1], [1, 1], [0.25, 0.5])
    written.save(tmp_path / "a")
    read = Predictions.load(tmp_path / "a")
    assert all(np.array_equal(getattr(read, name), getattr(written, name)) for name in vars(written))
    (tmp_path / "a").write_bytes(b"no")
    with pytest.raises(ArtifactError, match="no predictions can be read"):
        Predictions.load(tmp_path / "a")


def test_probabilities_of_large_logits() -> None:
    assert probabilities(np.array([[1000.0, 1000.0], [0.0, math.log(3.0)]], np.float32)) == pytest.approx(
        np.array([[0.5, 0.5], [0.25, 0.75]])
    )
