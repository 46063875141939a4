"""Calibration: ranges from what flows through a network on real images, and the error that rounding then makes."""

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


@torch.no_grad()
def calibrate(network: QuantizedNetwork, batches: Iterable[Tensor], observer: Observer, percentile: float) -> None:
    """Set the ranges of `network`, in place, from its float activations on batches of inputs.

    Images pass in small batches and observers keep a few numbers each, so memory does not grow with their count.

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
    if not bool(values.isfinite().all()):
        raise StageError(f"{point} holds numbers that are not finite on the calibration images; they have no range")
    observer(values)


@torch.no_grad()
def signal_to_noise(network: QuantizedNetwork, batches: Iterable[Tensor]) -> dict[str, float | None]:
    """For every point that is rounded, 10 log10(Σ x² / Σ (x - q)²) in dB on batches of inputs.

    x is the value without any rounding, q with all of it, so the errors of earlier layers are included. The ratio is
    None for a point that loses nothing.
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
                signal[point] += float(exact[point].double().square().sum())
                noise[point] += float((exact[point] - rounded[point]).double().square().sum())
    finally:
        for hook in hooks:
            hook.remove()
    return {point: _decibels(signal[point], noise[point]) for point in network.points}


def _decibels(signal: float, noise: float) -> float | None:
    """10 log10 of the ratio; None without noise, a number however small the signal is."""
    return 10 * (math.log10(max(signal, sys.float_info.min)) - math.log10(noise)) if noise > 0 else None


@contextmanager
def _watched(network: QuantizedNetwork, observers: Mapping[str, Callable[[Tensor], object]]) -> Iterator[None]:
    """`network` without rounding: what would be rounded is shown to the observer of its point."""
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
