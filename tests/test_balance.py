"""Classes of different sizes: what is drawn, how losses are weighed, and how accuracy is then told."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import balanced_accuracy_score

from compressor import Context, Dataset, TorchModel
from compressor.config.spec import validated_copy
from compressor.evaluation.accuracy import Predictions
from compressor.report import Report, to_table
from compressor.report.tables import to_markdown
from compressor.report.wording import balanced
from compressor.report.writing import to_card, to_html
from compressor.training import Batch, CrossEntropy, Training, Watched, class_weights, fit
from compressor.training.balance import epoch_order
from stages import Distill, Quantize
from tests.conftest import taught
from tests.test_report_properties import small

LABELS = np.repeat([0, 1, 3], [2, 5, 93])


def unbalanced(digits: Dataset) -> Dataset:
    """2 zeros, 5 ones and 93 threes to train on."""
    labels = digits.train.labels.numpy()
    chosen = [np.flatnonzero(labels == label)[: (label == LABELS).sum()] for label in (0, 1, 3)]
    return replace(digits, train=digits.train.take(torch.from_numpy(np.concatenate(chosen))))


def test_the_sampler_draws_classes_equally_often_and_images_in_turns() -> None:
    training = Training(epochs=1, balance="sampler")
    order = epoch_order(torch.from_numpy(LABELS), training, torch.Generator().manual_seed(0)).numpy()
    assert len(order) == 100
    assert sorted(np.bincount(LABELS[order], minlength=4)) == [0, 33, 33, 34]
    times = np.bincount(order, minlength=100)
    for label in (0, 1, 3):
        assert np.ptp(times[label == LABELS]) <= 1
    assert np.abs(np.diff(LABELS[order])).sum() > 50  # shuffled
    again = epoch_order(torch.from_numpy(LABELS), training, torch.Generator().manual_seed(0)).numpy()
    other = epoch_order(torch.from_numpy(LABELS), training, torch.Generator().manual_seed(1)).numpy()
    assert np.array_equal(order, again)
    assert not np.array_equal(order, other)


class Seen(CrossEntropy):
    """Keeps the labels of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[int] = []

    def forward(self, network: Watched, batch: Batch) -> torch.Tensor:
        self.labels += batch.labels.tolist()
        return super().forward(network, batch)


def test_training_is_shown_what_the_sampler_draws(digits: Dataset, tiny: TorchModel) -> None:
    context = Context(data=unbalanced(digits).without_test())
    for balance, expected in (("sampler", [33, 33, 34]), (None, [2, 5, 93])):
        seen = Seen()
        training = Training(epochs=2, batch_size=30, learning_rate=1e-3, balance=balance)
        fit(tiny.copy_network(), seen, training, context, label="seen")
        for epoch in np.split(np.array(seen.labels), 2):
            counts = np.bincount(epoch, minlength=4)[[0, 1, 3]]
            assert (sorted(counts) if balance else counts.tolist()) == expected


def test_weights_are_inverse_frequencies_whose_mean_over_images_is_1(digits: Dataset) -> None:
    weights = class_weights(Training(epochs=1, balance="weights"), unbalanced(digits))
    assert weights is not None
    expected = np.zeros(10)
    expected[[0, 1, 3]] = 100 / (3 * np.array([2, 5, 93]))
    assert np.allclose(weights.numpy(), expected)
    assert weights[torch.from_numpy(LABELS)].mean().item() == pytest.approx(1)
    assert class_weights(Training(epochs=1, balance="sampler"), unbalanced(digits)) is None


def log_softmax(logits: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.parametrize("mixed", [False, True])
def test_weighted_losses_are_those_of_numpy(mixed: bool) -> None:
    random = np.random.default_rng(2)
    logits, teacher = random.normal(size=(2, 6, 4))
    classes = np.array([0, 1, 1, 3, 2, 0])
    shares = random.dirichlet(np.ones(4), 6) if mixed else np.eye(4)[classes]
    weights = np.array([2, 0.5, 1, 0])
    labels = torch.from_numpy(shares).float() if mixed else torch.from_numpy(classes)
    given, w = torch.from_numpy(logits).float(), torch.from_numpy(weights).float()
    loss = CrossEntropy(0.2, w)(Watched(torch.nn.Identity()), Batch(given, labels, torch.arange(6), 0))
    expected = -(weights * (0.8 * shares + 0.2 / 4) * log_softmax(logits)).sum(1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    t, s = log_softmax(teacher / 2), log_softmax(logits / 2)
    soft = (np.exp(t) * (t - s)).sum(1).mean()
    expected = 0.6 * 4 * soft - 0.4 * (weights * shares * log_softmax(logits)).sum(1).mean()
    got = taught(given, torch.from_numpy(teacher).float(), labels, class_weights=w, temperature=2, alpha=0.6)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_a_student_weighs_its_labels_too(digits: Dataset, tiny: TorchModel) -> None:
    context = Context(data=unbalanced(digits).without_test(), teachers={"teacher": tiny})
    network = tiny.copy_network().eval()
    batch = Batch(
        context.data.preprocess.normalise(context.data.train.images), context.data.train.labels, torch.arange(100), 0
    )
    losses = {}
    for balance in ("weights", None):
        stage = Distill(teacher="teacher", epochs=1, alpha=0, balance=balance)
        objective, _ = stage.objective(network, context)
        losses[balance] = objective(Watched(network), batch).item()
    one_by_one = -log_softmax(network(batch.inputs).detach().double().numpy())[np.arange(100), LABELS]
    assert losses[None] == pytest.approx(one_by_one.mean(), rel=1e-4)
    assert losses["weights"] == pytest.approx(
        np.mean([one_by_one[label == LABELS].mean() for label in (0, 1, 3)]), rel=1e-4
    )


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Quantize, {"mode": "ptq", "balance": "weights"}, "mode ptq does not train, so it takes .* no balance"),
        (Distill, {"teacher": "t", "epochs": 1, "alpha": 1, "balance": "weights"}, "of which alpha 1 leaves none"),
        (Training, {"epochs": 1, "balance": "both"}, "'sampler' or 'weights'"),
    ],
)
def test_balance_without_an_effect_is_refused(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind(**settings)


def test_no_balance_is_written_as_it_always_was() -> None:
    assert "balance" not in Training(epochs=1).model_dump()
    assert Training(epochs=1, balance="weights").model_dump()["balance"] == "weights"


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_there_are() -> None:
    labels = np.array([0] * 90 + [1] * 8 + [3] * 2)
    classes = np.array([0] * 85 + [2] * 5 + [1] * 4 + [0] * 4 + [3, 0])
    predictions = Predictions(classes, np.full(100, 0.5, np.float32), labels)
    assert predictions.balanced_accuracy() == pytest.approx(np.mean([85 / 90, 4 / 8, 1 / 2]))
    known = np.where(classes == 2, 0, classes)  # scikit-learn's own warns of classes without images
    assert Predictions(known, predictions.confidence, labels).balanced_accuracy() == balanced_accuracy_score(
        labels, known
    )


def test_reports_tell_it_where_classes_differ_in_size() -> None:
    report = small()  # 30 images of a class, 70 of the other
    told = validated_copy(report, rows=tuple(validated_copy(row, balanced_accuracy=0.7654) for row in report.rows))
    even = [validated_copy(score, images=50) for score in report.regressions.shipped_classes]
    same = validated_copy(
        told, regressions=validated_copy(told.regressions, baseline_classes=even, shipped_classes=even)
    )
    for each, count in ((told, 3), (same, 0), (report, 0)):
        assert [balanced(each, row) for row in each.rows].count("balanced 76.54%") == count
        assert to_markdown(each).count("balanced 76.54%") == count
        assert to_html(each).count("balanced 76.54%") == count
        assert [str(cell) for cell in to_table(each).columns[1].cells].count("88.00%, balanced 76.54%") == bool(count)
        told_in_card = "in ONNX Runtime; the mean recall of its classes, which are of different sizes, is 76.54%.\n"
        assert (told_in_card in to_card(each)) == bool(count)
        assert ("measured on this file in ONNX Runtime.\n" in to_card(each)) != bool(count)
    assert Report.model_validate(told.to_json()) == told
