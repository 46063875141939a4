"""Files are written whole or not at all, and named by what is in them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step: to a neighbour first, flushed to disk, then renamed over `path`."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


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
