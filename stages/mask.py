"""Set single weights to zero and keep them there (unstructured pruning by magnitude; Han et al. 2015)."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from compressor.errors import ArchitectureError, StageError
from compressor.models.artifact import TorchModel
from compressor.models.changes import Masked
from compressor.pipeline.context import Context
from compressor.pipeline.stage import Stage


class Mask(Stage):
    """Replace weights w by w ⊙ m, where m is 0 for the weights of least magnitude, whatever is trained afterwards.

    Attributes:
        sparsity: the share of the weights of convolutions and linear layers that become zero.
        scope: rank weights among all layers, or mask the same share of each.

    Biases and norms are left alone. Zeros make nothing faster: engines compute with them as with other numbers.
    """

    needs_recovery: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"stage": "mask", "sparsity": 0.5}

    stage: Literal["mask"] = "mask"
    sparsity: float = Field(gt=0, lt=1)
    scope: Literal["local", "global"] = "global"

    def run(self, model: TorchModel, context: Context) -> TorchModel:
        """The masked network.

        Raises:
            StageError: a layer would be left without any weight.
            ArchitectureError: the network is quantized, or has no such layer.
        """
        if model.quantized:
            raise ArchitectureError("a quantized network cannot be masked; mask before you quantize")
        network = model.copy_network()
        weights = {
            f"{name}.weight": module.weight
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        }
        if not weights:
            raise ArchitectureError("the network has no nn.Conv2d or nn.Linear to mask")
        if self.scope == "global":
            together = _smallest(torch.cat([weight.flatten() for weight in weights.values()]), self.sparsity)
            parts = together.split([weight.numel() for weight in weights.values()])
        else:
            parts = tuple(_smallest(weight.flatten(), self.sparsity) for weight in weights.values())
        for (name, weight), zero in zip(weights.items(), parts, strict=True):
            weight[zero.view_as(weight)] = 0
            if not weight.any():
                advice = "lower sparsity" + (", or say scope: local" if self.scope == "global" else "")
                raise StageError(f"{name} would be left without any weight; {advice}")
        zeros = {name: float((weight == 0).float().mean()) for name, weight in weights.items()}
        return model.with_network(network, Masked(parameters=tuple(weights)), details={"zeros": zeros})


def _smallest(values: Tensor, share: float) -> Tensor:
    """Which of `values` `[N]` are the `share` of least magnitude, to the nearest whole number: bool `[N]`."""
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[values.abs().argsort(stable=True)[: round(share * len(values))]] = True
    return chosen
