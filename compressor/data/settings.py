"""Which images, at what size, split and augmented how: what a pipeline says of its data."""

import os
import re
from collections.abc import Iterator, Mapping
from operator import not_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from compressor.config.spec import Spec, validated_copy
from compressor.data.catalogue import CATALOGUE, DataSet
from compressor.data.preprocess import MAX_SIDE, Preprocess

if TYPE_CHECKING:
    from compressor.console import Console
    from compressor.data.dataset import Dataset

Count = Annotated[int, Field(ge=1, le=100_000_000)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
Part = Annotated[float, Field(gt=0, le=1)]


class RandAugment(Spec):
    """Operations drawn for each image from 14 on shape, light and color, all at one strength (Cubuk et al. 2020)."""

    operations: int = Field(2, ge=1, le=10)
    """How many, one after the other."""
    magnitude: int = Field(9, ge=0, le=30)
    """Their strength."""


class Augment(Spec):
    """Random changes to training images, drawn anew for every view of every image.

    What came after `crop` and `flip` is written, and part of fingerprints, only where on: earlier ones stay valid.
    """

    crop: int = Field(0, ge=0, le=MAX_SIDE)
    """Pad with this many black pixels on each side, then crop at random back to the original size."""
    flip: bool = False
    """Mirror half of the images."""
    alternate: bool = Field(False, exclude_if=not_)
    """Mirror every image in every other view, one half of them first, and not at random (Jordan 2024); with `flip`."""
    resized_crop: tuple[Part, Part] | None = Field(None, exclude_if=not_)
    """Cut out a part of this range of areas, 3/4 to 4/3 as wide as high, and enlarge it (Szegedy et al. 2015)."""
    randaugment: RandAugment | None = Field(None, exclude_if=not_)
    """Operations drawn at random (RandAugment)."""
    color: float = Field(0.0, ge=0, le=1, exclude_if=not_)
    """Change brightness, contrast and saturation by up to this share, hue by a quarter of it; gray has no last two."""
    erase: float = Field(0.0, ge=0, le=1, exclude_if=not_)
    """The probability that a rectangle of an image gets the mean color (Zhong et al. 2020)."""
    mixup: float = Field(0.0, ge=0, le=100, exclude_if=not_)
    """Mix each image and its label with another one's, at a share drawn from Beta(this, this) (Zhang et al. 2018)."""
    cutmix: float = Field(0.0, ge=0, le=100, exclude_if=not_)
    """Paste a part of another image, whose area is drawn likewise (Yun et al. 2019); with mixup, each has even odds."""

    @model_validator(mode="after")
    def _what_alternates_is_mirrored(self) -> Self:
        if self.alternate and not self.flip:
            raise ValueError("alternate says how images are mirrored, which flip switches on; add flip: true")
        return self

    @model_validator(mode="after")
    def _one_way_to_crop(self) -> Self:
        if self.resized_crop is not None and self.crop:
            raise ValueError("crop and resized_crop both cut a part out; leave one of the two out")
        if self.resized_crop is not None and self.resized_crop[0] > self.resized_crop[1]:
            raise ValueError(f"resized_crop {list(self.resized_crop)} is no range; put the smaller area first")
        return self

    @property
    def one_by_one(self) -> bool:
        """Whether something is done to each image alone, on the CPU; crops, flips and mixes are made of batches."""
        return bool(self.resized_crop or self.randaugment or self.color or self.erase)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        written = self.model_dump()
        return ((name, value) for name, value in super().__repr_args__() if name in written)


class Store(Spec):
    """Where decoded images are kept that would take more than 256 MiB of memory."""

    folder: Path | None = None
    """A folder, which runs share; `compressor/images` in the user's cache by default."""
    gigabytes: float = Field(50, gt=0, le=1e6)
    """What all of them may take together; those that were not used for longest are removed first."""

    @property
    def home(self) -> Path:
        """The folder."""
        return self.folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "compressor" / "images"


class Columns(Spec):
    """The names of the columns that are used."""

    image: str | None = None
    """The images; by default the only column of type Image."""
    label: str | None = None
    """The classes; by default the only column of type ClassLabel."""


class Data(Spec):
    """Which images, at what size, split how."""

    name: Literal[
        "digits", "cifar10", "cifar100", "mnist", "fashion_mnist", "emnist", "glyphs", "image_folder", "hugging_face"
    ]
    """A data set; `image_folder` reads `root/<class>/*`, or `root/train/<class>/*` beside `root/test` or `root/val`."""
    root: Path = Path("data")
    """The folder of the files, or the one that is downloaded to."""
    hub: str | None = Field(None, exclude_if=not_)
    """With `name: hugging_face`, the data set on their hub, as `owner/name`; by default `root` holds it."""
    revision: str | None = Field(None, exclude_if=not_)
    """The commit of `hub`, 40 hexadecimal digits: a branch would be other images tomorrow."""
    columns: Columns | None = Field(None, exclude_if=not_)
    """Which columns hold the images and the classes, where a `hugging_face` data set has several of a kind."""
    unlabeled: Path | None = Field(None, exclude_if=not_)
    """With `name: image_folder`, a folder of more images, of no class, from which stages with `unlabeled` learn too."""
    size: tuple[Side, Side] | None = None
    """`[height, width]` that every image is resized to; by default the data set's own (224 x 224 for a folder)."""
    resize: Side | None = None
    """Resize the shorter side to this length, then cut `size` from the centre; by default the whole is squeezed."""
    interpolation: Literal["bilinear", "bicubic", "lanczos"] | None = None
    """How images are resized; bilinear by default."""
    channels: Literal[1, 3] | None = None
    """1 (gray) or 3 (RGB); by default the data set's own, 3 for a folder."""
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    """The mean of each channel, for pixels in 0..1; by default the data set's own, ImageNet's for a folder in RGB."""
    std: tuple[Annotated[float, Field(ge=1e-3, le=1)], ...] | None = None
    """The standard deviation of each channel, with the same defaults as `mean`."""
    train: Count | None = None
    """How many images to train on, drawn by the seed; all by default."""
    validation: Count | None = None
    """How many images to carve from the training images; a tenth by default."""
    test: Count | None = None
    """How many images to set apart where the data has no test split of its own; a fifth by default."""
    calibration: int = Field(512, ge=2, le=100_000_000)
    """How many training images to estimate ranges and BatchNorm statistics on."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Whether files of a folder that cannot be decoded end the run, or are left out; either way they are named."""
    store: Store = Store()
    """Where the decoded images of a large folder are kept, and how much room they get."""
    augment: Augment | None = None
    """What training does to images; by default the data set's own, nothing for a folder."""

    @model_validator(mode="after")
    def _figures_fit_the_channels(self) -> Self:
        try:
            self.preprocess()
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        return self

    @model_validator(mode="after")
    def _images_without_classes_are_in_a_folder(self) -> Self:
        if self.unlabeled is not None and self.name != "image_folder":
            raise ValueError("unlabeled needs name: image_folder; use that, or leave unlabeled out")
        return self

    @model_validator(mode="after")
    def _hub_is_pinned(self) -> Self:
        if self.name != "hugging_face" and (self.hub or self.revision or self.columns):
            raise ValueError("hub, revision and columns need name: hugging_face; use that, or leave them out")
        if self.hub is None:
            if self.revision is not None:
                raise ValueError("revision is of a data set on the hub; name it with `hub:`, or leave revision out")
        elif HUB_NAME.fullmatch(self.hub) is None:
            raise ValueError(f"hub {self.hub!r} names no data set; expected `owner/name`, as in `uoft-cs/cifar10`")
        elif self.revision is None or COMMIT.fullmatch(self.revision) is None:
            raise ValueError(
                f"hub needs `revision:`, the 40 hexadecimal digits of a commit, so that the images stay the same; copy "
                f"one from https://huggingface.co/datasets/{self.hub}/commits/main"
            )
        return self

    @property
    def data_set(self) -> DataSet:
        """What is known of the data set without reading it."""
        return CATALOGUE[self.name]

    def preprocess(self) -> Preprocess:
        """How an image becomes an input."""
        known = self.data_set
        channels = self.channels or known.channels
        own = channels == known.channels
        mean = self.mean if self.mean is not None else (known.mean if own else (0.5,) * channels)
        std = self.std if self.std is not None else (known.std if own else (0.5,) * channels)
        return Preprocess(
            size=self.size or known.size,
            channels=channels,
            mean=mean,
            std=std,
            resize=self.resize,
            interpolation=self.interpolation or "bilinear",
        )

    def completed(self, described: Mapping[str, Any]) -> Self:
        """These settings, with what they leave open of size, resize, interpolation, mean and std as `described`.

        For another size, `resize` is in the proportion that it has there.

        Raises:
            ValidationError: what is set does not fit what is taken over.
        """
        described = dict(described)
        if self.size is not None and described.get("resize"):
            described["resize"] = max(round(described["resize"] * max(self.size) / max(described["size"])), *self.size)
        return validated_copy(self, **{name: value for name, value in described.items() if getattr(self, name) is None})

    def labels(self) -> tuple[str, ...]:
        """The names of the classes, without reading an image.

        Raises:
            DataError: they are named by folders or files, and these are missing; or a split has no effect.
        """
        from compressor.data import loading  # torch takes seconds, and a wrong pipeline is told before

        return loading.labels_of(self)

    def load(self, seed: int, console: "Console | None" = None) -> "Dataset":
        """Read and split the images; `console` shows progress.

        Raises:
            DataError: they are missing or unreadable, or there are too few for the split.
        """
        from compressor.data import loading

        return loading.load(self, seed, console)
