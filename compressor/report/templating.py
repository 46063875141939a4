"""Fills the templates: the report's page and the model card."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from compressor.errors import printable
from compressor.report import wording as words
from compressor.report.markdown import escaped
from compressor.report.report import Report
from compressor.report.snippets import five_lines

TEMPLATES = Path(__file__).with_name("templates")


def render(name: str, report: Report, **more: Any) -> str:
    """The template of that name, filled with a report and further values; values are text, and are escaped."""
    return filled(
        name,
        report=report,
        base=report.baseline_row,
        shipped=report.shipped_row,
        words=words,
        five_lines=five_lines(report.preprocess),
        **more,
    )


def filled(name: str, **values: Any) -> str:
    """The template of that name, filled with values, which are text, and are escaped."""
    return _environment(name.rpartition(".")[2]).get_template(name).render(**values)


@cache
def _environment(suffix: str) -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=suffix == "html",  # noqa: S701
        finalize=_markdown if suffix == "md" else _html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _html(value: object) -> object:
    """A value for a page, which Jinja escapes; what is marked as safe stays as it is."""
    return printable(value) if type(value) is str else value


def _markdown(value: object) -> object:
    """A value for a Markdown template, escaped unless it is marked as safe."""
    return value if hasattr(value, "__html__") else escaped(value)
