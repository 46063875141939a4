"""Commands on the store that runs share."""

import json
import time
from pathlib import Path
from typing import Any

import click

from compressor import runs
from compressor.commands.options import PATH, STORE, as_json
from compressor.console import Console, table
from compressor.errors import UserError

DAY_SECONDS = 24 * 3600
SHOWN = 12  # digits of a key

FOLDER = click.option(
    "--store",
    "folder",
    type=PATH,
    default=STORE,
    envvar="COMPRESS_STORE",
    metavar="DIR",
    show_default=True,
    help="The store.",
)


@click.group()
def store() -> None:
    """See what runs share, and make room.

    A stage that a run has finished, and the outputs of its teachers, serve every other run that would make the same.

    \b
    Examples:
      compress store list
      compress store prune --gigabytes 10
    """


@store.command("list")
@FOLDER
@as_json
def show(folder: Path, as_json: bool) -> None:
    """List the stages in the store and what they take, those that were not used for longest first.

    \b
    Example:
      compress store list
    """
    entries = _opened(folder).entries()
    if as_json:
        print(json.dumps([_facts(entry) for entry in entries], indent=1))
        return
    console, stages = Console.terminal(), [entry for entry in entries if not entry.is_view]
    views = [entry for entry in entries if entry.is_view]
    if stages:
        console.say(table(("key", "id", "stage", "accuracy", "made in", "size", "used"), map(_line, stages)))
    console.say(
        f"{len(stages)} stages, {_size(stages)}; {len(views)} views of teachers' outputs, {_size(views)}; in {folder}"
    )


@store.command()
@FOLDER
@click.option("--gigabytes", type=click.FloatRange(min=0), help="What may stay; what was not used for longest goes.")
@click.option("--days", type=click.FloatRange(min=0), help="What was not used for so many days goes.")
def prune(folder: Path, gigabytes: float | None, days: float | None) -> None:
    """Remove what was not used for longest; runs keep what they use, and what a run is making stays.

    Files that runs hold too (as hard links) take their room until those runs are removed.

    \b
    Examples:
      compress store prune --gigabytes 10
      compress store prune --days 30
    """
    if gigabytes is None and days is None:
        raise UserError("say what may stay: --gigabytes, --days, or both")
    most = float("inf") if gigabytes is None else gigabytes * 1e9
    since = 0.0 if days is None else time.time() - days * DAY_SECONDS
    removed = _opened(folder).make_room(most, unused_since=since)
    Console.terminal().say(f"{len(removed)} removed, {_size(removed)}; {folder} keeps the rest")


def _opened(folder: Path) -> "runs.SharedStore":
    """The store in a folder, which is not made if it is not there."""
    opened = runs.SharedStore(folder)
    if not opened.exists:
        raise UserError(f"there is no store {folder}; the first run makes one, or name another with --store")
    return opened


def _facts(entry: "runs.Entry") -> dict[str, Any]:
    row, known = entry.row, dict[str, Any]()
    if row is not None:
        accuracy = {"accuracy": row.accuracy.value, "split": row.accuracy.split}
        known = {"id": row.id, "stage": row.stage, **accuracy, "seconds": row.seconds}
    kind = "teacher's outputs" if entry.is_view else "stage"
    return {"key": entry.key, "kind": kind, **known, "size_bytes": entry.size_bytes, "used": round(entry.used)}


def _line(entry: "runs.Entry") -> tuple[str, ...]:
    row, used = entry.row, time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    made = (
        ("—",) * 4
        if row is None
        else (row.id, row.stage, f"{row.accuracy.value:.2%} {row.accuracy.split}", f"{row.seconds:.0f} s")
    )
    return entry.key[:SHOWN], *made, f"{entry.size_bytes / 1e6:.1f} MB", used


def _size(entries: "list[runs.Entry]") -> str:
    return f"{sum(entry.size_bytes for entry in entries) / 1e6:.1f} MB"


COMMANDS = (store,)
