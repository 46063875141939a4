"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from compressor import models
from compressor.console import Console, launched
from compressor.errors import UserError

MAX_COUNT = 65_536
MODEL = "model.onnx"
STORE = Path("runs/.store")
PATH = click.Path(path_type=Path)  # completed by the shell; what is wrong with it is said by the command
Command = TypeVar("Command", bound=Callable[..., Any])

DEVICE = click.option(
    "--device",
    default="auto",
    metavar="auto|cpu|cuda",
    show_default=True,
    shell_complete=lambda context, param, incomplete: [
        name for name in ("auto", "cpu", "cuda") if name.startswith(incomplete)
    ],
    help="Where networks are trained.",
)
SHARED = click.option(
    "--store", type=PATH, metavar="DIR", envvar="COMPRESS_STORE", help="What runs share; runs/.store by default."
)


class Counts(click.ParamType):  # type: ignore[type-arg]  # generic since 8.4 only
    """Whole numbers from 1, separated by commas."""

    name = "N,N..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(part.isdecimal() and len(part) < 6 and 1 <= int(part) <= MAX_COUNT for part in parts):
            self.fail(f"{value!r}; expected whole numbers from 1 to {MAX_COUNT}, as in 1,4", param, ctx)
        return tuple(int(part) for part in parts)


def setting(command: Command) -> Command:
    """`--set KEY=VALUE`, any number of times."""
    text = "Change one setting, as in stages.teacher.epochs=5; null removes it. May be given several times."
    return click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=text)(command)


def loudness(command: Command) -> Command:
    """`--quiet` and `--verbose`."""
    verbose = click.option("-v", "--verbose", is_flag=True, help="Print every epoch, even without a terminal.")
    return click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")(verbose(command))


def as_json(command: Command) -> Command:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")(command)


def console_of(quiet: bool, verbose: bool) -> Console:
    """The console that these options ask for.

    Raises:
        UserError: both are given.
    """
    if quiet and verbose:
        raise UserError("--quiet and --verbose contradict each other; leave one out")
    return Console() if quiet or launched()[0] else Console.terminal(verbose=verbose)


def check_folder_of(path: Path) -> None:
    """Refuse to write a file, before any work is done for it, where no folder is.

    Raises:
        UserError: there is none.
    """
    if not path.absolute().parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; make it first")


def model_in(path: Path, engine: str | None = None) -> Path:
    """An ONNX file; of a run's folder, the one that it ships, for this engine if that has its own."""
    if not path.is_dir():
        return path
    own = None if engine is None else path / models.file_for(engine)
    return own if own is not None and own.exists() else path / MODEL
