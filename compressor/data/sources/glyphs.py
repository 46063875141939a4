"""Characters rendered here, which takes seconds, and kept."""

import safetensors.numpy
from filelock import FileLock
from safetensors import SafetensorError

from compressor.console import Console
from compressor.data.reading import Read, Request, in_memory, resized
from compressor.data.sources import glyph_images
from compressor.errors import DataError, first_line
from compressor.storage import files

TRAIN, TEST = 20_000, 4_000


class Glyphs:
    """62 classes, without a network."""

    def labels(self, request: Request) -> tuple[str, ...]:
        return tuple(glyph_images.CHARACTERS)

    def own_splits(self, request: Request) -> frozenset[str]:
        return frozenset()

    def read(self, request: Request, console: Console) -> Read:
        count = TRAIN + TEST
        name = f"{count}-seed-{request.seed}-version-{glyph_images.VERSION}.safetensors"
        kept = request.root / "glyphs" / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(kept.with_suffix(".lock")):  # another run may be at it
            if not kept.exists():
                pixels, labels = glyph_images.render(count, request.seed)
                files.write_bytes(kept, safetensors.numpy.save({"pixels": pixels, "labels": labels}))
        try:
            arrays = safetensors.numpy.load_file(kept)
            source = in_memory(resized(arrays["pixels"], request.preprocess), arrays["labels"])
        except (SafetensorError, KeyError) as error:
            raise DataError(f"{kept} is damaged ({first_line(error)}); delete it and run again") from error
        return Read(source, None, self.labels(request))


READERS = {"glyphs": Glyphs()}
