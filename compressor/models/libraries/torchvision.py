"""torchvision's classification networks, and their weights: one file each, with its digest in its name."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.config.spec import did_you_mean
from compressor.errors import ArchitectureError, ArtifactError, first_line
from compressor.models.libraries.base import Library, Pretrained, misfit
from compressor.models.weights import read_weights

INCEPTION = {"transform_input": True, "init_weights": False, "aux_logits": False}
WITH_WEIGHTS = {"googlenet": INCEPTION, "inception_v3": INCEPTION}  # as torchvision's own builders set with weights
DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")  # how densenet's files write norm1, conv2, …
AUXILIARY = "aux"  # how the names of auxiliary heads begin, in any case


class Torchvision(Library):
    """torchvision."""

    def build(self, name: str, arguments: Mapping[str, Any], *, num_classes: int, in_channels: int) -> nn.Module:
        """An untrained network of torchvision; it takes RGB images."""
        import torchvision  # takes seconds, and only some need it

        _check_known(name)
        downloads = [key for key in arguments if key.startswith("weights")]
        if downloads:
            raise ArchitectureError(
                f"argument {downloads[0]!r} of torchvision:{name} would download and unpickle a file; use the stage's "
                "`weights: pretrained` instead"
            )
        built: nn.Module = torchvision.models.get_model(
            name, **{"weights": None, "num_classes": num_classes, **arguments}
        )
        return built

    def pretrained(self, name: str, version: str) -> Pretrained:
        """torchvision's default weights of a network, or those with this name in their enum."""
        import torchvision

        _check_known(name)
        entries = {entry.name: entry for entry in torchvision.models.get_model_weights(name)}
        default = torchvision.models.get_model_weights(name).DEFAULT.name
        if version and version not in entries:
            expected = f"; expected one of {', '.join(entries)}"
            hint = did_you_mean(version, entries) or expected
            raise ArchitectureError(f"torchvision:{name} has no pretrained weights {version!r}{hint}")
        entry = entries[version or default]
        categories = entry.meta["categories"]
        if categories is None:
            raise ArchitectureError(f"the pretrained weights {entry.name} of torchvision:{name} have no classifier")
        described = entry.transforms()
        return TorchvisionWeights(
            model=f"torchvision:{name}",
            source=entry.url,
            license=entry.meta.get("license", ""),
            data={
                "size": (described.crop_size[0], described.crop_size[0]),
                "resize": described.resize_size[0],
                "interpolation": described.interpolation.value,
                "mean": tuple(described.mean),
                "std": tuple(described.std),
            },
            arguments=WITH_WEIGHTS.get(name, {}),
            classes=len(categories),
        )


@dataclass(frozen=True, kw_only=True)
class TorchvisionWeights(Pretrained):
    """A file of torchvision's weights, for so many `classes`."""

    classes: int

    def download(self, arguments: Mapping[str, Any], in_channels: int) -> tuple[nn.Module, str]:
        """The trained network, from the file in torch.hub's cache, which is downloaded if it is not there."""
        name = self.model.partition(":")[2]
        network = Torchvision().build(name, arguments, num_classes=self.classes, in_channels=in_channels)
        _load(network, read_weights(self._file()), self.model)
        return network, self.source

    def _file(self) -> Path:
        """The file in the cache, with the digest that its name holds."""
        name = self.source.rpartition("/")[2]
        path = Path(torch.hub.get_dir(), "checkpoints", name)
        found = torch.hub.HASH_REGEX.search(name)
        if found is None:
            raise ArtifactError(f"the weights of {self.model} at {self.source} have no digest in their name")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(self.source, str(path), found[1], progress=False)
            except (OSError, RuntimeError) as error:  # no connection; another digest
                raise ArtifactError(
                    f"the weights of {self.model} cannot be downloaded from {self.source} ({first_line(error)}); "
                    f"connect this machine, or put the file at {path}"
                ) from error
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(found[1]):
            raise ArtifactError(f"{path} does not have the digest that its name holds; it is damaged: remove it")
        return path


def _check_known(name: str) -> None:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ArchitectureError(f"torchvision has no classification network named {name!r}{did_you_mean(name, known)}")


def _load(network: nn.Module, weights: dict[str, Tensor], model: str) -> None:
    """Load weights of the network's own classes; those of auxiliary heads that it lacks are dropped.

    Torch loads them by itself, not `load_weights`: files of older versions name some layers otherwise.
    """
    for name in list(weights):
        weights[DENSE_LAYER.sub(r"\1\2.", name)] = weights.pop(name)
    try:
        misfits = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # another shape
        raise misfit(model, error) from error
    unknown = [name for name in misfits.unexpected_keys if not name.lower().startswith(AUXILIARY)]
    if odd := [*misfits.missing_keys, *unknown]:
        raise misfit(model, f"{odd[0]} is in one of them only")
