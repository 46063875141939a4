"""What can go wrong, as one small hierarchy: every message says what is wrong, where, and what to do."""

MAX_LINE = 500  # characters
OUT_OF_MEMORY = (
    "an't allocate memory",  # torch's CPU allocator, on Linux
    "Cannot allocate memory",  # the operating system
    "not enough memory",  # torch's CPU allocator, elsewhere
    "out of memory",  # CUDA
    "bad_alloc",
    "Failed to allocate memory",  # ONNX Runtime
    "failed to map segment",  # the loader of shared libraries
    "can't start new thread",  # Python
)


INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {
    chr(code) for code in range(0xFE00, 0xFE10)
}


class CompressorError(Exception):
    """An error that the command line reports in words, without a traceback, before it exits with `exit_code`."""

    exit_code = 1


class UserError(CompressorError):
    """What the user gave is wrong: a spec, data, weights, a device, a folder. Exit code 2."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, shortened, or its type if it has none."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}…"


def printable(text: str) -> str:
    """Text on one line in which what would move a cursor, break a line or not be seen is an escape, as in `\\x1b`.

    Names come from anywhere: a file may be called `a` and, on a line of its own, `100% correct`.
    """
    return "".join(
        each if each.isprintable() and each not in INVISIBLE else each.encode("unicode_escape").decode()
        for each in text
    )


class SpecError(UserError):
    """The pipeline file or a `--set` option is wrong; each problem has a line of its own."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(printable(problem) for problem in problems))


class DataError(UserError):
    """The images are missing, unreadable, or do not fit the pipeline."""


class ArchitectureError(UserError):
    """The network cannot be built, or does not fit the data or the weights."""


class ArtifactError(UserError):
    """A saved artifact is damaged, or does not fit the code that reads it."""


class StageError(CompressorError):
    """A stage ran and failed: it diverged, a target was out of reach, an agreement was too low. Exit code 1."""


class LostError(StageError):
    """Another process of the run is gone. Exit code 1."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the CPU or the GPU; torch and ONNX Runtime say so only in the message."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


def pass_on_out_of_memory(error: BaseException) -> None:
    """Raise `error` again if memory ran out, so that it is reported as that."""
    if is_out_of_memory(error):
        raise error
