"""What a user sees during a run."""

import time
from io import StringIO

import pytest
from rich.console import Console as RichConsole

from compressor.console import Console


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (True, True), (False, False)])
def test_timings_are_counted_on_a_terminal_and_nothing_is_drawn_between(terminal: bool, quiet: bool) -> None:
    screen = StringIO()
    console = Console(RichConsole(file=screen, force_terminal=terminal, width=80), quiet=quiet)
    with console.timings(3) as one_more:
        for count in (1, 2):
            before = screen.tell()
            time.sleep(0.2)  # twice the time after which rich draws on its own
            assert screen.tell() == before
            one_more()
            assert (f"{count}/3" in screen.getvalue()[before:]) == (terminal and not quiet)
    if not terminal or quiet:
        assert not screen.getvalue()
