"""Corruptions against their definitions, and thumbnails of flips."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from compressor.data.corruptions import CORRUPTIONS, Corruption
from compressor.evaluation.regressions import thumbnail

GRAY = np.full((3, 1, 32, 32), 100, np.uint8)


def named(name: str) -> list[Corruption]:
    return [each for each in CORRUPTIONS if each.name == name]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("each", CORRUPTIONS, ids=lambda each: f"{each.name} {each.strength}")
def test_a_corruption_changes_pixels_and_nothing_else(each: Corruption, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, channels, 16, 20), np.uint8)
    before = images.copy()
    changed = each.apply(images)
    assert (changed.shape, changed.dtype) == (images.shape, np.uint8)
    assert np.array_equal(images, before)
    assert not np.array_equal(changed, images)
    assert np.array_equal(each.apply(images), changed)


def test_noise_has_its_deviation() -> None:
    mild, strong = (each.apply(GRAY).astype(float) for each in named("noise"))
    assert np.std(mild) == pytest.approx(0.04 * 255, rel=0.05)
    assert np.std(strong) == pytest.approx(0.10 * 255, rel=0.05)
    assert np.mean(strong) == pytest.approx(100, abs=1.5)


def test_brightness_is_added_and_cut_off() -> None:
    mild, strong = (each.apply(np.array([[[[0, 100, 250]]]], np.uint8)) for each in named("brightness"))
    assert mild.ravel().tolist() == [38, 138, 255]
    assert strong.ravel().tolist() == [76, 176, 255]  # 76.5 rounds to even


def test_blur_keeps_flat_images_and_spreads_a_point() -> None:
    point = np.zeros((1, 1, 32, 32), np.uint8)
    point[0, 0, 16, 16] = 255
    for each, sigma in zip(named("blur"), (0.5, 1.0), strict=True):
        assert np.array_equal(each.apply(GRAY), GRAY)
        weights = np.exp(-(np.arange(-8, 9) ** 2) / (2 * sigma**2))
        assert each.apply(point)[0, 0, 16, 16] == pytest.approx(255 * (weights[8] / weights.sum()) ** 2, abs=1)


def test_jpeg_is_worse_at_lower_quality() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8)
    errors = [np.abs(each.apply(images).astype(int) - images).mean() for each in named("JPEG")]
    assert 0 < errors[0] < errors[1]


@pytest.mark.parametrize(("shape", "size", "mode"), [((8, 8, 1), (8, 8), "L"), ((200, 100, 3), (48, 96), "RGB")])
def test_thumbnails(shape: tuple[int, int, int], size: tuple[int, int], mode: str) -> None:
    image = Image.open(io.BytesIO(base64.b64decode(thumbnail(np.zeros(shape, np.uint8)))))
    assert (image.size, image.mode, image.format) == (size, mode, "PNG")
