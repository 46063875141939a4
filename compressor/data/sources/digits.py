"""Scikit-learn's 1,797 scans of handwritten digits (8 x 8, 0..16), which ship with it."""

import numpy as np

from compressor.console import Console
from compressor.data.reading import Read, Request, in_memory, resized

LABELS = tuple(str(digit) for digit in range(10))


class Digits:
    """The scans, which have no test split of their own."""

    def labels(self, request: Request) -> tuple[str, ...]:
        return LABELS

    def own_splits(self, request: Request) -> frozenset[str]:
        return frozenset()

    def read(self, request: Request, console: Console) -> Read:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        scans = np.round(bunch.images * (255 / 16)).astype(np.uint8)
        return Read(in_memory(resized(scans, request.preprocess), bunch.target), None, LABELS)


READERS = {"digits": Digits()}
