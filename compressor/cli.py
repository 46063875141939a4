"""The command line: `compress run`, `compress report`, `compress stages`."""

import argparse
import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

import compressor
from compressor import report as reporting
from compressor.console import Console
from compressor.errors import CompressorError, first_line
from compressor.pipeline import Pipeline
from compressor.report import Report
from compressor.runner import run
from compressor.stage import discover

INTERRUPTED = 130


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
    except CompressorError as error:
        if options.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        print(
            f"error: {type(error).__name__}: {first_line(error)} (this is a fault of compressor; --debug shows where)",
            file=sys.stderr,
        )
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    console = Console.terminal()
    pipeline = Pipeline.load(options.pipeline, options.set)
    out = options.out or Path("runs") / pipeline.name
    result = run(pipeline, out, device=options.device, fresh=options.fresh, console=console)
    _show(result, console)
    console.say(f"{out / 'model.onnx'} is the result; {out / 'report.md'} says what it is worth.")


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

    reports = commands.add_parser(
        "report", parents=[debug], help="write the reports of a run again from its report.json"
    )
    reports.add_argument("run", type=Path, metavar="DIR")
    reports.set_defaults(command=_report)

    stages = commands.add_parser("stages", parents=[debug], help="list the installed stages")
    stages.set_defaults(command=_stages)
    return parser


if __name__ == "__main__":
    sys.exit(main())
