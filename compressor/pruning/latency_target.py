"""From a latency that is asked for to what is left of a network, by candidates that are exported and timed."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.errors import StageError, UserError
from compressor.evaluation import (
    ROUGH_IMAGES,
    CostTable,
    GivenTable,
    Latency,
    Layer,
    MeasuredTable,
    Precision,
    footprint_of,
    layers_of,
    rough_file,
    timed_against,
)
from compressor.models import Artifact, Size, TorchModel, check_fits
from compressor.pipeline import Context
from compressor.pruning.batch_norm import estimate_batch_norm
from compressor.pruning.blocks import Divergence
from compressor.pruning.channels import outputs_of
from compressor.pruning.choices import WHOLE, Choice, Prunable
from compressor.pruning.latency import Search, layers_left
from compressor.pruning.settings import Share
from compressor.pruning.times import Times
from compressor.training import lay_out

TOLERATED = 1.05  # of the latency that is asked for
TOO_FAST = 0.95  # of it: less than this gives away what could have been kept
MOST_TRIED = 15  # candidates
JUDGED_IMAGES, FEWEST_JUDGED = 256, 64  # of the calibration images, on which predictions are compared,
JUDGED_MACS = 64e9  # and how much computing that may be for one comparison; there are hundreds


@dataclass(frozen=True)
class Tried:
    """A candidate.

    Attributes:
        choice: what it leaves of the network.
        predicted: the share of the incoming latency that it keeps, by the table.
        divergence: of its predictions from those of the whole network, in nats.
        timed: against the incoming network; None if another machine ships.
    """

    choice: Choice
    predicted: float
    divergence: float
    timed: Latency | None

    @property
    def share(self) -> float:
        """Of the incoming latency, as far as it is known."""
        return self.predicted if self.timed is None else 1 / self.timed.speedup

    def details(self) -> dict[str, Any]:
        """As a stage reports it."""
        return {
            "predicted": self.predicted,
            "measured": None if self.timed is None else self.share,
            "median_ms": None if self.timed is None else self.timed.median_ms,
            "divergence": self.divergence,
            "removed_blocks": len(self.choice.removed),
        }


def prune_to_latency(model: TorchModel, prunable: Prunable, target: Share, context: Context, label: str) -> TorchModel:
    """The network without the channels and blocks that a latency does not allow.

    A table of what layers take predicts; the five best predictions are exported and timed, and the one with the least
    divergence of those that are fast enough is taken. Where prediction and timing disagree, the limit is corrected.

    Args:
        model: what `prunable` is about.
        prunable: what may be removed.
        target: of `latency`, `latency_ms` or `speedup`.
        context: with the calibration images, and what ships.
        label: what the console calls the stage.

    Raises:
        StageError: the target is out of reach.
        UserError: there is no baseline yet, or the table lacks layers.
    """
    times = Times(prunable, _precision(context))
    search = Search(times, _table(times, target, context), _divergence(prunable, context), context.services.console)
    clock = Elsewhere(search) if target.table is not None else Here(model, prunable, context)
    goal = _goal(target, clock, context)
    say = context.services.console.say
    if goal >= 1:
        say(f"  {label}: the network is within the target as it comes")
        return model.with_network(model.network, details={"latency_target": {"goal": goal, "tried": []}})
    say(f"  {label}: choosing what stays for {goal:.3f} of the incoming latency; this takes minutes")
    tried = _tried(goal, search, clock)
    best = _best(tried, goal)
    if best is None:
        closest = min((each.share for each in tried), default=search.fastest() / search.microseconds(WHOLE))
        raise StageError(
            f"the target, {goal:.3f} of the incoming latency, is out of reach; the fastest network that was "
            f"found keeps {closest:.3f}"
        )
    network = prunable.without(best.choice)
    check_fits(network, model.architecture, prunable.input_shape)
    estimate_batch_norm(network, context.data.calibration_batches())
    left, blocks = len(prunable.blocks) - len(best.choice.removed), len(prunable.blocks)
    say(f"  {label} keeps {best.share:.3f} of the latency, {left} of {blocks} blocks that can be removed")
    kept = Size.of(network, model.preprocess).share_of(Size.of(prunable.network, model.preprocess))
    details = {
        "kept": kept,
        "widths": outputs_of(prunable.network, network),
        "removed_blocks": [block for block in prunable.blocks if block in best.choice.removed],
        "rigid": [] if prunable.groups is None else prunable.groups.rigid,
        "latency_target": {
            "goal": goal,
            "precision": times.precision,
            "table": None if target.table is None else str(target.table),
            "taken": tried.index(best),
            "tried": [each.details() for each in tried],
        },
    }
    return model.with_network(network, *prunable.changes(best.choice), details=details)


def _tried(goal: float, search: Search, clock: "Here | Elsewhere") -> list[Tried]:
    """Candidates for a share of the incoming latency, five at a time, until one comes close or no other is left."""
    whole = search.microseconds(WHOLE)
    tried: list[Tried] = []
    found = search.candidates(goal * whole)
    while found and len(tried) < MOST_TRIED:
        known = [each.choice for each in tried]
        fresh = [each for each in found if each.choice not in known]
        timed = clock.timed([each.choice for each in fresh])
        new = [
            Tried(each.choice, each.microseconds / whole, search.divergence(each.choice), own)
            for each, own in zip(fresh, timed, strict=True)
        ]
        tried += new
        best = _best(tried, goal)
        if not new or (best is not None and best.share >= TOO_FAST * goal):
            break
        off = float(np.median([each.share / each.predicted for each in new]))
        found = search.again(min(goal / off, 1.0) * whole)
    return tried


def timed_layers(prunable: Prunable, target: Share, context: Context) -> set[Layer]:
    """All layers that a table for this target has to hold."""
    wanted = layers_left(Times(prunable, _precision(context)))
    if target.speedup is not None and isinstance(context.baseline, TorchModel):
        wanted.update(_layers_of(context.baseline))
    return wanted


def _layers_of(model: TorchModel) -> list[Layer]:
    shape = model.preprocess.input_shape(2)
    return layers_of(model.network, shape, "int8" if model.quantized else "float32")


def _precision(context: Context) -> Precision:
    return "int8" if context.ships_int8 else "float32"


def _best(tried: Sequence[Tried], goal: float) -> Tried | None:
    """The candidate that changes predictions least, of those that are fast enough."""
    fast = [each for each in tried if each.share <= TOLERATED * goal]
    return min(fast, key=lambda each: each.divergence, default=None)


def _table(times: Times, target: Share, context: Context) -> CostTable:
    if target.table is not None:
        return GivenTable(target.table)
    return MeasuredTable(footprint_of(times.left(WHOLE)), console=context.services.console)


def _divergence(prunable: Prunable, context: Context) -> Callable[[Choice], float]:
    network, data = copy.deepcopy(prunable.network), context.data
    fitting = round(JUDGED_MACS / max(Size.of(network, data.preprocess).macs, 1))
    batches = data.calibration_batches(images=min(max(fitting, FEWEST_JUDGED), JUDGED_IMAGES))
    divergence = Divergence(network, batches, lay_out(network, data))
    return lambda choice: divergence.of(prunable.without(choice))


def _goal(target: Share, clock: "Here | Elsewhere", context: Context) -> float:
    """The share of the incoming latency to keep."""
    if target.latency is not None:
        return target.latency
    if target.latency_ms is not None:
        return target.latency_ms / clock.incoming_ms()
    assert target.speedup is not None
    if context.baseline is None:
        raise UserError("speedup is against the baseline, which must be an earlier stage; use latency or latency_ms")
    return clock.incoming_speedup(context.baseline, context) / target.speedup


class Here:
    """This machine, which times files."""

    def __init__(self, model: TorchModel, prunable: Prunable, context: Context) -> None:
        self.model, self.prunable, self.int8 = model, prunable, context.ships_int8
        self.images = next(context.data.calibration_batches(ROUGH_IMAGES, ROUGH_IMAGES))
        self.incoming = self._file(WHOLE)

    def incoming_ms(self) -> float:
        """What the incoming network takes."""
        return timed_against(self.incoming, [self.incoming])[0].median_ms

    def incoming_speedup(self, baseline: Artifact, context: Context) -> float:
        """How many times as fast as the baseline it is."""
        file = baseline.to_onnx(context.pipeline) if isinstance(baseline, TorchModel) else baseline
        return timed_against(file.content, [self.incoming])[0].speedup

    def timed(self, choices: Sequence[Choice]) -> list[Latency | None]:
        """What is left by each choice, against the incoming network."""
        return [*timed_against(self.incoming, [self._file(choice) for choice in choices])]

    def _file(self, choice: Choice) -> bytes:
        network = self.prunable.without(choice)
        return rough_file(self.model.with_network(network, details={}), self.images, int8=self.int8)


class Elsewhere:
    """Another machine, of which only a table is known."""

    def __init__(self, search: Search) -> None:
        self.search = search

    def incoming_ms(self) -> float:
        """What the incoming network takes."""
        return self.search.microseconds(WHOLE) / 1e3

    def incoming_speedup(self, baseline: Artifact, context: Context) -> float:
        """How many times as fast as the baseline it is.

        Raises:
            UserError: the baseline is an ONNX file, or the table lacks its layers.
        """
        if not isinstance(baseline, TorchModel):
            raise UserError(
                "with a table, speedup needs a baseline that is a torch network; name a stage before export"
            )
        layers = _layers_of(baseline)
        known = self.search.table.of(layers)
        return sum(known[layer] for layer in layers) / self.search.microseconds(WHOLE)

    def timed(self, choices: Sequence[Choice]) -> list[Latency | None]:
        """Nothing: the file does not run here."""
        return [None for _ in choices]
