"""Calibration: ranges from the activations on real images, and the rounding error that results."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from compressor.errors import StageError
from compressor.quantization.network import QuantizedNetwork
from compressor.quantization.settings import Observer

CALIBRATION_BATCH = 64
CALIBRATION_SHARE = 4  # of the images that a forward pass takes at once: activations then stay in the cache
NOISE_IMAGES = 32  # of which the rounding error is measured
NOISE_SHARE = 8  # as above; every activation is kept, twice


@torch.no_grad()
def calibrate(network: QuantizedNetwork, batches: Iterable[Tensor], observer: Observer, percentile: float) -> None:
    """Set the ranges of `network`, in place, from its float activations on batches of inputs.

    Images pass in small batches and observers keep a few numbers each, so memory does not grow with their number.

    Raises:
        StageError: an activation is not finite.
    """
    from compressor.quantization.observers import (
        observer_of,  # torchao takes seconds, and a wrong pipeline is told before
    )

    observers = {point: observer_of(observer, percentile) for point in network.points}
    with _watched(network, {point: partial(_observe, point, observers[point]) for point in network.points}):
        for inputs in batches:
            network(inputs)
    for point, quantizer in network.activation_quantizers.items():
        scale, zero_point = observers[point].calculate_qparams()
        quantizer.scale.copy_(scale.squeeze())
        quantizer.zero_point.copy_(zero_point.squeeze())


def _observe(point: str, observer: Callable[[Tensor], object], values: Tensor) -> None:
    if not bool(torch.stack(torch.aminmax(values)).isfinite().all()):  # far cheaper than every value on its own
        raise StageError(f"{point} is not finite on the calibration images, so it has no range")
    observer(values)


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
            with _watched(network, {point: partial(exact.__setitem__, point) for point in network.points}):
                network(inputs)
            network(inputs)
            for point in network.points:
                signal[point] += float(exact[point].square().sum())  # added up in double precision, batch by batch
                noise[point] += float((exact[point] - rounded[point]).square_().sum())
    finally:
        for hook in hooks:
            hook.remove()
    return {point: _decibels(signal[point], noise[point]) for point in network.points}


def _decibels(signal: float, noise: float) -> float | None:
    """10 log10 of the ratio; None without noise, but finite however small the signal is."""
    return 10 * (math.log10(max(signal, sys.float_info.min)) - math.log10(noise)) if noise > 0 else None


@contextmanager
def _watched(network: QuantizedNetwork, observers: Mapping[str, Callable[[Tensor], object]]) -> Iterator[None]:
    """Switch rounding off; each point shows its observer the values that it would round."""
    quantizers = network.activation_quantizers
    for point, quantizer in quantizers.items():
        quantizer.observer = observers[point]
    for parameters in network.parameter_quantizers:
        parameters.enabled = False
    try:
        yield
    finally:
        for quantizer in quantizers.values():
            quantizer.observer = None
        for parameters in network.parameter_quantizers:
            parameters.enabled = True
