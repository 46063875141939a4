"""Image files, which may hold anything, whatever they are called."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from compressor.errors import DataError, first_line, pass_on_out_of_memory
from compressor.storage import files

# Told by content; Pillow knows others, some of which run programs.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


@contextmanager
def opened(path: Path | str, content: bytes | None = None) -> Iterator[Image.Image]:
    """The image in a file, or in `content`, which `path` then names; to be decoded within the block.

    Raises:
        DataError: it is no plain file, of none of the formats, or cannot be decoded.
    """
    Image.init()
    try:
        if content is None:
            files.check_plain(Path(path))
        with Image.open(
            path if content is None else io.BytesIO(content), formats=[each for each in FORMATS if each in Image.OPEN]
        ) as image:
            yield image
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path} is not a usable image: it is none of {', '.join(FORMATS)}, or has more bands or bits than Pillow "
            "reads"
        ) from error
    except Exception as error:  # Pillow's decoders raise many types
        pass_on_out_of_memory(error)
        raise DataError(f"{path} is not a usable image: {first_line(error)}") from error


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder in the order of their names, hidden ones left out; behind links too, each folder once.

    Raises:
        DataError: a folder cannot be read.
    """
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    for where, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(where)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where, name) for name in sorted(names) if not name.startswith("."))
