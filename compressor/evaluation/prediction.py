"""The predictions of an ONNX file, used as its own metadata say: `compress predict`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from compressor.data.photograph import SUFFIXES, files_below, opened
from compressor.errors import ArtifactError, DataError
from compressor.evaluation.accuracy import probabilities
from compressor.export import onnx_file, reading


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, with their probabilities, in descending order."""

    path: Path
    classes: tuple[tuple[str, float], ...]


def predict(model: Path, images: Sequence[Path], *, top: int = 3) -> Iterator[Prediction | DataError]:
    """The predictions of `model` for images, and for all images in folders and below, or why one cannot be read.

    Raises:
        ArtifactError: the file cannot be read or run, or its metadata do not say how to use it.
        DataError: there is no image.
    """
    preprocess, labels = reading.about(model)
    session = onnx_file.session(model, threads=torch.get_num_threads())
    for path in [path for where in images for path in _images(where)]:
        try:
            with opened(path) as image:
                pixels = preprocess.pixels(image)
        except DataError as error:
            yield error
            continue
        inputs = preprocess.normalise(torch.from_numpy(pixels[None])).numpy()
        logits = onnx_file.logits_of(session, inputs, source=model)
        if logits.shape != (1, len(labels)) or not np.isfinite(logits).all():
            raise ArtifactError(f"{model} does not give one finite logit for each of its {len(labels)} labels")
        shares = probabilities(logits[0])
        best = np.argsort(-shares, kind="stable")[:top].tolist()
        yield Prediction(path, tuple((labels[index], float(shares[index])) for index in best))


def _images(where: Path) -> list[Path]:
    if not where.is_dir():
        if not where.exists():
            raise DataError(f"there is no {where}; expected an image, or a folder of images")
        return [where]
    found = sorted(path for path in files_below(where) if path.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"{where} holds no image ({', '.join(sorted(SUFFIXES))})")
    return found
