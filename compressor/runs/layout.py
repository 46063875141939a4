"""The folder of a run: what lies in it, whose it is, and one run at a time in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from compressor.errors import UserError
from compressor.export.onnx_file import SIGNED
from compressor.models.artifact import ONNX, file_for
from compressor.report.writing import SIGNS, WRITTEN, is_written
from compressor.runs.store import ROW
from compressor.runs.trackers.tensor_board import EVENTS
from compressor.storage import files
from compressor.storage.checkpoints import LAST_GOOD

SPEC = "pipeline.yaml"
SPEC_HEADER = "# As it was run, overrides applied; written by compress run.\n"
STAGES = "stages"
CHECKPOINTS = "checkpoints"
SOFT_LABELS = "soft_labels"
SEEDS = "seeds"
TRIED = ".tried"  # the digest of what passed the dry run
LOCK = ".compress.lock"
SEARCH = "study.db"  # what makes a folder that of a search
OWN_FILES = tuple(file_for(engine) for engine in sorted(SIGNED))  # beside model.onnx
RESULTS = (SPEC, ONNX, *OWN_FILES, STAGES, CHECKPOINTS, SOFT_LABELS, SEEDS, LAST_GOOD, EVENTS, TRIED, *WRITTEN)


def prepare(folder: Path) -> None:
    """Make the run's folder, or use one that an earlier run made; nobody else's files are overwritten.

    Raises:
        UserError: it holds files that no run made, or a search, or a link that would lead out of it, or cannot be made.
    """
    if (folder / SEARCH).exists():
        raise UserError(f"{folder} is the folder of a search; choose another --out")
    try:
        for name in (*RESULTS, LOCK):
            if (odd := files.odd_in(folder / name)) is not None:
                raise UserError(
                    f"{odd} is a link, a pipe or a device, or lies too deep, in the folder of a run; remove it, or "
                    "choose another --out"
                )
        for path in (folder / name for name in RESULTS):
            if path.exists() and not _by_a_run(folder):
                raise UserError(f"{path} was not made by an earlier run and would be overwritten; choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a path with a NUL byte is a ValueError
        raise UserError(f"the folder {folder} cannot be used: {error}") from error


def check_report_may_be_written(folder: Path) -> None:
    """Refuse to write a report over files that no run made.

    Raises:
        UserError: there is one.
    """
    for path in (folder / name for name in SIGNS):
        if path.exists() and not _by_a_run(folder) and not is_written(path):
            raise UserError(f"{path} was not made by a run and would be overwritten; move it elsewhere")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second run out of the folder; the lock ends with the process, however that ends.

    Raises:
        UserError: another run works in it.
    """
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"another run is working in {folder}; wait until it ends, or choose another --out") from error


def sweep(folder: Path) -> None:
    """Remove what a run that was killed left half-made."""
    for each in (folder, folder / STAGES, folder / SOFT_LABELS, folder / LAST_GOOD, *(folder / CHECKPOINTS).glob("*")):
        files.sweep(each)


def start_over(folder: Path) -> None:
    """Remove what earlier runs made here, and nothing else."""
    for name in (SPEC, ONNX, *OWN_FILES, TRIED, *WRITTEN, CHECKPOINTS, SOFT_LABELS):
        files.remove(folder / name)
    for row in (folder / STAGES).glob(f"*/{ROW}"):
        files.remove(row.parent)


def _by_a_run(folder: Path) -> bool:
    """Whether a run made this folder."""
    spec = folder / SPEC
    return (folder / LOCK).exists() or (spec.is_file() and files.read_bytes(spec).startswith(SPEC_HEADER.encode()))
