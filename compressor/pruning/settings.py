"""Pruning settings that stages share: how much to remove, by which criterion, among which channels."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from compressor.config.spec import Spec

if TYPE_CHECKING:
    from compressor.models.size import Size

Criterion = Literal["l1", "l2", "taylor", "bn_scale", "random"]
Scope = Literal["local", "global"]
MAX_RATIO = 0.99  # of the channels


class Share(Spec):
    """How much to keep; set exactly one."""

    macs: float | None = Field(None, gt=0, lt=1)
    """Keep at most this share of the incoming multiply-adds."""
    parameters: float | None = Field(None, gt=0, lt=1)
    """Keep at most this share of the incoming parameters."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "Share":
        names = tuple(type(self).model_fields)
        if sum(getattr(self, name) is not None for name in names) != 1:
            expected = f"{', '.join(names[:-1])} and {names[-1]}"
            raise ValueError(f"expected exactly one of {expected}, as in {{macs: 0.5}}")
        return self

    @property
    def limit(self) -> float:
        """The largest share to keep."""
        limit = self.macs or self.parameters
        assert limit is not None
        return limit

    def kept(self, after: "Size", before: "Size") -> float:
        """The share of `before` that `after` keeps, in the limited quantity."""
        return after.share_of(before)["parameters" if self.macs is None else "macs"]


class Target(Share):
    """How far to prune; set exactly one."""

    ratio: float | None = Field(None, gt=0, lt=1)
    """Remove this share of the channels."""
