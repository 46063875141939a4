"""The command line: what is typed, what is printed, and the exit code."""

import argparse
import errno
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

import compressor
from compressor import files
from compressor import report as reporting
from compressor.console import Console
from compressor.errors import CompressorError, UserError, first_line, is_out_of_memory
from compressor.pipeline import Pipeline
from compressor.rehearsal import rehearse
from compressor.report import Report
from compressor.runner import run
from compressor.schema import json_schema
from compressor.stage import discover

INTERRUPTED = 130
SCHEMA = "compressor.schema.json"
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 (done), 2 (bad input), 1 (failed) or 130 (interrupted)."""
    options = _parser().parse_args(arguments, argparse.Namespace(debug=False))
    sys.path.append(str(Path.cwd()))  # package.module:Factory is found where one stands
    try:
        with warnings.catch_warnings():
            if not options.debug:
                warnings.simplefilter("ignore")
                logging.getLogger("torch").setLevel(logging.ERROR)  # it warns of torchao's ways, and its own
            options.command(options)
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
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
    if isinstance(error, OSError) and error.errno in NOT_ALLOWED:
        return f"{error.filename or 'a file'} cannot be written: {error.strerror}; choose another --out", 2
    return f"{type(error).__name__}: {first_line(error)} (this is a fault of compressor; --debug shows where)", 1


def _run(options: argparse.Namespace) -> None:
    console = Console.terminal()
    pipeline = Pipeline.load(options.pipeline, options.set)
    out = options.out or Path("runs") / pipeline.name
    result = run(pipeline, out, device=options.device, fresh=options.fresh, console=console)
    _show(result, console)
    console.say(f"{out / 'model.onnx'} is the result; {out / 'report.md'} says what it is worth.")


def _validate(options: argparse.Namespace) -> None:
    console = Console.terminal()
    pipeline = Pipeline.load(options.pipeline, options.set)
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
    if path.exists():
        raise UserError(f"{path} is there already; name another file")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; make it first")
    template = Path(__file__).with_name("template.yaml").read_text(encoding="utf-8")
    files.write_text(path.with_name(SCHEMA), _schema_text())
    files.write_text(path, template.replace("pipeline.yaml", path.name))
    Console.terminal().say(
        f"{path} is a pipeline to start from, and {SCHEMA} beside it is for your editor; compress run {path} runs it."
    )


def _report(options: argparse.Namespace) -> None:
    result = Report.load(options.run)
    result.write(options.run)
    _show(result, Console.terminal())


def _show(result: Report, console: Console) -> None:
    console.say("")
    console.say(reporting.to_table(result))
    for remark in reporting.remarks(result):
        console.say(f"  {remark}")
    console.say(reporting.headline(result), style="bold")


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

    stages = commands.add_parser("stages", parents=[debug], help="list the installed stages")
    stages.set_defaults(command=_stages)

    schema = commands.add_parser("schema", parents=[debug], help="print the JSON Schema of a pipeline file")
    schema.set_defaults(command=_schema)

    init = commands.add_parser("init", parents=[debug], help="write a commented pipeline to start from")
    init.add_argument("pipeline", type=Path, nargs="?", default=Path("pipeline.yaml"), metavar="PIPELINE.yaml")
    init.set_defaults(command=_init)
    return parser


if __name__ == "__main__":
    sys.exit(main())
