"""How an image becomes the input of a network: the one definition that training, scoring and users share."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

MAX_SIDE = 4096
FORWARD_BYTES = 2**29  # that a forward pass without gradients may take
ACTIVATION_FACTOR = 20  # what it holds at its widest, over the images in float32: measured on MobileNetV2 at 224
MAX_BATCH = 1000

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Preprocess(BaseModel):
    """Convert to L or RGB, resize whole to `size` (Pillow, bilinear), scale to 0..1, subtract `mean`, divide by `std`.

    Every `model.onnx` carries it as `compressor.preprocess`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: tuple[Annotated[int, Field(ge=1, le=MAX_SIDE)], Annotated[int, Field(ge=1, le=MAX_SIDE)]]
    """Height, width."""
    channels: Literal[1, 3]
    """1 (gray) or 3 (RGB)."""
    mean: tuple[Finite, ...]
    std: tuple[Annotated[Finite, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _one_figure_a_channel(self) -> "Preprocess":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"mean and std need one number for each of {self.channels} channels; "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        return self

    def pixels(self, image: "Image.Image") -> "NDArray[np.uint8]":
        """The image's pixels, `[C, H, W]` in 0..255.

        Raises:
            ValueError: the image has more than 8 bits a channel.
        """
        import numpy as np
        from PIL import Image

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

    def normalise(self, pixels: "Tensor") -> "Tensor":
        """Pixels `[N, C, H, W]` in 0..255, any type, to the float32 input of a network."""
        import torch

        mean = torch.tensor(self.mean, device=pixels.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, -1, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def input_shape(self, batch: int) -> tuple[int, int, int, int]:
        """`(batch, C, H, W)`."""
        return batch, self.channels, *self.size

    @property
    def max_batch(self) -> int:
        """How many images a forward pass without gradients takes at once, so that memory stays within bounds."""
        image_bytes = 4 * self.channels * self.size[0] * self.size[1]  # float32
        return max(1, min(MAX_BATCH, FORWARD_BYTES // (ACTIVATION_FACTOR * image_bytes)))
