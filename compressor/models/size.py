"""How large a network is."""

from pydantic import BaseModel, ConfigDict
from torch import nn

from compressor.data.preprocess import Preprocess
from compressor.models.artifact import count_macs


class Size(BaseModel):
    """Multiply-adds for one image, and parameters."""

    model_config = ConfigDict(frozen=True)

    macs: int
    parameters: int

    @classmethod
    def of(cls, network: nn.Module, preprocess: Preprocess) -> "Size":
        """The size of `network`."""
        return cls(
            macs=count_macs(network, preprocess),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
        )

    def share_of(self, whole: "Size") -> dict[str, float]:
        """Each of the two as a share of `whole`."""
        return {"macs": self.macs / whole.macs, "parameters": self.parameters / whole.parameters}
