"""Calibration: ranges from the activations on real images, and the rounding error that results."""

import math
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache, partial

import torch
from torch import Tensor

from compressor.errors import StageError
from compressor.quantization.network import QuantizedNetwork, unrounded
from compressor.quantization.settings import Observer

CALIBRATION_BATCH = 64
CALIBRATION_SHARE = 10  # of the images that a forward pass takes at once: activations then stay in the cache
OBSERVED = 2**12  # values of an image at a point of which histograms are made
LINE = 16  # values that lie side by side are drawn together: one by one, most of the time goes into reaching them
KEPT = 2**18  # values at a point before its observer is shown them, since a call takes as long as 16,384 values,
KEPT_BATCHES = 64  # or so many batches, of whose values only the ends may be kept
NOISE_IMAGES = 8  # of which the rounding error is measured: millions of values


@torch.no_grad()
def calibrate(network: QuantizedNetwork, batches: Iterable[Tensor], observer: Observer, percentile: float) -> None:
    """Set the ranges of `network`, in place, from its float activations on batches of inputs.

    Observers keep a few numbers each, so memory does not grow with the number of images. Histograms are of a sample of
    the largest activations, always with the least and the greatest value.

    Raises:
        StageError: an activation is not finite.
    """
    # torchao takes seconds to import, and a wrong pipeline is told before
    from compressor.quantization.observers import HISTOGRAMS, ONE_BY_ONE, observer_of

    observers = {point: observer_of(observer, percentile) for point in network.points}
    kept = 0 if observer in ONE_BY_ONE else KEPT
    shown = {point: _Shown(point, observers[point], observer in HISTOGRAMS, kept) for point in network.points}
    with unrounded(network, shown):
        for inputs in batches:
            network(inputs)
    for point, quantizer in network.activation_quantizers.items():
        shown[point].rest()
        scale, zero_point = observers[point].calculate_qparams()
        quantizer.scale.copy_(scale.squeeze())
        quantizer.zero_point.copy_(zero_point.squeeze())


class _Shown:
    """Shows an observer the least and the greatest value and, if it looks at the `whole`, a sample of the others.

    Those of several batches are kept until there are more than `most`.
    """

    def __init__(self, point: str, observer: Callable[[Tensor], object], whole: bool, most: int) -> None:
        self.point, self.observer, self.whole, self.most = point, observer, whole, most
        self.kept: list[Tensor] = []
        self.count = 0  # of values kept

    def __call__(self, values: Tensor) -> None:
        drawn, values = len(values) * OBSERVED, _in_memory_order(values)
        ends = torch.stack(torch.aminmax(values))
        if not all(map(math.isfinite, ends.tolist())):
            raise StageError(f"{self.point} is not finite on the calibration images, so it has no range")
        self.kept.append(_sample(values, drawn, ends) if self.whole else ends)
        self.count += len(self.kept[-1])
        if self.count > self.most or len(self.kept) == KEPT_BATCHES:
            self.rest()

    def rest(self) -> None:
        """Show the values that were kept."""
        if self.kept:
            self.observer(torch.cat(self.kept))
            self.kept.clear()
            self.count = 0


def _sample(values: Tensor, drawn: int, ends: Tensor) -> Tensor:
    """So many of the values, and their ends; or all, if there are no more."""
    if len(values) <= drawn:
        return values.clone()  # a view would keep all that it is part of
    lines = values[: len(values) // LINE * LINE].view(-1, LINE)
    return torch.cat([ends, lines[_positions(len(lines), drawn // LINE)].flatten()])


@lru_cache(maxsize=64)
def _positions(count: int, drawn: int) -> Tensor:
    """So many of the positions from 0 to `count`, at random but always the same; drawing takes longer than reading."""
    return torch.randint(count, (drawn,), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def signal_to_noise(network: QuantizedNetwork, batches: Iterable[Tensor]) -> dict[str, float | None]:
    """The signal-to-noise ratio 10 log10(Σ x² / Σ (x - q)²), in dB, at every point that is rounded.

    x is the value without any rounding on `batches` of inputs, q with all of it, so the errors of earlier layers are
    included. A point without rounding error has None.
    """
    exact: dict[str, Tensor] = {}
    rounded: dict[str, Tensor] = {}
    signal, noise = dict.fromkeys(network.points, 0.0), dict.fromkeys(network.points, 0.0)
    hooks = [
        quantizer.register_forward_hook(lambda _, __, output, point=point: rounded.update({point: output}))
        for point, quantizer in network.activation_quantizers.items()
    ]
    try:
        for inputs in batches:
            with unrounded(network, {point: partial(exact.__setitem__, point) for point in network.points}):
                network(inputs)
            network(inputs)
            for point in network.points:
                x, error = _in_memory_order(exact[point]), _in_memory_order(exact[point] - rounded[point])
                signal[point] += float(torch.dot(x, x))  # added up in double precision, batch by batch
                noise[point] += float(torch.dot(error, error))
    finally:
        for hook in hooks:
            hook.remove()
    return {point: _decibels(signal[point], noise[point]) for point in network.points}


def _in_memory_order(values: Tensor) -> Tensor:
    """All values, `[N * C * H * W]`, as they lie in memory: channels last are neither copied nor skipped through."""
    last = values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last)
    return (values.permute(0, 2, 3, 1) if last else values).flatten()


def _decibels(signal: float, noise: float) -> float | None:
    """10 log10 of the ratio; None without noise, but finite however small the signal is."""
    return 10 * (math.log10(max(signal, sys.float_info.min)) - math.log10(noise)) if noise > 0 else None
