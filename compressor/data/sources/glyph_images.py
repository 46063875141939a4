"""Images of characters, rendered here: 62 classes without a network, in the letters of the font that comes with Pillow.

Every character stands on one baseline at nearly one scale, so that `o` and `O` differ by their size as they do
in print.
"""

import string

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

VERSION = 2  # of what is rendered
CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
SIDE = 32
DETAIL = 4  # letters are drawn this many times larger, and averaged after they are turned
FONT_SIZE, BASELINE = 24, 23  # pixels
STROKES = 3  # widths, the widest still leaves an i its dot
ROTATION, SHEAR, SCALE, SHIFT = 0.15, 0.2, 0.08, 2.0  # at most: radians, ratio, ratio, pixels
NOISE = 0.15  # at most, of full white: its standard deviation


def render(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`count` gray images `[N, 32, 32]`, white on black, and their classes `[N]`; each class as often as the others.

    Position, slant, scale, stroke, brightness and noise of each are drawn from `seed`.
    """
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count) % len(CHARACTERS))
    font = ImageFont.load_default(FONT_SIZE * DETAIL)
    letters = [[_letter(character, font, stroke) for stroke in range(STROKES)] for character in CHARACTERS]
    images = np.stack([_seen(letters[label][random.integers(STROKES)], random) for label in labels])
    return images, labels


def _letter(character: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, stroke: int) -> Image.Image:
    """A character in the middle of the image, on the baseline."""
    side = SIDE * DETAIL
    image = Image.new("L", (side, side))
    place = (side / 2, BASELINE * DETAIL)
    ImageDraw.Draw(image).text(place, character, fill=255, font=font, anchor="ms", stroke_width=stroke)
    return image


def _seen(letter: Image.Image, random: np.random.Generator) -> NDArray[np.uint8]:
    """A letter turned, slanted, scaled and moved about the middle of the baseline, with noise: `[32, 32]`."""
    angle, shear = random.uniform(-1, 1, 2) * (ROTATION, SHEAR)
    scale = 1 + SCALE * random.uniform(-1, 1)
    x, y = DETAIL * SHIFT * random.uniform(-1, 1, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) / scale  # from where a pixel is to where it comes from
    middle = np.array([SIDE / 2, BASELINE]) * DETAIL
    offset = middle - matrix @ (middle + np.array([x, y]))
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    turned = letter.transform(letter.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    pixels = np.asarray(turned.reduce(DETAIL), np.float64) * random.uniform(0.6, 1)
    noise = random.normal(0, 255 * NOISE * random.uniform(), pixels.shape)
    noisy: NDArray[np.uint8] = np.clip(np.round(pixels + noise), 0, 255).astype(np.uint8)
    return noisy
