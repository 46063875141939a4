"""Text and tables in Markdown."""

import re
from collections.abc import Sequence

from compressor.errors import printable

SPECIAL = re.compile(r"[\\`*\[\]|~#]|\b_|_\b")  # an underscore within a word marks nothing


def escaped(text: object) -> str:
    """Text as Markdown that renders as that text, on one line, so that names cannot be markup."""
    return SPECIAL.sub(r"\\\g<0>", printable(str(text))).replace("&", "&amp;").replace("<", "&lt;")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A table whose first `left` columns are words and whose others are figures; cells are text, and are escaped."""
    rule = ["---" if index < left else "---:" for index in range(len(header))]
    lines = [[escaped(cell) for cell in cells] for cells in (header, *rows)]
    return [f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:])]
