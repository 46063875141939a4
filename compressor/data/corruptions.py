"""Photographs are noisy, blurred, too bright, compressed: test images made so, each at two strengths.

After Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (2019),
of whose kinds these are four; strengths are our own, so figures compare within a report only.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Corruption:
    """One kind at one strength. Blur is by the shorter side, but at least by half a pixel, or a whole one.

    Attributes:
        name: noise, blur, brightness or JPEG.
        strength: in words.
        apply: uint8 `[N, C, H, W]` to the same; the same input gives the same output.
    """

    name: str
    strength: str
    apply: Callable[[Pixels], Pixels]


def _noise(deviation: float) -> Callable[[Pixels], Pixels]:
    def apply(images: Pixels) -> Pixels:
        return _pixels(images + 255 * deviation * np.random.default_rng(0).standard_normal(images.shape))

    return apply


def _blur(share: float, least: float) -> Callable[[Pixels], Pixels]:
    def apply(images: Pixels) -> Pixels:
        from scipy.ndimage import gaussian_filter

        sigma = max(share * min(images.shape[2:]), least)
        return _pixels(gaussian_filter(images.astype(np.float32), (0, 0, sigma, sigma), mode="nearest"))

    return apply


def _brightness(more: float) -> Callable[[Pixels], Pixels]:
    return lambda images: _pixels(images + 255 * more)


def _jpeg(quality: int) -> Callable[[Pixels], Pixels]:
    def one(image: Pixels) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file), np.uint8).reshape(image.shape)

    def apply(images: Pixels) -> Pixels:
        return np.stack([one(image) for image in images.transpose(0, 2, 3, 1)]).transpose(0, 3, 1, 2)

    return apply


def _pixels(values: NDArray[np.floating]) -> Pixels:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


CORRUPTIONS = (
    Corruption("noise", "deviation 4%", _noise(0.04)),
    Corruption("noise", "deviation 10%", _noise(0.10)),
    Corruption("blur", "radius 1/64 of the side", _blur(1 / 64, least=0.5)),
    Corruption("blur", "radius 1/32 of the side", _blur(1 / 32, least=1.0)),
    Corruption("brightness", "+15%", _brightness(0.15)),
    Corruption("brightness", "+30%", _brightness(0.30)),
    Corruption("JPEG", "quality 50", _jpeg(50)),
    Corruption("JPEG", "quality 20", _jpeg(20)),
)
