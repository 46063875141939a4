"""The templates of what is written: the report's page, the model card, the first pipeline."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from compressor.report import wording as words
from compressor.report.report import Report
from compressor.report.snippets import five_lines

TEMPLATES = Path(__file__).with_name("templates")


def render(name: str, report: Report, **more: Any) -> str:
    """The template of that name, filled with a report and what else it needs; values are escaped in HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(
        report=report,
        base=report.baseline_row,
        shipped=report.shipped_row,
        words=words,
        five_lines=five_lines(report.preprocess),
        **more,
    )
