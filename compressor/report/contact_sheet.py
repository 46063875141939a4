"""What the network is shown in training, as one picture."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compressor.evaluation.regressions import png, shrunk

SHEET_IMAGES, SHEET_VIEWS = 8, 6  # rows, columns
GAP = 2  # pixels between them


def contact_sheet(pixels: NDArray[np.uint8]) -> str:
    """Views `[images, views, C, H, W]` as a PNG in base64, an image in each row, each view at most 96 pixels a side."""
    cells = [[shrunk(view) for view in row] for row in pixels.transpose(0, 1, 3, 4, 2)]
    width, height = (side + GAP for side in cells[0][0].size)
    sheet = Image.new(cells[0][0].mode, (width * len(cells[0]) - GAP, height * len(cells) - GAP), "gray")
    for down, row in enumerate(cells):
        for across, cell in enumerate(row):
            sheet.paste(cell, (across * width, down * height))
    return png(sheet)
