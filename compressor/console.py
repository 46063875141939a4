"""What a user sees during a run: progress bars on a terminal, a few plain lines elsewhere."""

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from compressor.errors import printable
from compressor.tracking import Tracker

Item = TypeVar("Item")
LINES_PER_TRAINING = 8
PLAIN_WIDTH = 150


def launched() -> tuple[int, int]:
    """Which process of how many this is, as a launcher such as `torchrun` says; 0 of 1 without one."""
    rank, count = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return (int(rank), int(count)) if rank.isdecimal() and count.isdecimal() and int(count) > 1 else (0, 1)


class Console(Tracker):
    """Messages and progress; `quiet` shows neither, `verbose` prints a line for every epoch."""

    def __init__(self, rich: RichConsole | None = None, *, quiet: bool = True, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self._training: TrainingProgress | None = None
        self.rich = rich or RichConsole(quiet=quiet)
        if not self.rich.is_terminal:
            self.rich.width = PLAIN_WIDTH

    @classmethod
    def terminal(cls, *, verbose: bool = False) -> "Console":
        """A console on standard output."""
        return cls(quiet=False, verbose=verbose)

    def say(self, message: str | Table, style: str = "") -> None:
        """One line, however long, whatever names are in it; or one table."""
        shown = printable(message) if isinstance(message, str) else message
        self.rich.print(
            shown, style=style, highlight=False, markup=False, emoji=False, soft_wrap=isinstance(message, str)
        )

    def progress_only(self) -> "Console":
        """The same console for a part of the work of which nothing is said, but bars are shown."""
        return _ProgressOnly(self.rich, quiet=self.quiet)

    @contextmanager
    def training(self, label: str, epochs: int, steps: int, done: int = 0) -> Iterator["TrainingProgress"]:
        """Show the progress of training for `epochs` times `steps`, of which `done` epochs are done."""
        self._training = TrainingProgress(self, label, epochs, steps, done)
        try:
            yield self._training
        finally:
            self._training.close()
            self._training = None

    def on_epoch(self, stage: str, point: Mapping[str, float]) -> None:
        """Update the training's progress bar, or print a line."""
        if self._training is not None:
            self._training.epoch(int(point["epoch"]), point["loss"], point["validation_accuracy"])

    def on_row(self, row: Mapping[str, Any]) -> None:
        """Say how a stage scored; latency is in the table at the end."""
        if row.get("latency"):
            return
        accuracy = row["accuracy"]
        self.say(
            f"  {accuracy['correct']}/{accuracy['total']} correct ({100 * accuracy['value']:.2f}%), "
            f"{row['parameters']:,} parameters, {row['macs'] / 1e6:.2f} MMACs, {row['size_bytes'] / 1e3:.1f} kB, "
            f"{row['seconds']:.0f} s"
        )

    @contextmanager
    def progress(self, label: str, count: int) -> Iterator[Callable[[int], None]]:
        """Show the progress of `count` items on a terminal; call the result with the number of items just done."""
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        shown = self.rich.is_terminal and not self.quiet
        with Progress(*columns, console=self.rich, transient=True, disable=not shown) as bar:
            task = bar.add_task(label, total=count)
            yield lambda done: bar.advance(task, done)

    def follow(self, label: str, items: Iterable[Item], count: int) -> Iterator[Item]:
        """Yield `count` items, showing progress as `progress` does."""
        with self.progress(label, count) as advance:
            for item in items:
                yield item
                advance(1)

    @contextmanager
    def timings(self, count: int) -> Iterator[Callable[[], None]]:
        """Show the progress of `count` timings or more; call the result after each. The bar is drawn only then."""
        columns = (TextColumn("  timed"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
        shown = self.rich.is_terminal and not self.quiet
        with Progress(*columns, console=self.rich, transient=True, auto_refresh=False, disable=not shown) as bar:
            task = bar.add_task("", total=count)
            yield lambda: bar.update(task, advance=1, total=max(count, bar.tasks[task].completed + 1), refresh=True)


class _ProgressOnly(Console):
    def say(self, message: str | Table, style: str = "") -> None:
        """Nothing."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, figures: bool = False) -> Table:
    """A table of plain text for `say`; with `figures`, all columns but the first are aligned to the right."""
    made = Table(header_style="bold")
    for index, name in enumerate(header):
        made.add_column(Text(printable(name)), justify="right" if figures and index else "left")
    for cells in rows:
        made.add_row(*(Text(printable(cell)) for cell in cells))
    return made


class TrainingProgress:
    """The progress bar of a training, with loss, validation accuracy and time left; without a terminal, a few lines."""

    def __init__(self, console: Console, label: str, epochs: int, steps: int, done: int) -> None:
        self.console = console
        self.label = label
        self.epochs = epochs
        self.done = done
        self.every = math.ceil(epochs / LINES_PER_TRAINING)
        self.started = time.monotonic()
        self.bar: Progress | None = None
        if console.rich.is_terminal and not console.quiet and not console.verbose:
            columns: tuple[ProgressColumn, ...] = (
                TextColumn("  {task.description}"),
                BarColumn(bar_width=24),
                _Epoch(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=console.rich, transient=True)
            self.task = self.bar.add_task(label, total=epochs * steps, figures="", epochs=epochs, steps=steps)
            self.bar.advance(self.task, done * steps)
            self.bar.start()

    def step(self) -> None:
        """One batch is done."""
        if self.bar:
            self.bar.advance(self.task)

    def epoch(self, number: int, loss: float, validation_accuracy: float) -> None:
        """Epoch `number`, counted from 1, is done."""
        figures = f"loss {loss:.4f}  validation {100 * validation_accuracy:.2f}%"
        if self.bar:
            self.bar.update(self.task, figures=f"after {number}: {figures}")
        elif self.console.verbose or number == self.epochs or number % self.every == 0:
            left = (time.monotonic() - self.started) / (number - self.done) * (self.epochs - number)
            self.console.say(f"  {self.label}  epoch {number}/{self.epochs}  {figures}  {left:.0f} s left")

    def close(self) -> None:
        """Remove the bar."""
        if self.bar:
            self.bar.stop()


class _Epoch(ProgressColumn):
    def render(self, task: Task) -> Text:
        epochs, steps = task.fields["epochs"], task.fields["steps"]
        return Text(f"epoch {min(int(task.completed) // steps + 1, epochs)}/{epochs}")
