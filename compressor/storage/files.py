"""Files and folders are written whole or not at all, and sealed by digests of what is in them."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

SEAL = "SHA256SUMS"


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step: to a temporary neighbour, flushed to disk, then renamed over `path`."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
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


def digest_json(content: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return digest(json.dumps(content, sort_keys=True, allow_nan=False).encode())


def seal(folder: Path) -> None:
    """Write the digests of all files of `folder` into its `SHA256SUMS`, as `sha256sum --check` reads them."""
    lines = [f"{digest(path.read_bytes())}  {path.name}\n" for path in sorted(folder.iterdir()) if path.name != SEAL]
    write_text(folder / SEAL, "".join(lines))


def damaged(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in words; None if every file is unchanged."""
    try:
        lines = (folder / SEAL).read_text(encoding="utf-8").splitlines()
        expected = {name: sha for sha, _, name in (line.partition("  ") for line in lines)}
        found = {path.name for path in folder.iterdir()} - {SEAL}
        if found != set(expected):
            odd = sorted(found ^ set(expected))
            return f"{folder} does not hold the files in {SEAL} ({odd[0]} is in one of them only)"
        for name, sha in expected.items():
            if digest((folder / name).read_bytes()) != sha:
                return f"{folder / name} does not have the digest in {SEAL}"
    except (OSError, UnicodeDecodeError) as error:
        return f"{folder} is not whole ({type(error).__name__}: {getattr(error, 'filename', None) or SEAL})"
    return None


def replace_folder(made: Path, target: Path) -> None:
    """Replace `target`, which need not exist, with the folder `made`; `target` is never a mixture of both."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    made.rename(target)
    shutil.rmtree(old, ignore_errors=True)
