"""Who follows a run, by the names that a pipeline gives; one tracker a module.

A new one is a subclass of `Tracker` that a package names in the entry-point group `compressor.trackers`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from compressor import plugins
from compressor.pipeline.pipeline import Pipeline
from compressor.tracking import Tracker


@contextmanager
def following(pipeline: Pipeline, folder: Path, others: Sequence[Tracker]) -> Iterator[tuple[Tracker, ...]]:
    """The trackers that the pipeline names, and others, from the beginning of a run in `folder` to its end.

    Raises:
        UserError: what a tracker needs is not installed.
    """
    offered = plugins.offered(plugins.TRACKERS, "tracker")
    trackers = (*(plugins.load(offered[name], "tracker", Tracker)() for name in pipeline.tracking), *others)
    with ExitStack() as ending:
        for tracker in trackers:
            tracker.begin(folder, pipeline.model_dump(mode="json"))
            ending.callback(tracker.end)
        yield trackers
