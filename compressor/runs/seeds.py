"""The same pipeline with several seeds, to see how much of a figure is chance."""

import statistics
from collections.abc import Iterable, Sequence

from compressor.evaluation.setting import Setting
from compressor.report.report import OverSeeds, Report, Row, Spread


def over_seeds(reports: Sequence[Report]) -> tuple[OverSeeds, ...]:
    """Mean and deviation of each stage's figures over at least two runs of the same stages."""
    setting = reports[0].headline_setting
    rows = [[report.row(row.id) for report in reports] for row in reports[0].rows]
    return tuple(
        OverSeeds(
            id=repeated[0].id,
            accuracy=_spread(row.accuracy.value for row in repeated),
            size_bytes=_spread(row.size_bytes for row in repeated),
            speedup=_speedup(repeated, setting),
        )
        for repeated in rows
    )


def _speedup(repeated: Sequence[Row], setting: Setting | None) -> Spread | None:
    """None for a stage that was not timed in this setting with every seed: what ships may be in one more engine."""
    timed = [row.timed.get(setting) if setting is not None else None for row in repeated]
    speedups = [latency.speedup for latency in timed if latency is not None]
    return _spread(speedups) if len(speedups) == len(repeated) else None


def _spread(figures: Iterable[float]) -> Spread:
    values = tuple(figures)
    return Spread(values=values, mean=statistics.fmean(values), deviation=statistics.stdev(values))
