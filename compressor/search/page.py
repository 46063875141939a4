"""`search.html`: one self-contained file with the answer first, then the front, what mattered, and every trial."""

from collections.abc import Sequence
from pathlib import Path

from compressor.report import filled, machine, percent, setting_name
from compressor.search import plots
from compressor.search.found import Found, command_of, in_words
from compressor.search.wording import headline

HTML = "search.html"


def page(found: Found, folder: Path, imports: Sequence[str] = ()) -> str:
    """The content of `search.html`; its commands import networks from `imports`."""
    return filled(
        "search.html",
        found=found,
        headline=headline(found),
        best={each.number: each for each in found.best},
        plots=plots,
        in_words=in_words,
        percent=percent,
        setting=setting_name(found.setting),
        machine=machine(found.environment),
        commands={each.number: command_of(found, folder, each.number, imports) for each in found.outcomes},
    )
