"""What tracks a run, by the names in its pipeline; one tracker per module.

A new one is a subclass of `Tracker` that a package names in the entry-point group `compressor.trackers`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType

from compressor import plugins
from compressor.pipeline.pipeline import Pipeline
from compressor.tracking import Tracker


@contextmanager
def following(pipeline: Pipeline, folder: Path, others: Sequence[Tracker]) -> Iterator[tuple[Tracker, ...]]:
    """The trackers that the pipeline names, and others, for the duration of a run in `folder`.

    Raises:
        UserError: the library that a tracker needs is not installed.
    """
    offered = plugins.offered(plugins.TRACKERS, "tracker")
    trackers = (*(plugins.load(offered[name], "tracker", Tracker)() for name in pipeline.tracking), *others)
    with ExitStack() as ending:
        for tracker in trackers:
            tracker.begin(folder, pipeline.model_dump(mode="json"))
            ending.push(partial(_end, tracker))
        yield trackers


def _end(
    tracker: Tracker, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
) -> None:
    try:
        if error is not None:
            tracker.on_failure(error)
    finally:
        tracker.end()
