"""The same pipeline with several seeds, to see how much of a figure is chance."""

import statistics
from collections.abc import Iterable, Sequence

from compressor.report.report import OverSeeds, Report, Spread


def over_seeds(reports: Sequence[Report]) -> tuple[OverSeeds, ...]:
    """Mean and deviation of each stage's figures over at least two runs of the same stages."""
    first = reports[0]
    rows = [[report.row(row.id) for report in reports] for row in first.rows]
    return tuple(
        OverSeeds(
            id=repeated[0].id,
            accuracy=_spread(row.accuracy.value for row in repeated),
            size_bytes=_spread(row.size_bytes for row in repeated),
            speedup=_spread(row.timed[first.headline_setting].speedup for row in repeated)
            if first.headline_setting is not None
            else None,
        )
        for repeated in rows
    )


def _spread(figures: Iterable[float]) -> Spread:
    values = tuple(figures)
    return Spread(values=values, mean=statistics.fmean(values), deviation=statistics.stdev(values))
