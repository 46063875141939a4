"""Commands on an ONNX file."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from compressor import evaluation, plugins, report
from compressor.commands.options import PATH, Counts, as_json, check_folder_of, model_in
from compressor.console import Console, table
from compressor.errors import DataError, printable
from compressor.storage import write_text


class EngineName(click.ParamType):  # type: ignore[type-arg]  # generic since 8.4 only
    """The name of an installed engine."""

    name = "engine"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, if there is such an engine."""
        names = list(plugins.offered(plugins.ENGINES, "engine"))
        return str(click.Choice(names).convert(value, param, ctx))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """The installed engines."""
        names = plugins.offered(plugins.ENGINES, "engine")
        return click.Choice(list(names)).shell_complete(ctx, param, incomplete)


@click.command()
@click.argument("model", type=PATH, metavar="MODEL.onnx|DIR")
@click.option("--against", type=PATH, metavar="OTHER.onnx|DIR", help="Timed in turn; the same file by default.")
@click.option("--engine", type=EngineName(), default="onnxruntime", show_default=True, help="What runs the files.")
@click.option("--threads", type=Counts(), default="1", show_default=True, help="Threads on the CPU.")
@click.option("--batch", type=Counts(), default="1", show_default=True, help="Images at once.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@as_json
def bench(
    model: Path,
    against: Path | None,
    engine: str,
    threads: tuple[int, ...],
    batch: tuple[int, ...],
    device: str,
    as_json: bool,
) -> None:
    """Time an ONNX file, alone or in turn with another; of a run's folder, its model.onnx, or the engine's own file.

    \b
    Examples:
      compress bench runs/digits-resnet --against runs/digits-resnet/stages/teacher
      compress bench model.onnx --threads 1,2 --batch 1,64 --json > times.json
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cpu" and max(threads) > cores:
        print(f"warning: {max(threads)} threads on {cores} cores wait for one another", file=sys.stderr)
    other = None if against is None else model_in(against, engine)
    result = evaluation.bench(
        model_in(model, engine), other, engine=engine, threads=threads, batches=batch, device=device
    )
    if as_json:
        print(json.dumps(result.model_dump(mode="json"), indent=1))
        return
    console = Console.terminal()
    header = ["setting", "median ms", "95th percentile", "runs", "quiet"]
    header.append("against itself: noise" if other is None else f"against {other}")
    rows = []
    for entry in result.latency:
        figures = (f"{entry.median_ms:.3f}", f"{entry.p95_ms:.3f}", str(entry.runs), f"{entry.quiet:.0%}")
        words = report.speedup(entry) if other is None else report.speed(entry)
        rows.append([report.setting_name(entry), *figures, words])
    console.say(table(header, rows))
    for entry in result.latency:
        if entry.on_cpu:
            console.say(f"  left to others, such as the CPU: {', '.join(entry.on_cpu)}")
    machine, load = result.environment, max(entry.other_load for entry in result.latency)
    console.say(
        f"{machine.cpu}, {machine.cores} cores, ONNX Runtime {machine.onnxruntime}; other programs: {load} cores"
    )


@click.command()
@click.argument("model", type=PATH, metavar="MODEL.onnx|DIR")
@click.option("--page", type=PATH, metavar="FILE.html", help="Write a page as well.")
@as_json
def doctor(model: Path, page: Path | None, as_json: bool) -> None:
    """Show where a file's time goes on this machine and why it is slow; of a run's folder, its model.onnx.

    Any ONNX file with one image input will do. It takes half a minute or more: what might be faster is timed.

    \b
    Examples:
      compress doctor runs/digits-resnet --page why.html
      compress doctor model.onnx --json > why.json
    """
    if page is not None:
        check_folder_of(page)
    found = evaluation.diagnose(model_in(model))
    if page is not None:
        write_text(page, report.diagnosis_page(found))
    if as_json:
        print(json.dumps(found.model_dump(mode="json"), indent=1))
        return
    console = Console.terminal()
    console.say(
        table(
            ["operator", "output", "on", "count", "µs", "share", "GMAC/s"], report.diagnosis_rows(found), figures=True
        )
    )
    console.say(f"{found.microseconds:.0f} µs {found.timed_for} on one thread; {_threads(found)}")
    best = ", ".join(f"{best:.0f} in {name}" for name, best in found.best_gmacs_per_second.items())
    console.say(f"GMAC/s that this processor reaches in a convolution of 64 channels: {best}")
    if found.fixed_batch is not None:
        console.say(f"its batch is fixed at {found.fixed_batch}; export it with a dynamic one to run several at once")
    for finding in found.findings:
        console.say(f"{finding.share:.0%}, {finding.microseconds:.0f} µs: {finding.what}", style="bold")
        console.say(f"  {finding.measured}")
        console.say(f"  {finding.advice}")
    if not found.findings:
        console.say("nothing that was looked for costs time", style="bold")


def _threads(found: "evaluation.Diagnosis") -> str:
    """The time on other numbers of threads."""
    others = [(count, each) for count, each in found.by_threads.items() if count > 1]
    return ", ".join(f"{each:.0f} on {count}" for count, each in others)


@click.command()
@click.argument("model", type=PATH, metavar="MODEL.onnx|DIR")
@click.argument("images", type=PATH, nargs=-1, required=True, metavar="IMAGE_OR_FOLDER...")
@click.option("--top", type=click.IntRange(1, 65_536), default=3, show_default=True, help="How many classes.")
@as_json
def predict(model: Path, images: tuple[Path, ...], top: int, as_json: bool) -> None:
    """Label images, with probabilities, as the file's own metadata say; of a run's folder, its model.onnx.

    \b
    Examples:
      compress predict runs/digits-resnet photo.png
      compress predict model.onnx photos more/1.jpg --top 1 --json
    """
    readable, unreadable, found = 0, 0, []
    for each in evaluation.predict(model_in(model), images, top=top):
        if isinstance(each, DataError):
            unreadable += 1
            print(f"error: {printable(str(each))}", file=sys.stderr)
            continue
        readable += 1
        if as_json:
            found.append({"image": str(each.path), "classes": dict(each.classes)})
        else:
            shares = (f"{printable(label)} {share:.4f}" for label, share in each.classes)
            print("\t".join([printable(str(each.path)), *shares]))
    if as_json:
        print(json.dumps(found, indent=1))
    if unreadable:
        others = "; the others are above" if readable else ""
        raise DataError(f"{unreadable} image{'s' * (unreadable > 1)} could not be read{others}")


COMMANDS = (bench, doctor, predict)
