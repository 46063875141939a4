"""How long a network takes, by what is left of it: its layers, their widths as functions of groups, and a table."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from compressor.evaluation import Layer, Operation, Precision, operations_of
from compressor.pruning.choices import Choice, Prunable
from compressor.tracing import inside

IN_UNIT = 2  # groups at most, whose widths are chosen together
MOST_WIDTHS = 250  # of a layer, each of which is timed

Widths = Mapping[str, int]  # by group, how many of its channels are left


@dataclass(frozen=True)
class Timed:
    """A layer whose widths depend on groups.

    Attributes:
        operation: as it is in the whole network.
        block: the removable block that it is in, or "".
        losses: by group, what one channel less takes from the layer's inputs, outputs and groups.
    """

    operation: Operation
    block: str
    losses: Mapping[str, tuple[int, int, int]]

    def left(self, removed: Widths) -> Layer:
        """The layer without so many channels of each group."""
        layer = self.operation.layer
        sides = [layer.inputs, layer.outputs, layer.groups]
        for group, losses in self.losses.items():
            sides = [side - removed[group] * loss for side, loss in zip(sides, losses, strict=True)]
        left = replace(layer, inputs=sides[0], outputs=sides[1], groups=sides[2])
        return self.operation._replace(layer=left).exported()


@dataclass(frozen=True)
class Unit:
    """What is chosen at once: the widths of a few groups, and whether the block that they are in stays.

    Attributes:
        block: which may be removed; "" if none.
        groups: whose layers are all in it.
        layers: that no other unit decides about.
    """

    block: str
    groups: tuple[str, ...]
    layers: tuple[Timed, ...]

    @property
    def hubs(self) -> tuple[str, ...]:
        """The other groups that its layers depend on."""
        return tuple(
            dict.fromkeys(group for timed in self.layers for group in timed.losses if group not in self.groups)
        )


class Times:
    """The time of a network in terms of its hubs and units.

    Hubs are groups that many layers depend on, such as the residual streams. Given their widths, units take
    their time independently of one another.

    Attributes:
        prunable: the network.
        layers: all of them.
        precision: of its layers.
        hubs: by name.
        units: all else that can be chosen.
        base: the layers that depend on hubs alone, and are in no removable block.
    """

    def __init__(self, prunable: Prunable, precision: Precision) -> None:
        self.prunable, self.precision = prunable, precision
        self.layers = _timed(prunable, precision)
        self.hubs, members = _partition(self.layers)
        owner = {group: unit for unit, groups in members.items() for group in groups}

        def unit_of(timed: Timed) -> str:
            return timed.block or next((owner[group] for group in timed.losses if group in owner), "")

        layers: dict[str, list[Timed]] = defaultdict(list)
        for timed in self.layers:
            layers[unit_of(timed)].append(timed)
        self.base = tuple(layers.pop("", ()))
        blocks = set(prunable.blocks)
        self.units = tuple(
            Unit(name if name in blocks else "", members.get(name, ()), tuple(own)) for name, own in layers.items()
        )

    def left(self, choice: Choice) -> list[Layer]:
        """All layers that run."""
        removed = self.removed(choice.kept)
        return [timed.left(removed) for timed in self.layers if timed.block not in choice.removed]

    def removed(self, kept: Widths) -> dict[str, int]:
        """How many channels of every group are gone."""
        order = self.prunable.order
        return {group: len(channels) - kept.get(group, len(channels)) for group, channels in order.items()}


def _timed(prunable: Prunable, precision: Precision) -> tuple[Timed, ...]:
    """The layers; what a channel of a group is to them is found by removing one."""
    whole = operations_of(prunable.network, prunable.input_shape, precision)
    losses: list[dict[str, tuple[int, int, int]]] = [{} for _ in whole]
    for group, order in prunable.order.items():
        less = operations_of(prunable.without(Choice({group: len(order) - 1})), prunable.input_shape, precision)
        for own, before, after in zip(losses, whole, less, strict=True):
            if before != after:
                own[group] = _sides(before, after)
    for group in _entangled(losses, prunable):
        for own in losses:
            own.pop(group, None)
    return tuple(
        Timed(operation, _block_of(operation, prunable.blocks), own)
        for operation, own in zip(whole, losses, strict=True)
    )


def _entangled(losses: Sequence[Mapping[str, object]], prunable: Prunable) -> set[str]:
    """Groups that keep their widths: without them no layer reads so many others that it has too many widths to time."""
    users = Counter(group for own in losses for group in own)
    fixed: set[str] = set()
    for own in losses:
        left = sorted((group for group in own if group not in fixed), key=users.__getitem__)
        while math.prod(len(prunable.levels(group)) for group in left) > MOST_WIDTHS:
            fixed.add(left.pop())
    return fixed


def _sides(before: Operation, after: Operation) -> tuple[int, int, int]:
    old, new = before.layer, after.layer
    return old.inputs - new.inputs, old.outputs - new.outputs, old.groups - new.groups


def _block_of(operation: Operation, blocks: Iterable[str]) -> str:
    return next((block for block in blocks if inside(operation.module, block)), "")


def _partition(layers: Sequence[Timed]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """The hubs, and the other groups by unit, which is called by its block or by one of its groups.

    A group outside of which layers of a block depend on it is a hub; so is, of a unit with too many groups, the one
    that most layers depend on.
    """
    users: dict[str, list[Timed]] = defaultdict(list)
    for timed in layers:
        for group in timed.losses:
            users[group].append(timed)
    hubs = [group for group, used in users.items() if len({timed.block for timed in used}) > 1]
    while True:
        units = _units({group: used for group, used in users.items() if group not in hubs})
        large = next((groups for groups in units.values() if len(groups) > IN_UNIT), None)
        if large is None:
            return hubs, {name: tuple(groups) for name, groups in units.items()}
        hubs.append(max(large, key=lambda group: len(users[group])))


def _units(users: Mapping[str, Sequence[Timed]]) -> dict[str, list[str]]:
    """Groups that share a block or a layer, directly or by others."""
    units: dict[str, list[str]] = {}
    for group, used in users.items():
        block = used[0].block if used else ""
        if block:
            units.setdefault(block, []).append(group)
            continue
        joined = [name for name, groups in units.items() if any(g in timed.losses for timed in used for g in groups)]
        units[group] = [*(each for name in joined for each in units.pop(name)), group]
    return units
