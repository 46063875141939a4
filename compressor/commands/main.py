"""The command line: what is typed, and what it ends with.

Commands are in the modules beside this one; none imports torch before it has to.
"""

import errno
import io
import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import version

import click

from compressor.commands import about, files, runs, search, store
from compressor.console import launched
from compressor.errors import CompressorError, LostError, SpecError, first_line, is_out_of_memory, printable

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
WRONG = 2


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="compress COMMAND --help has examples of each.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks and warnings.")
@click.version_option(version("compressor"), prog_name="compressor")
@click.pass_context
def compress(context: click.Context, debug: bool) -> None:
    """From a trained vision network to a small, fast int8 ONNX file, measured at every step.

    \b
    Examples:
      compress init mine.yaml
      compress run mine.yaml
    """
    context.obj = debug


for _module in (runs, search, store, files, about):
    for _command in _module.COMMANDS:
        compress.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 (done), 2 (bad input) or 1 (failed)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without box characters shows the rest
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = ["--debug"] * debug + [word for word in words if word != "--debug"]  # wherever it stands
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
                logging.disable(logging.WARNING)  # libraries warn of one another's ways
            code = compress.main(words, prog_name="compress", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return WRONG
    except click.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        said, code = _in_words(error)
        rank = launched()[0]
        if rank and (isinstance(error, LostError) or not _joined()):
            return code  # the first process says it
        shown = said if isinstance(error, SpecError) else printable(said)
        print(f"error in process {rank}:" if rank else "error:", shown, file=sys.stderr)
        return code
    finally:
        logging.disable(logging.NOTSET)


def _joined() -> bool:
    """Whether this process works with others by now; before, they all fail alike."""
    processes = sys.modules.get("compressor.processes")
    return processes is not None and processes.count() > 1


def _in_words(error: Exception) -> tuple[str, int]:
    """The message for an error, and the exit code."""
    if isinstance(error, CompressorError):
        return str(error), error.exit_code
    if is_out_of_memory(error):
        return f"out of memory ({first_line(error)}); lower data.size, or use a larger machine", 1
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        where = f" at {error.filename}" if error.filename else ""
        return f"the disk is full{where}; free some space: what is finished is kept, and the same command resumes", 1
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be used: {error.strerror or error}; repair it, or name another", WRONG
    return f"{type(error).__name__}: {first_line(error)} (this is a bug in compressor; --debug shows where)", 1
