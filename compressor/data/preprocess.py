"""How an image becomes the input of a network: the one definition that training, scoring and users share."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

MAX_SIDE = 4096
FORWARD_BYTES = 2**28  # that a forward pass without gradients may take
ACTIVATION_FACTOR = 20  # what it holds at its widest, over the images in float32: measured on MobileNetV2 at 224
MAX_BATCH = 1000
DETAIL = 2  # of a part of an image that is half as wide, `size` has every pixel

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Preprocess(BaseModel):
    """Turn as EXIF says, convert to L or RGB, resize to `size`, scale to 0..1, subtract `mean`, divide by `std`.

    Every `model.onnx` carries it as `compressor.preprocess`, in which what is as it always was is left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: tuple[Annotated[int, Field(ge=1, le=MAX_SIDE)], Annotated[int, Field(ge=1, le=MAX_SIDE)]]
    """Height, width."""
    channels: Literal[1, 3]
    """1 (gray) or 3 (RGB)."""
    mean: tuple[Finite, ...]
    std: tuple[Annotated[Finite, Field(gt=0)], ...]
    resize: int | None = Field(None, ge=1, le=MAX_SIDE)
    """The shorter side is resized to this length, and `size` cut from the centre; if None, the whole is squeezed."""
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    """Pillow's filter, which smooths where it shrinks (antialias)."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, content: SerializerFunctionWrapHandler) -> Mapping[str, Any]:
        """What older readers know, and the rest only where it says something."""
        whole: dict[str, Any] = content(self)
        if self.resize is None:
            del whole["resize"]
            if self.interpolation == "bilinear":
                del whole["interpolation"]
        return whole

    @model_validator(mode="after")
    def _cut_from_what_is_there(self) -> "Preprocess":
        if self.resize is not None and self.resize < max(self.size):
            raise ValueError(
                f"resize {self.resize} makes the shorter side shorter than size {list(self.size)}; expected at least "
                f"{max(self.size)}"
            )
        return self

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
        from PIL import Image

        image = self._upright(image)
        height, width = self.size
        box = self._box(image.width, image.height)
        if image.size != (width, height) or box != (0, 0, width, height):
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()], box)
        return self._array(image)

    def whole(self, image: "Image.Image") -> "NDArray[np.uint8]":
        """The pixels of all of the image, `[C, h, w]`; a JPEG may be decoded at a fraction of its size.

        Raises:
            ValueError: the image has more than 8 bits a channel.
        """
        least = DETAIL * max(self.size)
        image.draft(None, (least, least))
        return self._array(self._upright(image))

    def _upright(self, image: "Image.Image") -> "Image.Image":
        """The image turned and converted, all of it."""
        from PIL import ImageOps

        if image.mode.startswith(("I", "F")):
            raise ValueError(
                f"it has more than 8 bits a channel (Pillow's mode {image.mode}), which would be cut off at 255; "
                "save it with 8 bits"
            )
        return ImageOps.exif_transpose(image).convert("L" if self.channels == 1 else "RGB")

    def _array(self, image: "Image.Image") -> "NDArray[np.uint8]":
        """Its pixels, `[C, h, w]`."""
        import numpy as np

        return np.asarray(image, np.uint8).reshape(image.height, image.width, self.channels).transpose(2, 0, 1)

    def _box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of an image that is resized to `size`: left, top, right, bottom.

        With `resize` it becomes the centre of the image that torchvision's `Resize` would make; that one, which may be
        very long, is never made.
        """
        if self.resize is None:
            return 0, 0, width, height
        longer = [int(self.resize * side / min(width, height)) for side in (width, height)]
        edges = [round((made - own) / 2) for made, own in zip(longer, reversed(self.size), strict=True)]
        across, down = width / longer[0], height / longer[1]  # pixels of the image for one of the result
        left, top = edges[0] * across, edges[1] * down
        return left, top, min(left + self.size[1] * across, width), min(top + self.size[0] * down, height)

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
        return max(1, min(MAX_BATCH, self.images_in(FORWARD_BYTES, ACTIVATION_FACTOR)))

    def images_in(self, memory_bytes: int, copies: int) -> int:
        """How many images fit in memory, if something holds so many copies of each in float32."""
        image_bytes = 4 * self.channels * self.size[0] * self.size[1]
        return memory_bytes // (copies * image_bytes)
