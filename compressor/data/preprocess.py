"""How an image becomes the input of a network: the one definition that training, scoring and users share."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor


class Preprocess(BaseModel):
    """Convert to L or RGB, resize whole to `size` (Pillow, bilinear), scale to 0..1, subtract `mean`, divide by `std`.

    Every `model.onnx` carries it as `compressor.preprocess`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: tuple[int, int]  # height, width
    channels: int  # 1 or 3
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _one_figure_a_channel(self) -> "Preprocess":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"mean and std need one number for each of {self.channels} channels; "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        return self

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """The image's pixels, `[C, H, W]` in 0..255.

        Raises:
            ValueError: the image has more than 8 bits a channel.
        """
        if image.mode.startswith(("I", "F")):
            raise ValueError(
                f"it has more than 8 bits a channel (Pillow's mode {image.mode}), which would be cut off at 255; "
                "save it with 8 bits"
            )
        image = image.convert("L" if self.channels == 1 else "RGB")
        height, width = self.size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image, np.uint8).reshape(height, width, self.channels).transpose(2, 0, 1)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels `[N, C, H, W]` in 0..255, any type, to the float32 input of a network."""
        mean = torch.tensor(self.mean, device=pixels.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, -1, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def input_shape(self, batch: int) -> tuple[int, int, int, int]:
        """`(batch, C, H, W)`."""
        return batch, self.channels, *self.size
