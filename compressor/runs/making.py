"""Making stages in order: each is reused, taken from the store, or run, and then saved, loaded back and scored."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from compressor import processes
from compressor.data.dataset import Dataset
from compressor.models import artifact
from compressor.models.artifact import Artifact
from compressor.pipeline.context import Context
from compressor.pipeline.pipeline import Pipeline
from compressor.pipeline.stage import Stage, named
from compressor.runs.keys import code_of, key_of, made_from
from compressor.runs.layout import CHECKPOINTS, STAGES
from compressor.runs.shared import SharedStore
from compressor.runs.store import Finished, finish, reuse
from compressor.storage import files
from compressor.storage.checkpoints import Checkpoints

OVER = ""  # told to the other processes in the place of a stage's key
Making = Callable[[Stage, Artifact | None, Context, Sequence[Finished]], AbstractContextManager[object]]


def run_stages(
    pipeline: Pipeline,
    data: Dataset,
    context: Context,
    folder: Path,
    shared: SharedStore | None,
    making: Making = lambda *_: nullcontext(),
) -> list[Finished]:
    """Run every stage, but those that are done and unchanged in `folder` or in the store.

    Args:
        pipeline: what to run.
        data: with the images to score on in `test`.
        context: of the run.
        folder: of the run.
        shared: the store, if runs share one.
        making: is given each stage that has to run, the network before it, its context and what is finished; the stage
            runs within what it returns.

    Raises:
        UserError: what a stage is given does not fit.
        StageError: a stage failed.
    """
    finished: list[Finished] = []
    say = context.services.console.say
    for number, stage in enumerate(pipeline.stages, 1):
        before = finished[-1].artifact if finished else None
        own = context.before(number - 1, pipeline, {done.row.id: done.artifact for done in finished})
        parts = made_from(stage, before, own, code_of(stage, pipeline))
        key, target = key_of(parts), folder / STAGES / stage.id
        title = f"[{number}/{len(pipeline.stages)}] {stage.id} ({stage.stage})"
        whole = partial(reuse, stage, target, parts, context, data, pipeline.factories)
        together = False
        done = whole()
        if done is not None:
            say(f"{title}: reused, unchanged", style="bold")
            if shared is not None:
                shared.offer(key, target, say)
        else:
            with shared.making(key, say) if shared is not None else nullcontext():
                if shared is not None and shared.take(key, stage.id, target, say):
                    done = whole()
                if done is not None:
                    say(f"{title}: taken from the store", style="bold")
                else:
                    say(title, style="bold")
                    together = stage.data_parallel
                    with making(stage, before, own, finished):
                        own = _with_checkpoints(own, folder, stage, key)
                        done = _made(stage, before, own, data, parts, target, pipeline.factories)
                    if shared is not None:
                        shared.keep(key, target, say)
        _over(together)
        context.services.on_row(done.row.model_dump(mode="json"))
        finished.append(done)
    files.remove(folder / CHECKPOINTS)
    return finished


def follow_stages(pipeline: Pipeline, context: Context, folder: Path) -> None:
    """What the other processes do meanwhile: they train with the first one, and load what it has saved."""
    made: dict[str, Artifact] = {}
    before: Artifact | None = None
    for number, stage in enumerate(pipeline.stages):
        own = context.before(number, pipeline, made)
        if key := processes.agreed(OVER):
            stage.run(before, _with_checkpoints(own, folder, stage, key))
            processes.wait()
        before = made[stage.id] = artifact.load(folder / STAGES / stage.id, factories=pipeline.factories)


def _over(together: bool) -> None:
    """Let the other processes go on: from behind a stage that all ran, or from before one that they had no part in."""
    if together:
        processes.wait()
    else:
        processes.agreed(OVER)


def _with_checkpoints(context: Context, folder: Path, stage: Stage, key: str) -> Context:
    of_device = files.digest_json([key, context.device.type])  # one training is not finished on another device
    checkpoints = Checkpoints(folder / CHECKPOINTS / stage.id, of_device)
    return replace(context, services=replace(context.services, checkpoints=checkpoints))


def _made(
    stage: Stage,
    before: Artifact | None,
    context: Context,
    data: Dataset,
    parts: Mapping[str, str],
    target: Path,
    factories: frozenset[str],
) -> Finished:
    """Run a stage, and keep what it makes in `target`; its time includes that of interrupted runs."""
    with named(stage):
        if stage.data_parallel:
            processes.agreed(key_of(parts))
        with nullcontext() if stage.data_parallel else processes.alone():
            made = stage.run(before, context)
        checkpoints = context.services.checkpoints
        assert checkpoints is not None
        seconds = checkpoints.seconds
        return finish(stage, made, context, data, parts=parts, factories=factories, target=target, seconds=seconds)
