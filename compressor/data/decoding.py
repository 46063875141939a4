"""Images that have to be decoded: held in memory if they are few, else in a store on disk."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compressor.console import Console
from compressor.data.preprocess import Preprocess
from compressor.data.reading import Request, Undecoded, in_memory
from compressor.data.split import Source
from compressor.data.store import Decode, Pixels, check_room, stored
from compressor.errors import DataError

ENLARGED = 4
IN_MEMORY_BYTES = 2**28  # of a split; larger ones are kept on disk
DECODED_AT_ONCE = 16  # whole images in memory
MAX_NAMED = 5  # files in one message


@dataclass(frozen=True, eq=False)
class Redecoded(Source):
    """Images that are decoded again, whole, whenever a part is cut out: as large as they are, they are kept nowhere.

    Attributes:
        labels: their classes, int64 `[N]`.
        kept: the images cut to one size.
        rows: the position of each among all that were to be decoded, int64 `[N]`.
        images: these.
        preprocess: how they are converted.
    """

    labels: Tensor
    kept: Source
    rows: Tensor
    images: Undecoded
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.kept)

    def batch(self, indices: Tensor) -> Tensor:
        return self.kept.batch(indices)

    def fingerprint(self, indices: Tensor) -> str:
        return self.kept.fingerprint(indices)

    def whole(self, indices: Tensor) -> Iterator[Tensor]:
        def decode(row: int) -> Tensor:
            with self.images.opened(row) as image:
                return torch.from_numpy(self.preprocess.whole(image).copy())

        with ThreadPoolExecutor() as pool:
            for few in self.rows[indices].split(DECODED_AT_ONCE):  # they may be large
                yield from pool.map(decode, few.tolist())


def decoded(splits: Mapping[str, Undecoded], request: Request, console: Console) -> tuple[dict[str, Source], list[str]]:
    """The images of each split as the request wants them, and what was odd about them.

    Raises:
        DataError: some cannot be decoded and are not to be left out, or none of a split can.
    """
    notes: Counter[str] = Counter()
    unreadable: list[str] = []
    sizes = [len(each.names) * math.prod(request.preprocess.input_shape(1)) for each in splits.values()]
    check_room(sum(size for size in sizes if size > IN_MEMORY_BYTES), int(request.store.gigabytes * 1e9))
    with console.progress("decoding images", sum(len(each.names) for each in splits.values())) as advance:
        stores: list[Path] = []
        read = {name: _decoded(each, request, stores, notes, unreadable, advance) for name, each in splits.items()}
    if unreadable and not request.skip_unreadable:
        raise DataError(f"{_several(unreadable)}; repair or remove them, or set `unreadable: skip`")
    for name, source in read.items():
        if not len(source):
            raise DataError(f"the split {name} holds no image that can be read: {_several(unreadable)}")
    remarks = [f"{count} images are {note}" for note, count in sorted(notes.items())]
    if unreadable:
        remarks.append(f"unreadable files left out ({len(unreadable)}): {_several(unreadable)}")
    return read, remarks


def _decoded(
    images: Undecoded,
    request: Request,
    stores: list[Path],
    notes: Counter[str],
    unreadable: list[str],
    advance: Callable[[int], None],
) -> Source:
    """The images of a split.

    `stores` are told where it is, and `notes` how many images were unusual in which way; `unreadable` ones are named.
    """
    preprocess = request.preprocess

    def decode(index: int) -> tuple[Pixels, list[str]]:
        with images.opened(index) as image:
            return preprocess.pixels(image), list(_notes(image, preprocess))

    if len(images.names) * math.prod(preprocess.input_shape(1)) <= IN_MEMORY_BYTES:
        source, rows = _in_memory(images, decode, preprocess, notes, unreadable, advance)
    else:
        found = stored(
            images,
            preprocess,
            decode,
            home=request.store.home,
            limit_bytes=int(request.store.gigabytes * 1e9),
            beside=stores,
            advance=advance,
        )
        stores.append(found.source.file.parent)
        notes.update(found.notes)
        unreadable.extend(found.unreadable)
        source, rows = found.source, found.source.rows
    return Redecoded(source.labels, source, rows, images, preprocess) if request.whole else source


def _in_memory(
    undecoded: Undecoded,
    decode: Decode,
    preprocess: Preprocess,
    notes: Counter[str],
    unreadable: list[str],
    advance: Callable[[int], None],
) -> tuple[Source, Tensor]:
    """Those that can be decoded, and the position of each."""
    images = np.empty((len(undecoded.names), *preprocess.input_shape(1)[1:]), np.uint8)
    kept = np.ones(len(images), bool)

    def attempt(index: int) -> Sequence[str] | DataError:
        try:
            images[index], odd = decode(index)
        except DataError as error:
            return error
        return odd

    with ThreadPoolExecutor() as pool:
        for index, outcome in enumerate(pool.map(attempt, range(len(images)))):
            if isinstance(outcome, DataError):
                unreadable.append(str(outcome))
                kept[index] = False
            else:
                notes.update(outcome)
            advance(1)
    source = in_memory(images if kept.all() else images[kept], np.asarray(undecoded.classes)[kept])
    return source, torch.from_numpy(np.flatnonzero(kept))


def _notes(image: Image.Image, preprocess: Preprocess) -> Iterator[str]:
    height, width = preprocess.size
    if "A" in image.getbands() or "transparency" in image.info:
        yield "transparent; transparency was dropped"
    if preprocess.channels == 3 and image.mode in {"1", "L", "LA"}:
        yield "gray; they were made RGB; with data.channels: 1 all stay or become gray"
    if image.width * ENLARGED < width or image.height * ENLARGED < height:
        yield f"enlarged more than {ENLARGED} times to {height} x {width}"


def _several(unreadable: Sequence[str]) -> str:
    more = f" (and {len(unreadable) - MAX_NAMED} more)" if len(unreadable) > MAX_NAMED else ""
    return "; ".join(unreadable[:MAX_NAMED]) + more
