"""Image files, which may hold anything, whatever they are called."""

import io
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
        raise DataError(f"{path} is not a usable image: it holds none of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's decoders raise many types
        pass_on_out_of_memory(error)
        raise DataError(f"{path} is not a usable image: {first_line(error)}") from error
