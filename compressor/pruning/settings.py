"""Pruning settings that stages share: how much to remove, by which criterion, among which channels."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from compressor.config.spec import Spec
from compressor.storage import files

if TYPE_CHECKING:
    from compressor.models.size import Size
    from compressor.pipeline.context import Context

Criterion = Literal["l1", "l2", "taylor", "bn_scale", "random"]
Scope = Literal["local", "global"]
MAX_RATIO = 0.99  # of the channels


class Share(Spec):
    """How much to keep; set exactly one, besides `table`.

    Latency is that of the file in ONNX Runtime, one thread, one image; in int8 if a later stage quantizes. 5% more than
    is asked for is accepted: timings of one file differ by as much.
    """

    macs: float | None = Field(None, gt=0, lt=1)
    """Keep at most this share of the incoming multiply-adds."""
    parameters: float | None = Field(None, gt=0, lt=1)
    """Keep at most this share of the incoming parameters."""
    latency: float | None = Field(None, gt=0, lt=1)
    """Keep at most this share of the incoming network's latency."""
    latency_ms: float | None = Field(None, gt=0, le=1e6)
    """Take at most this many milliseconds."""
    speedup: float | None = Field(None, gt=1, le=1e6)
    """Be at least this many times as fast as the baseline."""
    table: Path | None = None
    """A file of `compress table`, for the latency of another machine; without one, this machine is timed."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "Share":
        names = [name for name in type(self).model_fields if name != "table"]
        if sum(getattr(self, name) is not None for name in names) != 1:
            expected = f"{', '.join(names[:-1])} and {names[-1]}"
            raise ValueError(f"expected exactly one of {expected}, as in {{macs: 0.5}}")
        if self.table is not None and not self.of_time:
            raise ValueError("table is for latency; set latency, latency_ms or speedup, or leave table out")
        return self

    @property
    def of_time(self) -> bool:
        """Whether it is latency that is limited."""
        return any(limit is not None for limit in (self.latency, self.latency_ms, self.speedup))

    @property
    def limit(self) -> float:
        """The largest share to keep, of MACs or parameters."""
        limit = self.macs or self.parameters
        assert limit is not None
        return limit

    def kept(self, after: "Size", before: "Size") -> float:
        """The share of `before` that `after` keeps, in the limited quantity."""
        return after.share_of(before)["parameters" if self.macs is None else "macs"]

    def decided_by(self, context: "Context") -> Any:
        """What a stage with this target makes depends on these as well: as JSON, or None."""
        if not self.of_time:
            return None
        from compressor.evaluation.costs import layers  # which imports ONNX Runtime

        baseline = context.baseline.digest if self.speedup is not None and context.baseline is not None else None
        machine = layers.machine() if self.table is None else files.digest_of(self.table)
        return [context.ships_int8, baseline, machine]

    def check_table(self) -> None:
        """Refuse a table that cannot be used.

        Raises:
            UserError: it cannot be read, or is none.
        """
        if self.table is not None:
            from compressor.evaluation import GivenTable

            GivenTable(self.table)


class Target(Share):
    """How far to prune; set exactly one, besides `table`."""

    ratio: float | None = Field(None, gt=0, lt=1)
    """Remove this share of the channels."""
