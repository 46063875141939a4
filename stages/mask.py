"""Set single weights to zero and keep them there (unstructured pruning by magnitude; Han et al. 2015)."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from compressor import models, pruning
from compressor.errors import ArchitectureError
from compressor.pipeline.stage import Stage
from compressor.pruning.settings import Scope

if TYPE_CHECKING:
    from compressor import Context, TorchModel


class Mask(Stage):
    """Replace weights w by w ⊙ m, where m is 0 for the weights of least magnitude, and keep it so in later training.

    Biases and norms are left alone. Zeros make nothing faster: engines compute with them as with other numbers.
    """

    needs_recovery: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"stage": "mask", "sparsity": 0.5}

    stage: Literal["mask"] = "mask"
    sparsity: float = Field(gt=0, lt=1)
    """The share of the weights of convolutions and linear layers that become zero."""
    scope: Scope = "global"
    """Rank weights among all layers, or mask the same share of each."""

    def run(self, model: "TorchModel", context: "Context") -> "TorchModel":
        """The masked network.

        Raises:
            StageError: a layer would be left without any weight.
            ArchitectureError: the network is quantized, or has no such layer.
        """
        if model.quantized:
            raise ArchitectureError("a quantized network cannot be masked; mask before you quantize")
        network = model.copy_network()
        zeros = pruning.mask_least(network, self.sparsity, self.scope)
        return model.with_network(network, models.Masked(parameters=tuple(zeros)), details={"zeros": zeros})
