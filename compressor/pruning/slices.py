"""The indices along every dimension of every parameter, and which of them can only be removed together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

FIXED = 0  # the name of what cannot be removed: pixels, logits, whatever an unknown operator reads

Place = tuple[str, int]  # a tensor and one of its dimensions
Shapes = Mapping[str, torch.Size]
Kept = Mapping[Place, Tensor]  # which of the original indices are left, int64


@dataclass(frozen=True)
class Names:
    """For every element of a tensor the name of the slice that makes it, int64.

    An element of a parameter lies in one slice of each dimension, so there is an alternative for each of them, until
    the parameter meets something that tells which one counts.
    """

    alternatives: tuple[Tensor, ...]

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor."""
        return self.alternatives[0].shape

    def reshaped(self, shape: Sequence[int]) -> "Names":
        """The same in another shape."""
        return Names(tuple(names.reshape(shape) for names in self.alternatives))


class Slices:
    """Sets of slices: those that were joined, directly or by others.

    Args:
        shapes: of all parameters and buffers, by name, as they were at first.
        kept: the indices that are left, where some were removed since; the others keep their names.
    """

    def __init__(self, shapes: Shapes, kept: Kept | None = None) -> None:
        sizes = {(name, dim): size for name, shape in shapes.items() for dim, size in enumerate(shape)}
        starts = np.cumsum([FIXED + 1, *sizes.values()]).tolist()
        self._count = starts[-1]
        self._names = {
            place: torch.arange(start, start + size)
            for (place, size), start in zip(sizes.items(), starts[:-1], strict=True)
        }
        for place, indices in (kept or {}).items():
            self._names[place] = self._names[place][indices]
        self._pairs = [torch.zeros(2, 1, dtype=torch.int64)]

    def of(self, name: str, dim: int) -> Tensor:
        """The names of the slices along a dimension, int64 `[size]`."""
        return self._names[name, dim]

    def places(self) -> Sequence[Place]:
        """Every dimension of every tensor."""
        return list(self._names)

    def join(self, a: Tensor, b: Tensor) -> None:
        """Slices in the same position of `a` and `b`, which are broadcast, can only be removed together."""
        pairs = torch.stack([each.reshape(-1) for each in _core(*torch.broadcast_tensors(a, b))])
        pairs = pairs[:, pairs[0] != pairs[1]]
        if pairs.numel():
            self._pairs.append(pairs.unique(dim=1))
            self.__dict__.pop("sets", None)

    def fix(self, names: Tensor) -> None:
        """None of these can be removed."""
        self.join(names, torch.tensor(FIXED))

    @cached_property
    def sets(self) -> Tensor:
        """The number of the set that each name is in, int32 `[names]`."""
        rows, columns = torch.cat(self._pairs, 1).numpy()
        links = coo_matrix((np.ones(len(rows), bool), (rows, columns)), (self._count, self._count))
        return torch.from_numpy(connected_components(links, directed=False)[1])

    def varying(self, names: Tensor) -> list[int]:
        """The dimensions along which slices of different sets lie."""
        (core,) = _core(names)
        sets = self.sets[core]
        return [dim for dim in range(sets.dim()) if bool((sets != sets.narrow(dim, 0, 1)).any())]

    def apart_in(self, other: "Slices") -> set[int]:
        """The sets of `other` whose slices were joined here and not there."""
        sets = other.sets[torch.cat(self._pairs, 1)]  # [2, pairs]
        return set(sets[:, sets[0] != sets[1]].flatten().tolist())


def _core(*names: Tensor) -> Sequence[Tensor]:
    """The same tensors without repetitions: one index of each dimension along which none of them changes."""
    for dim in range(names[0].dim()):
        if all(each.stride(dim) == 0 or bool((each == each.narrow(dim, 0, 1)).all()) for each in names):
            names = tuple(each.narrow(dim, 0, 1) for each in names)
    return names
