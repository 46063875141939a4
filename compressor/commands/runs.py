"""Commands that run a pipeline, or read what a run left."""

import json
import sys
from pathlib import Path

import click

from compressor import evaluation, report, runs
from compressor import pipeline as pipelines
from compressor.commands.options import (
    DEVICE,
    PATH,
    SHARED,
    STORE,
    as_json,
    check_folder_of,
    console_of,
    loudness,
    setting,
)
from compressor.config import yaml_file
from compressor.console import Console
from compressor.errors import ArtifactError, StageError, UserError
from compressor.storage import files


@click.command()
@click.argument("path", type=PATH, metavar="PIPELINE.yaml")
@click.option("--out", type=PATH, metavar="DIR", help="Folder of the run; runs/<name> by default.")
@setting
@DEVICE
@click.option("--fresh", is_flag=True, help="Start over; nothing is taken from the store, either.")
@SHARED
@click.option("--no-store", is_flag=True, help="Share nothing with other runs.")
@loudness
def run(
    path: Path,
    out: Path | None,
    overrides: tuple[str, ...],
    device: str,
    fresh: bool,
    store: Path | None,
    no_store: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run a pipeline, or resume where an earlier run stopped. A stage that any run has finished is not repeated.

    \b
    Examples:
      compress run pipelines/digits_resnet.yaml
      compress run mine.yaml --set stages.teacher.epochs=5 --set "data.size=[64, 64]"
      compress run mine.yaml --out runs/second --set seed=1 --quiet
    """
    console = console_of(quiet, verbose)
    pipeline = _load(path, overrides)
    out = out or Path("runs") / pipeline.name
    result = runs.run(
        pipeline, out, device=device, fresh=fresh, store=None if no_store else store or STORE, console=console
    )
    show(result, console)
    console.say(f"{out / 'model.onnx'} is the result; {out / 'report.html'} says what it is worth.")


@click.command()
@click.argument("path", type=PATH, metavar="PIPELINE.yaml")
@setting
@as_json
@loudness
def validate(path: Path, overrides: tuple[str, ...], as_json: bool, quiet: bool, verbose: bool) -> None:
    """Check a pipeline: its settings, then a dry run of every stage on a few synthetic images. Nothing is trained.

    \b
    Examples:
      compress validate pipelines/digits_resnet.yaml
      compress validate mine.yaml --set stages.float.model=torchvision:resnet50
    """
    console = console_of(quiet or as_json, verbose)
    pipeline = pipelines.completed(_load(path, overrides), console)
    labels, preprocess = pipeline.data.labels(), pipeline.data.preprocess()
    shape = " x ".join(str(length) for length in preprocess.input_shape(1)[1:])
    console.say(f"{pipeline.name}: {len(pipeline.stages)} stages, {len(labels)} classes, images {shape}", style="bold")
    for warning in pipeline.warnings:
        console.say(f"  warning: {warning}")
    stages = runs.try_stages(pipeline, labels, preprocess, console=console)
    console.say("It works: every stage passed the dry run, and the last network ran in ONNX Runtime.", "bold")
    if as_json:
        found = {"pipeline": pipeline.name, "classes": len(labels), "warnings": pipeline.warnings, "stages": stages}
        print(json.dumps(found, indent=1))


@click.command("table")
@click.argument("path", type=PATH, metavar="PIPELINE.yaml")
@click.option("-o", "--out", type=PATH, metavar="TABLE.json", help="Time the layers here, and write the table.")
@click.option("--script", type=PATH, metavar="FILE.py", help="Write a script that does so elsewhere.")
@setting
@loudness
def make_table(
    path: Path, out: Path | None, script: Path | None, overrides: tuple[str, ...], quiet: bool, verbose: bool
) -> None:
    """Time the layers that a pipeline's targets of latency choose from, here or on the machine where the file will run.

    The script needs numpy and onnxruntime alone. Name what it writes in the pipeline: target: {..., table: pi.json}.

    \b
    Examples:
      compress table mine.yaml -o workstation.json
      compress table mine.yaml --script pi.py        # then there: python pi.py pi.json
    """
    if out is None and script is None:
        raise UserError("name a file: a table with -o, or a script with --script")
    for file in filter(None, (out, script)):
        check_folder_of(file)
    console = console_of(quiet, verbose)
    wanted = runs.layers_for(pipelines.completed(_load(path, overrides), console), console)
    if script is not None:
        files.write_text(script, evaluation.script_of(wanted.layers, wanted.footprint_bytes))
        console.say(f"{script} times {len(wanted.layers)} layers where it is run: python {script.name} TABLE.json")
    if out is not None:
        table = evaluation.MeasuredTable(wanted.footprint_bytes, console=console)
        files.write_text(out, table.as_json(wanted.layers))
        console.say(f"{out} holds the times of {len(wanted.layers)} layers on this machine.")


@click.command("report")
@click.argument("folder", type=PATH, metavar="DIR")
def write_report(folder: Path) -> None:
    """Write the reports of a run again, from its report.json alone.

    \b
    Example:
      compress report runs/digits-resnet
    """
    result = report.Report.load(folder)
    runs.check_report_may_be_written(folder)
    report.write(result, folder)
    show(result, Console.terminal())


@click.command()
@click.argument("one", type=PATH, metavar="RUN_A")
@click.argument("other", type=PATH, metavar="RUN_B")
@as_json
def compare(one: Path, other: Path, as_json: bool) -> None:
    """Show two runs side by side: what they ship, on the same test images where they are the same.

    \b
    Example:
      compress compare runs/digits-resnet runs/second
    """
    sides = runs.load_run(one), runs.load_run(other)
    if as_json:
        print(json.dumps(runs.comparison_of(*sides), indent=1))
        return
    console = Console.terminal()
    console.say(runs.comparison_table(*sides))
    for remark in runs.comparison_remarks(*sides):
        console.say(f"  {remark}")


@click.command()
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("--out", type=PATH, metavar="DIR", help="Folder of the repetition; DIR-again by default.")
@DEVICE
@click.option(
    "--factory",
    "trusted",
    multiple=True,
    metavar="MODULE:NAME",
    help="Import this one, which the pipeline in DIR names as a model. May be given several times.",
)
@click.option("--trust-code", is_flag=True, help="Import whatever the pipeline in DIR names as a model.")
@loudness
def reproduce(
    folder: Path, out: Path | None, device: str, trusted: tuple[str, ...], trust_code: bool, quiet: bool, verbose: bool
) -> None:
    """Run a recorded pipeline again, and tell drift from noise. Code that it names is imported only if you say so.

    \b
    Examples:
      compress reproduce runs/digits-resnet
      compress reproduce downloads/run --factory networks:LeNet
    """
    console = console_of(quiet, verbose)
    recorded = runs.load_run(folder)
    pipeline = pipelines.Pipeline.parse(yaml_file.parse(recorded[1].spec, str(folder / "report.json")))
    if not trust_code and (others := sorted(pipeline.factories - {*trusted})):
        raise ArtifactError(
            f"{folder / 'report.json'} names code, {', '.join(others)}, which is imported only if you say so: read it, "
            f"then add --factory {others[0]}"
        )
    pipeline = pipelines.without_places(pipeline)
    _find_networks(pipeline, Path.cwd())
    if [stage.id for stage in pipeline.stages] != [row.id for row in recorded[1].rows]:
        raise ArtifactError(f"{folder / 'report.json'}: its rows are not of the stages of its pipeline")
    if out is None:
        out = folder.resolve().with_name(f"{folder.resolve().name}-again")
        if out.exists():
            raise ArtifactError(f"{out} exists; remove it, or go on from what is in it with --out {out}")
    elif out.exists():
        console.say(f"{out} exists: stages in it that fit are taken from there, and not repeated")
    again = out, runs.run(pipeline, out, device=device, console=console)
    table, differs = runs.drift(recorded, again)
    console.say(table)
    for remark in runs.surroundings(recorded[1], again[1]):
        console.say(f"  {remark}")
    if differs:
        raise StageError(f"{folder} was not reproduced: what differs is marked above")
    console.say(f"{folder} was reproduced, in {out}.", style="bold")


def show(result: "report.Report", console: Console) -> None:
    """The table of a report, its remarks and its verdict."""
    console.say("")
    console.say(report.to_table(result))
    console.say("  Each factor is over the baseline timed in turn with that row; other rows were timed between.")
    for remark in report.remarks(result):
        console.say(f"  {remark}")
    console.say(report.headline(result))
    console.say(report.verdict(result), style="bold")


def _load(path: Path, overrides: tuple[str, ...]) -> "pipelines.Pipeline":
    """The pipeline that is named; what it imports may lie beside it, or where one stands."""
    pipeline = pipelines.Pipeline.load(path, overrides)
    _find_networks(pipeline, path.absolute().parent, Path.cwd())
    return pipeline


def _find_networks(pipeline: "pipelines.Pipeline", *folders: Path) -> None:
    """Let networks of one's own be imported from these folders; without one, nothing is."""
    if pipeline.factories:
        sys.path += [str(folder) for folder in folders]


COMMANDS = (run, validate, make_table, write_report, compare, reproduce)
