"""The data sets that `data.name` knows: what their images are like, and which module of `sources` reads them.

A new one is a line here, its name in `Data.name`, and a module in `sources/` with a `READERS` entry for it.
"""

from dataclasses import dataclass

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DataSet:
    """What the images of a data set are like unless the pipeline says otherwise."""

    module: str  # of `compressor.data.sources`
    size: tuple[int, int]  # height, width
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int = 0
    flip: bool = False
    test: int | None = None  # images set apart where the data has no test split; a fifth by default


CATALOGUE = {
    "digits": DataSet("digits", (8, 8), 1, (0.306,), (0.377,)),
    "glyphs": DataSet("glyphs", (32, 32), 1, (0.097,), (0.21,), crop=2, test=4_000),
    "mnist": DataSet("mnist", (28, 28), 1, (0.1307,), (0.3081,), crop=2),
    "fashion_mnist": DataSet("mnist", (28, 28), 1, (0.2860,), (0.3530,), crop=2, flip=True),
    "emnist": DataSet("mnist", (28, 28), 1, (0.1307,), (0.3081,), crop=2),
    "cifar10": DataSet("cifar", (32, 32), 3, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), crop=4, flip=True),
    "cifar100": DataSet("cifar", (32, 32), 3, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), crop=4, flip=True),
    "hugging_face": DataSet("hugging_face", (224, 224), 3, IMAGENET_MEAN, IMAGENET_STD),
    "image_folder": DataSet("image_folder", (224, 224), 3, IMAGENET_MEAN, IMAGENET_STD),
}
