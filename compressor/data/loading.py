"""From settings to images: read, then split by the seed."""

import importlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.console import Console
from compressor.data.dataset import Dataset
from compressor.data.reading import Reader, Request
from compressor.data.settings import Augment, Columns, Data
from compressor.data.split import Split
from compressor.errors import DataError

MAX_NAMED = 5  # classes in one message
Positions = NDArray[np.int64]


def labels_of(data: Data) -> tuple[str, ...]:
    """The names of the classes, without reading an image.

    Raises:
        DataError: they are missing, or a split that the data has is asked for once more.
    """
    return _labels(data, _request(data, 0))


def _labels(data: Data, request: Request) -> tuple[str, ...]:
    reader = _reader(data)
    own = reader.own_splits(request)
    for split in ("test", "validation"):
        if getattr(data, split) is not None and split in own:
            raise DataError(f"data.{split}: the data has a {split} split of its own; leave `{split}` out")
    return tuple(reader.labels(request))


def load(data: Data, seed: int, console: Console | None = None) -> Dataset:
    """Read and split the images.

    Raises:
        DataError: they are missing or unreadable, or there are too few for the split.
    """
    known, request = data.data_set, _request(data, seed)
    _labels(data, request)
    read = _reader(data).read(request, console or Console())
    train = Split.of(read.train)
    if read.test is not None:
        test = Split.of(read.test)
    else:
        train, test = _carve(train, data.test or known.test or max(len(train) // 5, 1), seed, "test")
    if read.validation is not None:
        validation = Split.of(read.validation)
    else:
        train, validation = _carve(train, data.validation or max(len(train) // 10, 1), seed, "validation")
    if data.train is not None:
        train = _drawn(train, data.train, seed)
    chosen = np.random.default_rng(seed).permutation(len(train))[: data.calibration]
    return Dataset(
        train=train,
        validation=validation,
        calibration=train.take(torch.from_numpy(np.sort(chosen))),
        test=test,
        labels=tuple(read.labels),
        preprocess=request.preprocess,
        augment=data.augment or Augment(crop=known.crop, flip=known.flip),
        unlabeled=None if read.unlabeled is None else Split.of(read.unlabeled),
        notes=(
            *read.notes,
            *_missing("training", train, read.labels),
            *_missing("validation", validation, read.labels),
            *_missing("test", test, read.labels),
        ),
    )


def _request(data: Data, seed: int) -> Request:
    return Request(
        data.root,
        data.preprocess(),
        seed,
        skip_unreadable=data.unreadable == "skip",
        store=data.store,
        hub=data.hub,
        revision=data.revision,
        columns=data.columns or Columns(),
        whole=data.augment is not None and data.augment.resized_crop is not None,
        unlabeled=data.unlabeled,
    )


def _reader(data: Data) -> Reader:
    module = importlib.import_module(f"compressor.data.sources.{data.data_set.module}")
    reader: Reader = module.READERS[data.name]
    return reader


def _carve(split: Split, count: int, seed: int, purpose: str) -> tuple[Split, Split]:
    """Set `count` images apart, in the proportions of the classes where both parts can hold one of each."""
    from sklearn.model_selection import train_test_split  # takes seconds, and a wrong pipeline is told before

    labels = split.labels.numpy()
    everything, images = np.arange(len(labels)), np.unique(labels, return_counts=True)[1]
    if len(everything) - count < len(images):
        raise DataError(f"{len(everything)} images of {len(images)} classes cannot give {count} for {purpose}")
    enough = images.min() >= 2 and count >= len(images)
    rest, chosen = train_test_split(everything, test_size=count, random_state=seed, stratify=labels if enough else None)
    return split.take(_sorted(rest)), split.take(_sorted(chosen))


def _drawn(split: Split, count: int, seed: int) -> Split:
    """`count` images, in the proportions of the classes where it can hold one of each."""
    if count > len(split):
        raise DataError(f"data.train: {count} images are asked for, but only {len(split)} are left to train on")
    if count < (classes := len(split.labels.unique())):
        raise DataError(f"data.train: {count} images cannot hold one of each of {classes} classes")
    if count == len(split):
        return split
    return _carve(split, len(split) - count, seed, "training")[0]


def _sorted(positions: Positions) -> torch.Tensor:
    return torch.from_numpy(np.sort(positions))


def _missing(name: str, split: Split, labels: Sequence[str]) -> Iterator[str]:
    """A warning if the split has no image of some class."""
    images = split.labels.bincount(minlength=len(labels)).tolist()
    absent = [label for label, count in zip(labels, images, strict=True) if not count]
    if absent:
        more = f" and {len(absent) - MAX_NAMED} more" if len(absent) > MAX_NAMED else ""
        yield f"no {name} image is of {', '.join(absent[:MAX_NAMED])}{more}: figures for these classes mean little"
