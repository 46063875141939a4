"""Files and folders are written whole or not at all, and sealed by digests of what is in them.

No name of a file that is being written can be foreseen, or shared by two writers. A folder may come from anyone: links
in it are not followed in writing or removing, and what is no plain file is not read.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SEAL = "SHA256SUMS"
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.(partial|old)")  # what a process that is killed may leave
MAX_DEPTH = 20  # of folders that are looked through
MAX_BYTES = 2**31  # of a file that is read whole: what an ONNX file can hold
MAX_TEXT_BYTES = 2**26  # of JSON: reading it takes many times its size


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """The content of a plain file.

    Raises:
        OSError: there is none, or it cannot be read; it is a pipe or a device, or larger than `most`.
    """
    check_plain(path)
    if (held := path.stat().st_size) > most:
        raise OSError(errno.EINVAL, f"it holds {held:,} bytes, more than the {most:,} that are read", str(path))
    return path.read_bytes()


def check_plain(path: Path) -> None:
    """Refuse to open what may never end.

    Raises:
        OSError: there is nothing, or it is a pipe, a socket or a device.
    """
    if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", str(path))


def odd_in(path: Path, depth: int = MAX_DEPTH) -> Path | None:
    """The first thing, `path` itself or below it, that is neither a plain file nor a folder, or lies too deep."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(mode):
        return None if stat.S_ISREG(mode) else path
    if not depth:
        return path
    return next((odd for child in sorted(path.iterdir()) if (odd := odd_in(child, depth - 1)) is not None), None)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step: to a temporary neighbour, flushed to disk, then renamed over `path`."""
    partial = _neighbour(path, "partial")
    try:
        with partial.open("xb") as file:  # O_EXCL: never an existing file, never through a link
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        error.filename = str(path)  # a failed write names no file, or the neighbour
        partial.unlink(missing_ok=True)
        raise
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """`write_bytes` for JSON, indented, ending in a newline. NaN is refused."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def digest(content: bytes) -> str:
    """SHA-256 of `content`, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def digest_of(path: Path) -> str | None:
    """The SHA-256 of a file; None if it cannot be read, which is for its reader to say."""
    try:
        return digest(path.read_bytes())
    except OSError:
        return None


def digest_json(content: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return digest(json.dumps(content, sort_keys=True, allow_nan=False).encode())


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder that takes the place of `target` once the block is done, and is removed if it fails."""
    with scratch_folder(target) as partial:
        yield partial
        replace_folder(partial, target)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """`new_folder`, sealed."""
    with new_folder(target) as folder:
        yield folder
        seal(folder)


def replace_folder(made: Path, target: Path) -> None:
    """Replace `target`, which need not exist, with the folder `made`; `target` is never a mixture of both."""
    old = _neighbour(target, "old")
    if target.is_symlink() or target.exists():
        target.rename(old)
    made.rename(target)
    remove(old)


def link(source: str | Path, target: str | Path) -> None:
    """The same file under another name, since files are replaced and never changed; a copy where that is no way."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target, follow_symlinks=False)


def remove(path: Path) -> None:
    """Remove a file, or a folder with what is in it, if it is there; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path, name: str = "") -> None:
    """Remove what was being written directly in `folder`, or under `name` there, when a process was killed."""
    for left in folder.iterdir() if folder.is_dir() else ():
        if UNFINISHED.fullmatch(left.name) and left.name.startswith(f".{name}"):
            remove(left)


@contextmanager
def scratch_folder(name: Path) -> Iterator[Path]:
    """A new folder beside `name` that is removed at the end, or by `sweep` if the process is killed."""
    folder = _neighbour(name, "partial")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        remove(folder)


def seal(folder: Path) -> None:
    """Write the digests of all files of `folder` into its `SHA256SUMS`, as `sha256sum --check` reads them."""
    lines = [f"{digest(path.read_bytes())}  {path.name}\n" for path in sorted(folder.iterdir()) if path.name != SEAL]
    write_text(folder / SEAL, "".join(lines))


def damaged(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in words; None if every file is unchanged."""
    try:
        lines = read_bytes(folder / SEAL, MAX_TEXT_BYTES).decode().splitlines()
        expected = {name: sha for sha, _, name in (line.partition("  ") for line in lines)}
        found = {path.name for path in folder.iterdir()} - {SEAL}
        if found != set(expected):
            odd = sorted(found ^ set(expected))
            return f"{folder} does not hold the files in {SEAL} ({odd[0]} is in one of them only)"
        for name, sha in expected.items():
            if digest(read_bytes(folder / name)) != sha:
                return f"{folder / name} does not have the digest in {SEAL}"
    except (OSError, UnicodeDecodeError) as error:
        return f"{folder} is not whole ({type(error).__name__}: {getattr(error, 'filename', None) or SEAL})"
    return None


def _neighbour(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{kind}")
