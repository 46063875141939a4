"""`report.html`: one file that answers first and explains below, without a network."""

from typing import Any

from compressor.report import plots as pictures
from compressor.report import tables
from compressor.report.report import Report
from compressor.report.templating import render

FEW_CLASSES = 20  # whose confusion matrix is shown whole
CONFUSIONS_LISTED = 20


def to_html(report: Report) -> str:
    """The content of `report.html`."""
    return render(
        "report.html",
        report,
        setting=report.headline_setting,
        pictures=pictures,
        spread=tables.spread,
        confusion=_confusion(report),
        many_classes=tables.MANY_CLASSES,
    )


def _confusion(report: Report) -> dict[str, Any]:
    """The confusion matrix of the shipped network: whole for few classes, else its largest entries off the diagonal."""
    entries = report.harm.confusion
    classes = len(report.labels)
    images = [0] * classes
    for label, _, count in entries:
        images[label] += count
    if classes <= FEW_CLASSES:
        matrix = [[0] * classes for _ in range(classes)]
        for label, answer, count in entries:
            matrix[label][answer] = count
        return {"matrix": matrix, "images": images}
    wrong = sorted((entry for entry in entries if entry[0] != entry[1]), key=lambda entry: -entry[2])
    return {"matrix": None, "images": images, "largest": wrong[:CONFUSIONS_LISTED]}
