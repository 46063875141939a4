"""Whoever times has the machine alone: trials that train beside it pause until it is done."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, ReadWriteLock


class Lease:
    """The machine, which many trials of one user may train on, or one may time on.

    Those who train share a lock; who times waits for it alone, and holds a gate meanwhile, so that nobody new gets in
    before. Locks end with their processes.
    """

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or Path(tempfile.gettempdir(), f"compressor-{getattr(os, 'getuid', lambda: 'user')()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        self._gate = FileLock(folder / "gate.lock")
        self._machine = ReadWriteLock(folder / "machine.lock", is_singleton=False)
        self._trains = False

    @contextmanager
    def training(self) -> Iterator[None]:
        """Use the machine beside others. Nobody waits within it for what others make, or all would wait."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def give_way(self) -> None:
        """Within `training`: let those who wait to time go first."""
        self._leave()
        self._enter()

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Have the machine alone."""
        with self._gate, self._machine.write_lock():
            yield

    def _enter(self) -> None:
        with self._gate:
            self._machine.acquire_read()
            self._trains = True

    def _leave(self) -> None:
        if self._trains:  # not if it was interrupted as it gave way
            self._trains = False
            self._machine.release()
