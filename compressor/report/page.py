"""`report.html`: one self-contained file that gives the verdict first and explains it below."""

from typing import Any

from compressor.report import engines, plots, tables
from compressor.report.report import Report
from compressor.report.templating import render
from compressor.report.tradeoff import tradeoff

MAX_MATRIX = 20  # classes; of more, only the most frequent confusions are listed
MAX_CONFUSIONS = 20


def to_html(report: Report) -> str:
    """The content of `report.html`."""
    return render(
        "report.html",
        report,
        setting=report.headline_setting,
        engines=engines,
        plots=plots,
        tradeoff=tradeoff,
        spread=tables.spread,
        confusion=_confusion(report),
        max_classes=tables.MAX_CLASSES,
    )


def _confusion(report: Report) -> dict[str, Any]:
    """The shipped network's confusion matrix: in full for few classes, else the largest off-diagonal entries."""
    entries = report.regressions.confusion
    classes = len(report.labels)
    images = [0] * classes
    for label, _, count in entries:
        images[label] += count
    if classes <= MAX_MATRIX:
        matrix = [[0] * classes for _ in range(classes)]
        for label, prediction, count in entries:
            matrix[label][prediction] = count
        return {"matrix": matrix, "images": images}
    confused = sorted((entry for entry in entries if entry[0] != entry[1]), key=lambda entry: -entry[2])
    return {"matrix": None, "images": images, "largest": confused[:MAX_CONFUSIONS]}
