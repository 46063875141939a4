"""Which layers a pipeline's targets of latency depend on, for tables made where the file will run."""

from typing import NamedTuple

from compressor.console import Console
from compressor.errors import UserError
from compressor.evaluation import Layer, Precision, footprint_of, layers_of
from compressor.models.artifact import Artifact, TorchModel
from compressor.pipeline.context import Context
from compressor.pipeline.pipeline import Pipeline
from compressor.pipeline.stage import Stage
from compressor.runs.dry_run import try_stages


class Wanted(NamedTuple):
    """What a table has to hold, and the bytes that the network which its layers are in reads and writes."""

    layers: set[Layer]
    footprint_bytes: int


def layers_for(pipeline: Pipeline, console: Console | None = None) -> Wanted:
    """All layers that networks may have which the pipeline's stages choose by latency.

    Stages run on a few synthetic images, so those behind the first such stage see another network than in the run.

    Raises:
        UserError: no stage has a target of latency, or one cannot work on these images.
    """
    wanted: set[Layer] = set()
    footprints = [0]

    def watch(stage: Stage, model: Artifact | None, context: Context) -> None:
        if isinstance(model, TorchModel) and (layers := stage.timed_layers(model, context)):
            wanted.update(layers)
            precision: Precision = "int8" if context.ships_int8 else "float32"
            footprints.append(footprint_of(layers_of(model.network, model.preprocess.input_shape(2), precision)))

    try_stages(pipeline, pipeline.data.labels(), pipeline.data.preprocess(), console=console, watch=watch)
    if not wanted:
        raise UserError(
            "no stage of this pipeline has a target of latency, latency_ms or speedup, so it needs no table"
        )
    return Wanted(wanted, max(footprints))
