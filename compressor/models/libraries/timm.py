"""timm's networks, and their weights: safetensors in a repository of the Hugging Face hub each, at one commit."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from logging import ERROR
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from compressor.config.spec import did_you_mean
from compressor.errors import ArchitectureError, ArtifactError, first_line, pass_on_out_of_memory
from compressor.models.libraries.base import RGB, Library, Pretrained, misfit
from compressor.models.weights import read_weights

FILE = "model.safetensors"
FROM_ELSEWHERE = ("pretrained", "checkpoint_path", "cache_dir")  # how arguments begin that name files or download them


class Timm(Library):
    """timm."""

    def build(self, name: str, arguments: Mapping[str, Any], *, num_classes: int, in_channels: int) -> nn.Module:
        """An untrained network of timm."""
        timm = _timm()
        _described(name)
        if elsewhere := [key for key in arguments if key.startswith(FROM_ELSEWHERE)]:
            raise ArchitectureError(
                f"argument {elsewhere[0]!r} of timm:{name} would read or download a file; use the stage's "
                "`weights: pretrained` instead"
            )
        built: nn.Module = timm.create_model(name, **{"num_classes": num_classes, "in_chans": in_channels, **arguments})
        return built

    def pretrained(self, name: str, version: str) -> Pretrained:
        """timm's weights of a network, at a commit of their repository."""
        described = _described(name)
        if not described.hf_hub_id:
            raise ArchitectureError(f"timm:{name} has no pretrained weights as safetensors on the hub")
        known = _timm().data.resolve_data_config(pretrained_cfg=described.to_dict())
        size = known["input_size"][1:]
        squeezed = known["crop_mode"] == "squash" or size[0] != size[1]
        resize = None if squeezed else max(math.floor(size[0] / known["crop_pct"]), *size)
        return TimmWeights(
            model=f"timm:{name}",
            source=described.hf_hub_id,
            license=described.license or "",
            data={
                "size": size,
                "resize": resize,
                "interpolation": known["interpolation"],
                "mean": known["mean"],
                "std": known["std"],
            },
            revision=version,
        )


@dataclass(frozen=True, kw_only=True)
class TimmWeights(Pretrained):
    """A repository of timm's weights, at a `revision`; if it is empty, at the newest commit."""

    revision: str

    def download(self, arguments: Mapping[str, Any], in_channels: int) -> tuple[nn.Module, str]:
        """The trained network, with its first layer adapted to the images' channels as timm does."""
        path = self._file()
        weights: dict[str, Tensor] = read_weights(path)
        name = self.model.partition(":")[2]
        try:
            network: nn.Module = _timm().create_model(
                name, pretrained=True, in_chans=in_channels, pretrained_cfg_overlay={"state_dict": weights}, **arguments
            )
        except Exception as error:  # names and shapes that do not fit, in timm's words
            pass_on_out_of_memory(error)
            raise misfit(self.model, error) from error
        return network, f"{self.source}@{path.parent.name}"

    def data_for(self, channels: int) -> Mapping[str, Any]:
        """`data`; for gray images with the mean of each figure over the channels."""
        if channels == RGB:
            return self.data
        return {**self.data, "mean": (fmean(self.data["mean"]),), "std": (fmean(self.data["std"]),)}

    def _file(self) -> Path:
        """The file in the hub's cache, in a folder that is called as its commit."""
        import huggingface_hub
        from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE
        from huggingface_hub.utils.logging import get_verbosity, set_verbosity

        loudness = get_verbosity()
        set_verbosity(ERROR)  # it warns of every attempt
        try:
            return Path(huggingface_hub.hf_hub_download(self.source, FILE, revision=self.revision or None))
        except Exception as error:  # many types: no connection, no such repository, revision or file
            pass_on_out_of_memory(error)
            folder = Path(HF_HUB_CACHE, f"models--{self.source.replace('/', '--')}")
            raise ArtifactError(
                f"the weights of {self.model} cannot be downloaded: {FILE} of {ENDPOINT}/{self.source} at "
                f"{self.revision or 'the newest commit'} ({first_line(error.__cause__ or error)}); connect this "
                f"machine, or copy {folder} from one that is"
            ) from error
        finally:
            set_verbosity(loudness)


def _timm() -> Any:
    try:
        import timm  # takes seconds, and only some need it
    except ModuleNotFoundError as error:
        raise ArchitectureError("timm is not installed; pip install 'compressor[timm]'") from error
    return timm


def _described(name: str) -> Any:
    """What timm knows of a network and its weights, without building it.

    Raises:
        ArchitectureError: timm has no such network, or no such weights of it.
    """
    timm = _timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models())
        raise ArchitectureError(f"timm has no network named {architecture!r}{hint}")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
        hint = did_you_mean(tag, tags) or f"; expected one of {', '.join(tags)}"
        raise ArchitectureError(f"timm has no weights {tag!r} of {architecture}{hint}") from error
