"""The command line: what is typed, what is printed, and the exit code."""

import argparse
import errno
import io
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.table import Table

import compressor
from compressor.config import yaml_file as yaml_source
from compressor.console import Console
from compressor.errors import CompressorError, DataError, StageError, UserError, first_line, is_out_of_memory
from compressor.evaluation.benchmark import bench
from compressor.evaluation.prediction import predict
from compressor.pipeline.pipeline import Pipeline
from compressor.pipeline.schema import json_schema
from compressor.pipeline.stage import discover
from compressor.report.report import JSON, Report
from compressor.report.tables import to_table
from compressor.report.templating import TEMPLATES
from compressor.report.wording import headline, remarks, setting_name, speed, speedup, verdict
from compressor.report.writing import write
from compressor.runs import comparison
from compressor.runs.dry_run import rehearse
from compressor.runs.runner import run
from compressor.storage import files

LARGEST_COUNT = 65_536
SCHEMA = "compressor.schema.json"
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 (done), 2 (bad input) or 1 (failed)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without box characters shows the rest
    options = _parser().parse_args(arguments, argparse.Namespace(debug=False))
    try:
        with warnings.catch_warnings():
            if not options.debug:
                warnings.simplefilter("ignore")
                logging.getLogger("torch").setLevel(logging.ERROR)  # it warns of torchao's ways, and its own
            options.command(options)
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        words, code = _in_words(error)
        print(f"error: {words}", file=sys.stderr)
        return code
    return 0


def _in_words(error: Exception) -> tuple[str, int]:
    """What is said of an error, and the exit code."""
    if isinstance(error, CompressorError):
        return str(error), error.exit_code
    if is_out_of_memory(error):
        return f"out of memory ({first_line(error)}); lower data.size, or use a larger machine", 1
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        where = f" at {error.filename}" if error.filename else ""
        return f"the disk is full{where}; free some space: what is finished is kept, and the same command goes on", 1
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror or error}; repair it, or name another", 2
    return f"{type(error).__name__}: {first_line(error)} (this is a fault of compressor; --debug shows where)", 1


def _run(options: argparse.Namespace) -> None:
    console = Console.terminal()
    pipeline = _pipeline(options)
    out = options.out or Path("runs") / pipeline.name
    result = run(pipeline, out, device=options.device, fresh=options.fresh, console=console)
    _show(result, console)
    console.say(f"{out / 'model.onnx'} is the result; {out / 'report.html'} says what it is worth.")


def _pipeline(options: argparse.Namespace) -> Pipeline:
    """The pipeline that is named; what it imports may lie beside it, or where one stands."""
    pipeline = Pipeline.load(options.pipeline, options.set)
    sys.path += [str(options.pipeline.absolute().parent), str(Path.cwd())]
    return pipeline


def _validate(options: argparse.Namespace) -> None:
    console = Console.terminal()
    pipeline = _pipeline(options)
    labels, preprocess = pipeline.data.labels(), pipeline.data.preprocess()
    shape = " x ".join(str(length) for length in preprocess.input_shape(1)[1:])
    console.say(f"{pipeline.name}: {len(pipeline.stages)} stages, {len(labels)} classes, images {shape}", style="bold")
    for warning in pipeline.warnings:
        console.say(f"  warning: {warning}")
    rehearse(pipeline, labels, preprocess, console=console)
    console.say(
        "It can run: every stage did its work on a few synthetic images, and the last network ran in ONNX Runtime.",
        style="bold",
    )


def _schema(options: argparse.Namespace) -> None:
    print(_schema_text(), end="")


def _schema_text() -> str:
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def _init(options: argparse.Namespace) -> None:
    path: Path = options.pipeline
    if path.name == SCHEMA:
        raise UserError(f"{SCHEMA} is the name of the schema that is written beside a pipeline; name another file")
    if path.exists():
        raise UserError(f"{path} is there already; name another file")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; make it first")
    template = (TEMPLATES / "pipeline.yaml").read_text(encoding="utf-8")
    files.write_text(path.with_name(SCHEMA), _schema_text())
    files.write_text(path, template.replace("pipeline.yaml", path.name))
    Console.terminal().say(
        f"{path} is a pipeline to start from, and {SCHEMA} beside it is for your editor; compress run {path} runs it."
    )


def _report(options: argparse.Namespace) -> None:
    result = Report.load(options.run)
    write(result, options.run)
    _show(result, Console.terminal())


def _show(result: Report, console: Console) -> None:
    console.say("")
    console.say(to_table(result))
    console.say("  Each factor is over the baseline timed in turn with that row; other rows were timed between.")
    for remark in remarks(result):
        console.say(f"  {remark}")
    console.say(headline(result))
    console.say(verdict(result), style="bold")


def _bench(options: argparse.Namespace) -> None:
    result = bench(
        options.model, options.against, threads=options.threads, batches=options.batch, device=options.device
    )
    console = Console.terminal()
    table = Table("setting", "median ms", "95th percentile", "rounds", header_style="bold")
    table.add_column("against itself: noise" if options.against is None else f"against {options.against}")
    for entry in result.latency:
        figures = (f"{entry.median_ms:.3f}", f"{entry.p95_ms:.3f}", str(entry.runs))
        table.add_row(setting_name(entry), *figures, speedup(entry) if options.against is None else speed(entry))
    console.say(table)
    for entry in result.latency:
        if entry.on_cpu:
            console.say(f"  left to the CPU: {', '.join(entry.on_cpu)}")
    machine = result.environment
    others = max(entry.other_load for entry in result.latency)
    console.say(
        f"{machine.cpu}, {machine.cores} cores, ONNX Runtime {machine.onnxruntime}; other programs: {others} cores"
    )
    if options.json is not None:
        files.write_json(options.json, result.model_dump(mode="json"))
        console.say(f"{options.json} holds these figures.")


def _predict(options: argparse.Namespace) -> None:
    unreadable = 0
    for found in predict(options.model, options.images, top=options.top):
        if isinstance(found, DataError):
            unreadable += 1
            print(f"error: {found}", file=sys.stderr)
        else:
            print(f"{found.path}\t" + "\t".join(f"{label} {share:.4f}" for label, share in found.classes))
    if unreadable:
        raise DataError(f"{unreadable} image{'s' * (unreadable > 1)} could not be read; the others are above")


def _compare(options: argparse.Namespace) -> None:
    one, other = (comparison.load(folder) for folder in (options.one, options.other))
    console = Console.terminal()
    console.say(comparison.to_table(one, other))
    for remark in comparison.remarks(one, other):
        console.say(f"  {remark}")


def _reproduce(options: argparse.Namespace) -> None:
    console = Console.terminal()
    recorded = comparison.load(options.run)
    sys.path.append(str(Path.cwd()))  # for networks of one's own
    pipeline = Pipeline.parse(yaml_source.parse(recorded[1].spec, str(options.run / JSON)))
    out = options.out or options.run.with_name(f"{options.run.name}-again")
    again = out, run(pipeline, out, device=options.device, console=console)
    table, differs = comparison.drift(recorded, again)
    console.say(table)
    for remark in comparison.surroundings(recorded[1], again[1]):
        console.say(f"  {remark}")
    if differs:
        raise StageError(f"{options.run} was not reproduced: what differs is marked above")
    console.say(f"{options.run} was reproduced, in {out}.", style="bold")


def _stages(options: argparse.Namespace) -> None:
    table = Table("stage", "what it does", "example", header_style="bold")
    for tag, stage in discover().items():
        example = ", ".join(f"{key}: {value}" for key, value in stage.example.items())
        table.add_row(tag, (stage.__doc__ or "").partition("\n")[0], f"{{{example}}}")
    Console.terminal().say(table)


def _parser() -> argparse.ArgumentParser:
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks and warnings")
    parser = argparse.ArgumentParser(prog="compress", description=compressor.__doc__, parents=[debug])
    parser.add_argument("--version", action="version", version=f"compressor {version('compressor')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    runs = commands.add_parser("run", parents=[debug], help="run a pipeline; go on where an earlier run stopped")
    runs.add_argument("pipeline", type=Path, metavar="PIPELINE.yaml")
    runs.add_argument("--out", type=Path, metavar="DIR", help="default: runs/<name>")
    runs.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. stages.teacher.epochs=5")
    runs.add_argument("--device", default="auto", metavar="auto|cpu|cuda", help="where networks train")
    runs.add_argument("--fresh", action="store_true", help="start over")
    runs.set_defaults(command=_run)

    validate = commands.add_parser(
        "validate",
        parents=[debug],
        help="say whether a pipeline can end: its spec, and every stage on synthetic images",
    )
    validate.add_argument("pipeline", type=Path, metavar="PIPELINE.yaml")
    validate.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    validate.set_defaults(command=_validate)

    reports = commands.add_parser(
        "report", parents=[debug], help="write the reports of a run again from its report.json"
    )
    reports.add_argument("run", type=Path, metavar="DIR")
    reports.set_defaults(command=_report)

    benches = commands.add_parser("bench", parents=[debug], help="time an ONNX file, alone or in turn with another")
    benches.add_argument("model", type=Path, metavar="MODEL.onnx")
    benches.add_argument("--against", type=Path, metavar="OTHER.onnx", help="timed in turn; default: the same file")
    benches.add_argument("--threads", type=_count, nargs="+", default=[1], metavar="N")
    benches.add_argument("--batch", type=_count, nargs="+", default=[1], metavar="N")
    benches.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    benches.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    benches.set_defaults(command=_bench)

    predicts = commands.add_parser("predict", parents=[debug], help="labels and probabilities of images")
    predicts.add_argument("model", type=Path, metavar="MODEL.onnx")
    predicts.add_argument("images", type=Path, metavar="IMAGE_OR_FOLDER")
    predicts.add_argument("--top", type=_count, default=3, metavar="N", help="how many classes; default: 3")
    predicts.set_defaults(command=_predict)

    compares = commands.add_parser("compare", parents=[debug], help="two runs side by side")
    compares.add_argument("one", type=Path, metavar="RUN_A")
    compares.add_argument("other", type=Path, metavar="RUN_B")
    compares.set_defaults(command=_compare)

    reproduces = commands.add_parser(
        "reproduce", parents=[debug], help="run a recorded pipeline again; say what drifted"
    )
    reproduces.add_argument("run", type=Path, metavar="DIR")
    reproduces.add_argument("--out", type=Path, metavar="DIR", help="default: DIR-again")
    reproduces.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    reproduces.set_defaults(command=_reproduce)

    stages = commands.add_parser("stages", parents=[debug], help="list the installed stages")
    stages.set_defaults(command=_stages)

    schema = commands.add_parser("schema", parents=[debug], help="print the JSON Schema of a pipeline file")
    schema.set_defaults(command=_schema)

    init = commands.add_parser("init", parents=[debug], help="write a commented pipeline to start from")
    init.add_argument("pipeline", type=Path, nargs="?", default=Path("pipeline.yaml"), metavar="PIPELINE.yaml")
    init.set_defaults(command=_init)
    return parser


def _count(text: str) -> int:
    """A number of threads, images or classes, as typed."""
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST_COUNT:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number from 1 to {LARGEST_COUNT}")
    return int(text)
