"""What a library of networks offers, and what is known of its trained weights before they are downloaded."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from compressor.errors import ArchitectureError, ArtifactError, first_line

RGB = 3


@dataclass(frozen=True)
class Pretrained(ABC):
    """Trained weights of a network, as its library describes them.

    Attributes:
        model: `library:NAME`.
        source: where they are downloaded from: a URL, or a repository of a hub.
        license: as far as the library states it.
        data: the settings of `data` that they were evaluated with: size, resize, interpolation, mean and std.
        arguments: arguments of the architecture that they need.
    """

    model: str
    source: str
    license: str
    data: Mapping[str, Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @abstractmethod
    def download(self, arguments: Mapping[str, Any], in_channels: int) -> tuple[nn.Module, str]:
        """The trained network with its own classes, and where exactly its weights came from.

        Raises:
            ArtifactError: they cannot be downloaded, are not what they should be, or do not fit the arguments.
        """

    def data_for(self, channels: int) -> Mapping[str, Any]:
        """`data` for images of so many channels.

        Raises:
            ArchitectureError: the network takes RGB only.
        """
        if channels != RGB:
            raise ArchitectureError(f"the pretrained weights of {self.model} take RGB images; set data.channels: 3")
        return self.data


def misfit(model: str, reason: Exception | str) -> ArtifactError:
    """The error for weights that do not load; torch puts each of its reasons on a line of its own, after the first."""
    lines = str(reason).splitlines()
    said = first_line(Exception(lines[min(1, len(lines) - 1)])) if lines else first_line(Exception(reason))
    return ArtifactError(f"the pretrained weights of {model} do not fit its arguments: {said.rstrip('. ')}")


class Library(ABC):
    """Builds networks by name, and knows of trained weights."""

    @abstractmethod
    def build(self, name: str, arguments: Mapping[str, Any], *, num_classes: int, in_channels: int) -> nn.Module:
        """An untrained network; nothing is downloaded, whatever the arguments say.

        Raises:
            ArchitectureError: the library has none of that name, or an argument would download something.
        """

    @abstractmethod
    def pretrained(self, name: str, version: str) -> Pretrained:
        """The trained weights of a network; the default ones where `version` is empty.

        Raises:
            ArchitectureError: there are none.
        """
