"""How large a network is, and how much of it a stage that prunes is to keep."""

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from compressor.config.spec import Spec
from compressor.data.preprocess import Preprocess
from compressor.models.artifact import count_macs


class Size(BaseModel):
    """Multiply-adds for one image, and parameters; counted anew."""

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


class Share(Spec):
    """How much to keep; exactly one of these.

    Attributes:
        macs: keep at most this share of the incoming multiply-adds.
        parameters: keep at most this share of the incoming parameters.
    """

    macs: float | None = Field(None, gt=0, lt=1)
    parameters: float | None = Field(None, gt=0, lt=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> "Share":
        names = tuple(type(self).model_fields)
        if sum(getattr(self, name) is not None for name in names) != 1:
            expected = f"{', '.join(names[:-1])} and {names[-1]}"
            raise ValueError(f"expected exactly one of {expected}, as in {{macs: 0.5}}")
        return self

    @property
    def limit(self) -> float:
        """The share that is kept at most."""
        limit = self.macs or self.parameters
        assert limit is not None
        return limit

    def kept(self, after: Size, before: Size) -> float:
        """The share of what it limits that `after` keeps of `before`."""
        return after.share_of(before)["parameters" if self.macs is None else "macs"]
