"""A third party's package, as installed: its own stages, an engine and a tracker."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from compressor import Context, Stage, TorchModel


class Clip(Stage):
    """Limit every weight to a range around 0."""

    example: ClassVar[dict[str, Any]] = {"stage": "clip", "limit": 0.5}

    stage: Literal["clip"] = "clip"
    limit: float = Field(gt=0)
    """The largest magnitude that is left."""

    def run(self, model: TorchModel, context: Context) -> TorchModel:
        """The network with no weight beyond the limit."""
        network = model.copy_network()
        for parameter in network.parameters():
            parameter.clamp_(-self.limit, self.limit)
        return model.with_network(network, details={"limit": self.limit})
