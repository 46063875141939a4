"""The command that searches among pipelines."""

from pathlib import Path

import click

from compressor import search as searches
from compressor.commands.options import DEVICE, MODEL, PATH, SHARED, STORE, console_of, loudness, setting


@click.command()
@click.argument("path", type=PATH, metavar="SEARCH.yaml")
@click.option("--out", type=PATH, metavar="DIR", help="Folder of the search; runs/<name> by default.")
@click.option(
    "--on",
    default="local",
    metavar="local|ray|ray://HOST",
    show_default=True,
    help="Where trials run: here, one after the other, or on a Ray cluster.",
)
@setting
@DEVICE
@SHARED
@loudness
def search(
    path: Path,
    out: Path | None,
    on: str,
    overrides: tuple[str, ...],
    device: str,
    store: Path | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Search among pipelines for the fastest network that is accurate enough, or for the front of both.

    SEARCH.yaml is a pipeline with ranges in place of values, a goal and a budget. Trials are judged on validation
    images. Stop it at any moment: the same command goes on.

    \b
    Examples:
      compress search pipelines/search_digits.yaml
      compress search mine.yaml --set search.budget.trials=50
      compress search mine.yaml --on ray://head-node
    """
    console = console_of(quiet, verbose)
    settings, space = searches.load(path, overrides)
    out = out or Path("runs") / space.example.name
    found = searches.search(
        settings,
        space,
        out,
        store=store or STORE,
        device=device,
        on=on,
        imports=(str(path.absolute().parent), str(Path.cwd())),
        console=console,
    )
    console.say(searches.headline(found), style="bold")
    if found.winner is not None:
        console.say(f"{out / 'winner' / MODEL} is the result; {out / 'search.html'} shows every trial.")
    else:
        console.say(f"{out / 'search.html'} shows every trial, with the command that runs it by itself.")


COMMANDS = (search,)
