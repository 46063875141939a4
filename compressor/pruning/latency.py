"""Pruning to a latency: depth and width at once, by what layers take and what predictions lose."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from compressor.console import Console
from compressor.evaluation import CostTable, Layer
from compressor.pruning.choices import SHARES, WHOLE, Choice
from compressor.pruning.knapsack import Figures, least_loss
from compressor.pruning.times import Timed, Times, Unit, Widths

HUB_SHARES = (0.75, 0.5, 0.25)  # of the channels of a residual stream that may be left, besides all
MOST_HUBS = 256  # combinations of widths that are all tried
STEP = 0.7  # of the time is left when what matters is ranked anew
CANDIDATES = 5
TIGHTER = 0.98  # the limit of the next candidate, where hubs leave too few to choose from

Divergence = Callable[[Choice], float]  # how far predictions are from those of the whole network


@dataclass(frozen=True)
class Found:
    """A choice, its predicted time, and what its changes add to the divergence, each by itself."""

    choice: Choice
    microseconds: float
    loss: float


@dataclass(frozen=True)
class Option:
    """What is done with a unit: the channels its groups keep; without any, its block is removed."""

    kept: Widths
    removed: bool = False


class Search:
    """The search for what to leave of a network.

    For given widths of the hubs, the rest is a multiple-choice knapsack, solved exactly. All combinations of hubs are
    tried, or, where there are too many, one hub at a time is changed as long as that helps.

    Args:
        times: of the network.
        table: of its layers.
        divergence: of what is left of the network.
        console: where progress is shown.
    """

    def __init__(self, times: Times, table: CostTable, divergence: Divergence, console: Console) -> None:
        self.times, self.table, self.divergence, self.console = times, table, divergence, console

    def candidates(self, limit: float) -> list[Found]:
        """At most five choices of at most `limit` microseconds, the least loss first; empty if none is fast enough.

        Large steps are taken in several, and losses measured anew for each.
        """
        before = self.microseconds(WHOLE)
        steps = max(1, math.ceil(math.log(limit / before) / math.log(STEP))) if limit < before else 1
        state = WHOLE
        for step in range(1, steps + 1):
            self._last = Options(self, state)
            found = self._last.within(before * (limit / before) ** (step / steps))
            if not found:
                return []
            state = found[0].choice
        return found

    def again(self, limit: float) -> list[Found]:
        """`candidates` for a limit near that of before: the last step only."""
        return self._last.within(limit)

    def microseconds(self, choice: Choice) -> float:
        """The time that the table predicts."""
        layers = self.times.left(choice)
        known = self.table.of(layers)
        return sum(known[layer] for layer in layers)

    def fastest(self) -> float:
        """The microseconds of the fastest choice that there is, as the table predicts them."""
        return self._last.fastest()


class Options:
    """The options that are left after a choice, with what each of them adds to the divergence."""

    def __init__(self, search: Search, state: Choice) -> None:
        self.times, self.table, self.state = search.times, search.table, state
        self.options = [list(_options(unit, search.times, state)) for unit in self.times.units]
        self.levels = {hub: _levels(hub, search.times, state) for hub in self.times.hubs}
        self._known: dict[tuple[int, tuple[int, ...]], Figures] = {}  # of units, by the widths of their hubs
        self.table.of(layers_left(search.times, state))
        self._lost = _Lost(search, state)
        self.losses = [
            np.array([self._lost.by(unit, option) for option in options])
            for unit, options in zip(self.times.units, self.options, strict=True)
        ]

    def within(self, limit: float) -> list[Found]:
        """The choices within a limit, the least loss first."""

        @cache
        def solve(widths: tuple[int, ...]) -> Found | None:
            return self._solved(dict(zip(self.levels, widths, strict=True)), limit)

        few = math.prod(map(len, self.levels.values())) <= MOST_HUBS
        tried = itertools.product(*self.levels.values()) if few else self._descent(solve)
        found = sorted(filter(None, map(solve, dict.fromkeys(tried))), key=lambda each: each.loss)[:CANDIDATES]
        if not found:
            return []
        best = {hub: found[0].choice.kept.get(hub, len(self.times.prunable.order[hub])) for hub in self.levels}
        tighter = limit
        for _ in range(CANDIDATES - len(found)):
            tighter *= TIGHTER
            if (another := self._solved(best, tighter)) is None:
                break
            if another.choice not in [each.choice for each in found]:
                found.append(another)
        return sorted(found, key=lambda each: each.loss)

    def fastest(self) -> float:
        """The microseconds of what is left where every hub has its least width."""
        hubs = {hub: levels[-1] for hub, levels in self.levels.items()}
        units = sum(float(self._unit_times(index, hubs).min()) for index in range(len(self.times.units)))
        return self._time(self.times.base, hubs) + units

    def _descent(self, solve: Callable[[tuple[int, ...]], Found | None]) -> Iterator[tuple[int, ...]]:
        """Widths of hubs: from several starts, one hub at a time is changed as long as that helps."""

        def worth(widths: tuple[int, ...]) -> tuple[bool, float]:
            found = solve(widths)
            return found is None, math.inf if found is None else found.loss

        for depth in range(max(map(len, self.levels.values()))):
            widths = tuple(levels[min(depth, len(levels) - 1)] for levels in self.levels.values())
            better: tuple[int, ...] | None = widths
            while better is not None:
                widths = better
                near = [
                    (*widths[:index], level, *widths[index + 1 :])
                    for index, levels in enumerate(self.levels.values())
                    for level in levels
                ]
                yield from near
                best = min(near, key=worth)
                better = best if worth(best) < worth(widths) else None

    def _solved(self, hubs: Widths, limit: float) -> Found | None:
        """The best choice for given widths of hubs."""
        base = self._time(self.times.base, hubs)
        times = [self._unit_times(index, hubs) for index in range(len(self.times.units))]
        picked = least_loss(times, self.losses, limit - base)
        if picked is None:
            return None
        choice = Choice({**self.state.kept, **hubs}, self.state.removed)
        for unit, options, pick in zip(self.times.units, self.options, picked, strict=True):
            choice = _with(choice, unit, options[pick])
        spent = base + sum(own[pick] for own, pick in zip(times, picked, strict=True))
        loss = sum(own[pick] for own, pick in zip(self.losses, picked, strict=True))
        loss += sum(self._lost.by_width[hub, level] for hub, level in hubs.items())
        return Found(choice, float(spent), float(loss))

    def _unit_times(self, index: int, hubs: Widths) -> Figures:
        """What each option of a unit takes, `[options]`."""
        unit = self.times.units[index]
        own = {hub: hubs[hub] for hub in unit.hubs}
        if (known := self._known.get((index, tuple(own.values())))) is None:
            spent = [
                0.0 if each.removed else self._time(unit.layers, {**own, **each.kept}) for each in self.options[index]
            ]
            known = self._known[index, tuple(own.values())] = np.array(spent)
        return known

    def _time(self, layers: Sequence[Timed], widths: Widths) -> float:
        removed = self.times.removed({**self.state.kept, **widths})
        return sum(self.table.known[timed.left(removed)] for timed in layers)


class _Lost:
    """What predictions lose by every width of a group, and by every block, each changed alone.

    Attributes:
        by_width: by a group and the number of channels that are left of it.
        by_block: without a block.
    """

    def __init__(self, search: Search, state: Choice) -> None:
        groups = dict.fromkeys(group for timed in search.times.layers for group in timed.losses)
        widths = [(group, level) for group in groups for level in _levels(group, search.times, state)]
        blocks = [unit.block for unit in search.times.units if unit.block and unit.block not in state.removed]
        base = search.divergence(state)
        with search.console.progress("measuring what predictions lose", len(widths) + len(blocks)) as advance:

            def lost(changed: Choice) -> float:
                advance(1)
                more = 0.0 if _same(changed, state, search.times) else search.divergence(changed) - base
                return max(more, 0.0) if math.isfinite(more) else math.inf

            self.by_width = {
                (group, level): lost(Choice({**state.kept, group: level}, state.removed)) for group, level in widths
            }
            self.by_block = dict.fromkeys(state.removed, 0.0)
            self.by_block |= {block: lost(Choice(state.kept, state.removed | {block})) for block in blocks}

    def by(self, unit: Unit, option: Option) -> float:
        """What predictions lose by an option."""
        if option.removed:
            return self.by_block[unit.block]
        return sum(self.by_width[group, level] for group, level in option.kept.items())


def layers_left(times: Times, state: Choice = WHOLE) -> set[Layer]:
    """All layers that any choice may have which takes from `state`."""
    left = (timed for timed in times.layers if timed.block not in state.removed)
    return {
        timed.left(times.removed({**state.kept, **dict(zip(timed.losses, widths, strict=True))}))
        for timed in left
        for widths in itertools.product(*(_levels(group, times, state) for group in timed.losses))
    }


def _levels(group: str, times: Times, state: Choice) -> list[int]:
    """How many channels of a group can still be left, the most first."""
    levels = times.prunable.levels(group, HUB_SHARES if group in times.hubs else SHARES)
    return [level for level in levels if level <= state.kept.get(group, level)]


def _options(unit: Unit, times: Times, state: Choice) -> Iterator[Option]:
    """What can still be done with a unit."""
    if unit.block in state.removed:
        yield Option({}, removed=True)
        return
    for widths in itertools.product(*(_levels(group, times, state) for group in unit.groups)):
        yield Option(dict(zip(unit.groups, widths, strict=True)))
    if unit.block:
        yield Option({}, removed=True)


def _with(choice: Choice, unit: Unit, option: Option) -> Choice:
    removed = choice.removed | {unit.block} if option.removed else choice.removed
    return Choice({**choice.kept, **option.kept}, removed)


def _same(one: Choice, other: Choice, times: Times) -> bool:
    return one.removed == other.removed and times.removed(one.kept) == times.removed(other.kept)
