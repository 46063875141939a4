"""Tables of what layers take: measured here when they are asked for, or read from a file of another machine."""

import inspect
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compressor.config.spec import first_problem
from compressor.console import Console
from compressor.errors import UserError
from compressor.evaluation.costs import layers
from compressor.evaluation.costs.layers import VISITS, Layer
from compressor.storage import files

FOLDER = Path("compressor", "costs")  # in the user's cache
KEPT_AT_ONCE = 20  # layers; a kill loses no more
SMALLEST_FOOTPRINT = 2**18  # bytes, which any processor's caches hold

PRIVATE = """import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is imported

"""
MAIN = """

if __name__ == "__main__":
    import sys

    FOOTPRINT_BYTES, THREADS = {footprint_bytes}, {threads}
    WANTED = [
{wanted}
    ]
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {{Path(sys.argv[0]).name}} TABLE.json")
    print(f"timing {{len(WANTED)}} layers, about half a second each on a workstation", flush=True)
    times = measure(WANTED, footprint_bytes=FOOTPRINT_BYTES, threads=THREADS)
    partial = Path(f"{{sys.argv[1]}}.partial")
    partial.write_text(as_json(times, FOOTPRINT_BYTES, THREADS))
    partial.replace(sys.argv[1])
"""


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    layer: Layer
    microseconds: float = Field(ge=0, le=1e12, allow_inf_nan=False)


class _File(BaseModel):
    schema_: Literal[1] = Field(alias="schema")
    machine: dict[str, str]
    threads: int = Field(ge=1, le=4096)
    footprint_bytes: int = Field(ge=0, le=2**40)
    layers: list[_Row]


class CostTable(ABC):
    """The microseconds that layers take on one machine."""

    def __init__(self, known: Mapping[Layer, float]) -> None:
        self.known = dict(known)

    def of(self, wanted: Iterable[Layer]) -> Mapping[Layer, float]:
        """The time of each of these layers, among others."""
        if missing := sorted(set(wanted) - self.known.keys()):
            self.add(missing)
        return self.known

    @abstractmethod
    def add(self, missing: Sequence[Layer]) -> None:
        """Make known what layers take that are not."""


class GivenTable(CostTable):
    """The table in a file, which another machine may have made.

    Raises:
        UserError: it cannot be read, is no such table, or of several threads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = _read(path)
        if found.threads != 1:
            raise UserError(f"{path} is of {found.threads} threads; latency is that of one")
        self.machine = found.machine
        super().__init__({row.layer: row.microseconds for row in found.layers})

    def add(self, missing: Sequence[Layer]) -> None:
        """Refuse: nothing is measured here.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{self.path} lacks {len(missing)} layers that this network may have, such as {missing[0].in_words()}; "
            "make it again with `compress table` for this pipeline"
        )


class MeasuredTable(CostTable):
    """What layers take on this machine, each measured when it is first asked for, and kept in the user's cache.

    Args:
        footprint_bytes: of the network that the layers are in; rounded to a power of two.
        threads: of a session.
        console: where progress is shown.
    """

    def __init__(self, footprint_bytes: int, threads: int = 1, console: Console | None = None) -> None:
        self.footprint_bytes = rounded_footprint(footprint_bytes)
        self.threads, self.console = threads, console or Console()
        key = files.digest_json([layers.machine(), self.footprint_bytes, threads, _code()])
        self.path = _cache() / f"{key[:16]}.json"
        super().__init__(self._kept())

    def add(self, missing: Sequence[Layer]) -> None:
        """Measure them, and keep what is measured as it comes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.console.progress("timing layers", VISITS * len(missing)) as advance:
            for start in range(0, len(missing), KEPT_AT_ONCE):
                self.known |= layers.measure(
                    missing[start : start + KEPT_AT_ONCE],
                    footprint_bytes=self.footprint_bytes,
                    threads=self.threads,
                    advance=advance,
                )
                files.write_text(self.path, self.as_json())

    def _kept(self) -> dict[Layer, float]:
        """What earlier runs measured; nothing, and a line that says so, if it is damaged."""
        if not self.path.is_file():
            return {}
        try:
            return {row.layer: row.microseconds for row in _read(self.path).layers}
        except UserError as error:
            self.console.say(f"  {error}; its layers are timed again")
            return {}

    def as_json(self, wanted: Collection[Layer] | None = None) -> str:
        """The table, or its part about some layers, as a file holds it."""
        measured = self.of(wanted or ())
        known = self.known if wanted is None else {layer: measured[layer] for layer in wanted}
        return layers.as_json(known, self.footprint_bytes, self.threads)


def script_of(wanted: Iterable[Layer], footprint_bytes: int, threads: int = 1) -> str:
    """A Python script that measures these layers where it is run, with numpy and onnxruntime alone."""
    lines = "\n".join(f"        {layer!r}," for layer in sorted(set(wanted)))
    footprint_bytes = rounded_footprint(footprint_bytes)
    return PRIVATE + _code() + MAIN.format(wanted=lines, footprint_bytes=footprint_bytes, threads=threads)


def rounded_footprint(footprint_bytes: int) -> int:
    """The nearest power of two: networks of about one size share a table."""
    return int(2 ** round(math.log2(max(footprint_bytes, SMALLEST_FOOTPRINT))))


def _code() -> str:
    return inspect.getsource(layers)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / FOLDER


def _read(path: Path) -> _File:
    try:
        content: Any = json.loads(files.read_bytes(path, files.MAX_TEXT_BYTES))
        return _File.model_validate(content)
    except OSError as error:
        raise UserError(f"the table {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise UserError(f"{path} is no table of `compress table`: {first_problem(error)}") from error
    except ValueError as error:
        raise UserError(f"{path} is no table of `compress table`: {error}") from error
