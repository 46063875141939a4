"""Matplotlib figures as SVG that takes its colours from the page around it, light or dark."""

import html
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from compressor.report.report import Report

WIDTH = 5.2  # inches: 374 points, about the width of a phone
COLOURS = {  # matplotlib's stand-ins for colours of the page's style sheet
    "#010203": "currentColor",
    "#010204": "var(--baseline)",
    "#010205": "var(--shipped)",
    "#010206": "var(--quiet)",
}
INK, BASELINE, SHIPPED, QUIET = COLOURS
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@contextmanager
def plot(title: str, height: float) -> Iterator[tuple[Any, Callable[[], str]]]:
    """A figure to draw on, and the function that turns it into SVG afterwards."""
    import matplotlib  # takes a second to import
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, lambda: _svg(figure, title)


def _svg(figure: Any, title: str) -> str:
    """The figure as an `<svg>` element."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # several plots share a page, where ids must be unique
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, meaning in COLOURS.items():
        text = text.replace(colour, meaning)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def stage_colour(stage_id: str, report: Report) -> str:
    """The colour of a stage in every plot."""
    return {report.baseline: BASELINE, report.shipped: SHIPPED}.get(stage_id, QUIET)
