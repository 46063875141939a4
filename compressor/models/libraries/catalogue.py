"""The library that a model's name begins with, as in `torchvision:resnet18`."""

from collections.abc import Mapping

from compressor.errors import ArchitectureError
from compressor.models.libraries.base import Library, Pretrained
from compressor.models.libraries.timm import Timm
from compressor.models.libraries.torchvision import Torchvision

CATALOGUE: Mapping[str, Library] = {"torchvision": Torchvision(), "timm": Timm()}


def library_of(model: str) -> tuple[Library, str] | None:
    """The library of `library:NAME`, and the name in it; None for every other model."""
    library, _, name = model.partition(":")
    return (CATALOGUE[library], name) if library in CATALOGUE and name else None


def pretrained(model: str, version: str = "") -> Pretrained:
    """The trained weights of `library:NAME`; nothing is downloaded.

    Args:
        model: as a pipeline names it.
        version: a name in torchvision's enum of weights, or a commit of timm's repository; the default one if empty.

    Raises:
        ArchitectureError: there are none, or none of that version.
    """
    found = library_of(model)
    if found is None:
        raise ArchitectureError(
            f"there are no pretrained weights of {model!r}; they exist for torchvision:NAME and timm:NAME"
        )
    library, name = found
    return library.pretrained(name, version)
