"""All files of a report, written from `report.json` alone."""

from pathlib import Path

from compressor.report.doctor import diagnosis_page
from compressor.report.page import to_html
from compressor.report.report import JSON, Report
from compressor.report.tables import to_markdown
from compressor.report.templating import render
from compressor.storage import files

MARKDOWN, HTML, DOCTOR, CARD = "report.md", "report.html", "doctor.html", "README.md"
WRITTEN = (JSON, MARKDOWN, HTML, DOCTOR, CARD)
SIGNS = {  # what only a report holds, of this or an earlier version
    MARKDOWN: b"Accuracy is measured on each stage's ONNX file in ONNX Runtime",
    HTML: b"<h2>Stage by stage</h2>",
    DOCTOR: b"<h2>Operators</h2>",
    CARD: b"---\nlibrary_name: onnx\n",
}


def write(report: Report, folder: Path) -> None:
    """Write the report of a run as JSON, Markdown and HTML, the page about the shipped file, and the model card."""
    files.write_json(folder / JSON, report.to_json())
    files.write_text(folder / MARKDOWN, to_markdown(report))
    files.write_text(folder / HTML, to_html(report))
    if report.doctor is not None:
        files.write_text(folder / DOCTOR, diagnosis_page(report.doctor))
    elif (folder / DOCTOR).is_file() and is_written(folder / DOCTOR):
        files.remove(folder / DOCTOR)  # of an earlier file
    files.write_text(folder / CARD, to_card(report))


def is_written(path: Path) -> bool:
    """Whether a file is one that `write` wrote for people."""
    return SIGNS[path.name] in files.read_bytes(path, files.MAX_TEXT_BYTES)


def to_card(report: Report) -> str:
    """The model card: what a user of `model.onnx` needs to know, in the format that model hubs read."""
    classes = list(zip(report.labels, report.regressions.shipped_classes, strict=True))
    return render("model_card.md", report, classes=classes)
