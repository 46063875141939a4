"""The store that runs share: finished stages by the digest of what they were made from, and teachers' outputs.

    STORE/stages/KEY/         a stage's folder, sealed, as in a run
    STORE/locks/KEY.lock      held by the run that makes this stage
    STORE/soft_labels/        outputs of teachers, one file for each view

Runs of one machine or of several on one file system use it at the same time: what is in it appears and goes whole.
"""

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from compressor.config.spec import validated_copy
from compressor.errors import UserError
from compressor.report.report import Scored
from compressor.runs.layout import SOFT_LABELS, STAGES
from compressor.runs.store import ROW, name_of, row_in
from compressor.storage import files

LOCKS = "locks"
LIMIT_BYTES = 50 * 10**9
RECENT_SECONDS = 24 * 3600  # what a run has just used, it may need again; nothing takes that long to write
LOCK_MODE = 0o666  # for other users, as far as the mask allows
FOLDERS = (STAGES, LOCKS, SOFT_LABELS)
KEY = re.compile(r"[0-9a-f]{64}")
SOFT_LABEL = re.compile(r"[0-9a-f]{64}\.safetensors")

Say = Callable[[str], object]


@dataclass(frozen=True)
class Entry:
    """Something in the store: a stage, with its row, or one view of a teacher's outputs."""

    path: Path
    row: Scored | None  # of a stage; None if another version wrote it
    size_bytes: int
    used: float  # seconds since 1970

    @property
    def key(self) -> str:
        """The digest of what it was made from."""
        return self.path.name.partition(".")[0]

    @property
    def is_view(self) -> bool:
        """Whether it is a view of a teacher's outputs, and no stage."""
        return self.path.suffix == ".safetensors"


@dataclass(frozen=True)
class SharedStore:
    """A store in `folder`, which need not exist yet.

    Attributes:
        takes: whether runs take what is there; if not, they make it again, and keep that.
        limit_bytes: what all of it may take; what was not used for longest goes first.
    """

    folder: Path
    takes: bool = True
    limit_bytes: int = LIMIT_BYTES

    @property
    def soft_labels(self) -> Path:
        """The folder of teachers' outputs."""
        return self.folder / SOFT_LABELS

    @property
    def exists(self) -> bool:
        """Whether a run has made it."""
        return all((self.folder / name).is_dir() for name in FOLDERS)

    def prepare(self) -> None:
        """Make the folders, or check those that are there.

        Raises:
            UserError: they cannot be made or written, or are links.
        """
        choose = "choose another --store, or --no-store"
        for folder in (self.folder / name for name in FOLDERS):
            if folder.is_symlink():
                raise UserError(f"{folder} is a link; remove it, or {choose}")
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"the store {self.folder} cannot be used: {error}; {choose}") from error
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise UserError(f"the store {self.folder} cannot be used: {folder} may not be written; {choose}")

    @contextmanager
    def making(self, key: str, say: Say) -> Iterator[None]:
        """Keep other runs from making this stage; if one does already, wait until it is done or has died."""
        lock = self._lock(key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"  another run is making the same; waiting for it ({lock.lock_file})")
            lock.acquire()
        try:
            files.sweep(self._stages, key)
            yield
        finally:
            lock.release()

    def holds(self, key: str) -> bool:
        """Whether this stage is kept."""
        return (self._stages / key).exists()

    def take(self, key: str, stage_id: str, target: Path, say: Say) -> bool:
        """Put this stage into `target`, under the name that it has in this run; False if the store lacks it."""
        entry = self._stages / key
        if not self.takes or not self.holds(key):
            return False
        odd = files.odd_in(entry)
        damage = f"{odd} is a link, a pipe or a device" if odd is not None else files.damaged(entry)
        row = row_in(entry) if damage is None else None
        if row is None:
            say(f"  {damage or f'{entry / ROW} is of another version'}; it is removed from the store")
            files.remove(entry)
            return False
        with files.whole_folder(target) as folder:
            for file in entry.iterdir():
                if file.name not in (ROW, files.SEAL):
                    files.link(file, folder / file.name)
            row = validated_copy(row, id=stage_id, artifact=name_of(target))
            files.write_text(folder / ROW, row.model_dump_json(indent=1) + "\n")
        _use(entry)
        return True

    def offer(self, key: str, made: Path, say: Say) -> None:
        """`keep`, unless the store has it, or another run is making the same, which will keep it."""
        if self.holds(key):
            return
        try:
            with self._lock(key).acquire(timeout=0):
                if not self.holds(key):
                    self.keep(key, made, say)
        except Timeout:
            return
        except OSError as error:
            say(f"  the store cannot keep it: {error}")

    def keep(self, key: str, made: Path, say: Say) -> None:
        """Keep the folder of a finished stage, in the place of what was kept under its key, and make room for it."""
        entry = self._stages / key
        try:
            with files.whole_folder(entry) as folder:
                for file in made.iterdir():
                    if file.name != files.SEAL:  # its time says when the entry was used
                        files.link(file, folder / file.name)
            _use(entry)
            self.make_room(self.limit_bytes, used_before=time.time() - RECENT_SECONDS)
        except OSError as error:
            say(f"  the store cannot keep it: {error}")

    def entries(self) -> list[Entry]:
        """All that is in the store, what was used last at the end."""
        found = [*map(_stage, self._stages.glob("*")), *map(_view, self.soft_labels.glob("*"))]
        return sorted(filter(None, found), key=lambda entry: entry.used)

    def make_room(self, most_bytes: float, *, unused_since: float = 0.0, used_before: float = math.inf) -> list[Entry]:
        """Remove what was not used for longest, until the rest takes `most_bytes`; returns what was removed.

        Args:
            most_bytes: of all that is kept.
            unused_since: what was not used since then (in seconds since 1970) goes in any case.
            used_before: what was used since then stays in any case, as does what another run is making anew.
        """
        removed = []
        with self._lock("room"):
            entries = self.entries()
            total = sum(entry.size_bytes for entry in entries)
            for entry in entries:
                goes = entry.used < unused_since or (total > most_bytes and entry.used < used_before)
                if goes and self._removed(entry):
                    total -= entry.size_bytes
                    removed.append(entry)
            for folder in (self._stages, self.soft_labels):
                _clear(folder)
        return removed

    @property
    def _stages(self) -> Path:
        return self.folder / STAGES

    def _lock(self, key: str) -> FileLock:
        path = self.folder / LOCKS / f"{key}.lock"
        if path.is_symlink():
            raise UserError(f"{path} is a link; remove it, or choose another --store, or --no-store")
        return FileLock(path, mode=LOCK_MODE)

    def _removed(self, entry: Entry) -> bool:
        """Remove an entry; a stage only if no run is making or taking it."""
        try:
            if entry.is_view:
                files.remove(entry.path)  # who reads it goes on, since an open file outlives its name
                return True
            with self._lock(entry.key).acquire(timeout=0):
                files.remove(entry.path)
        except (Timeout, OSError):  # of another user
            return False
        return True


def _stage(path: Path) -> Entry | None:
    """A stage in the store; what is no stage is never removed."""
    try:
        if not KEY.fullmatch(path.name) or files.odd_in(path) is not None or not (path / files.SEAL).is_file():
            return None
        used = (path / files.SEAL).stat().st_mtime
        return Entry(path, row_in(path), sum(file.stat().st_size for file in path.iterdir()), used)
    except OSError:  # another run has just removed it
        return None


def _view(path: Path) -> Entry | None:
    """A view of a teacher's outputs."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return Entry(path, None, found.st_size, found.st_mtime) if SOFT_LABEL.fullmatch(path.name) else None


def _clear(folder: Path) -> None:
    """Remove what was being written when a process was killed, long ago."""
    for path in folder.iterdir():
        with suppress(OSError):  # it was finished just now, or is of another user
            if files.UNFINISHED.fullmatch(path.name) and path.lstat().st_mtime < time.time() - RECENT_SECONDS:
                files.remove(path)


def _use(entry: Path) -> None:
    """Note that a stage was used now."""
    with suppress(OSError):  # of another user
        os.utime(entry / files.SEAL)
