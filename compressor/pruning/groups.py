"""Groups of channels: sets of slices of the same tensors, which can be ranked against one another and removed."""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.errors import ArchitectureError, pass_on_out_of_memory
from compressor.models.changes import Widths
from compressor.pruning.naming import name_channels
from compressor.pruning.slices import FIXED, Kept, Place, Slices
from compressor.storage.tensors import load_into
from compressor.tracing import inside

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Group:
    """Channels that lie in the same tensors.

    Attributes:
        layer: the name of a layer that outputs them.
        members: by tensor and dimension, the indices of each channel along it, int64 `[channels, n]`. Where a
            convolution or norm has groups, which stay equal, a channel here is one of each of them.
    """

    layer: str
    members: Mapping[Place, Tensor]

    def __len__(self) -> int:
        return len(self.members[self._outputs])

    @property
    def parts(self) -> int:
        """How many outputs of `layer` each channel is."""
        return self.members[self._outputs].shape[1]

    def without(self, channels: Tensor) -> Tensor:
        """The channels that are not among these, int64."""
        everything = torch.arange(len(self))
        return everything[~torch.isin(everything, channels)]

    @property
    def _outputs(self) -> Place:
        return f"{self.layer}.weight", 0


Removal = Mapping[str, Tensor]  # by the layer of a group, which of its channels go, int64


class Groups:
    """All groups of a network that can lose channels.

    Args:
        network: in eval mode.
        input_shape: `(N, C, H, W)` of an example, N at least 2.
        skip: names of layers and tensors, or of modules that hold them; a group that includes one is left out.

    Attributes:
        by_layer: the groups.
        rigid: the layers of groups that are left out because the network's code relies on their number of channels.

    Raises:
        ArchitectureError: the network cannot be traced, or `skip` names nothing with channels to remove.
    """

    def __init__(self, network: nn.Module, input_shape: tuple[int, int, int, int], skip: Sequence[str] = ()) -> None:
        self.network, self._input_shape = network, input_shape
        self._shapes = {name: each.shape for name, each in network.state_dict().items() if each.is_floating_point()}
        self._slices = name_channels(network, input_shape, self._shapes)
        self.by_layer = {group.layer: group for group in _found(network, self._slices)}
        self.rigid: list[str] = []
        for layer in {layer for name in skip for layer in self._named_by(name)}:
            del self.by_layer[layer]
        self._leave_out_rigid()

    def kept(self, removal: Removal) -> Kept:
        """The indices that are left, of the dimensions that lose some."""
        left: dict[Place, Tensor] = {}
        for layer, channels in removal.items():
            for (name, dim), indices in self.by_layer[layer].members.items():
                mask = left.setdefault((name, dim), torch.ones(self._shapes[name][dim], dtype=torch.bool))
                mask[indices[channels]] = False
        return {place: mask.nonzero()[:, 0] for place, mask in left.items()}

    def left(self, removal: Removal) -> Iterator[Group]:
        """The groups as they lie in the network without some channels."""
        kept = self.kept(removal)
        for layer, group in self.by_layer.items():
            channels = group.without(removal.get(layer, torch.arange(0)))
            members = {place: indices[channels] for place, indices in group.members.items()}
            yield Group(layer, {p: torch.searchsorted(kept[p], i) if p in kept else i for p, i in members.items()})

    def without(self, removal: Removal) -> nn.Module:
        """A copy of the network without some channels."""
        state = dict(self.network.state_dict())
        for (name, dim), indices in self.kept(removal).items():
            state[name] = state[name].index_select(dim, indices)
        widths = Widths.between(self.network, {name: tensor.shape for name, tensor in state.items()})
        network = widths.apply(copy.deepcopy(self.network), self._input_shape)
        load_into(network, state)
        return network

    def _named_by(self, name: str) -> set[str]:
        """The layers of the groups that a name in `skip` is about."""
        found = {
            layer for layer, group in self.by_layer.items() if any(inside(tensor, name) for tensor, _ in group.members)
        }
        if not name or not found:
            raise ArchitectureError(f"skip names {name!r}, but no layer there has channels to remove")
        return found

    def _leave_out_rigid(self) -> None:
        """Try to remove one channel of each group; without some the network fails, or mixes up others."""
        if not self._runs(self.by_layer):
            self._leave_out({layer for layer in self.by_layer if not self._runs([layer])})
        while self.by_layer and (mixed := self._mixed()):
            self._leave_out(mixed)

    def _leave_out(self, layers: set[str]) -> None:
        self.rigid += sorted(layers)
        for layer in layers:
            del self.by_layer[layer]

    def _one_of_each(self, layers: Sequence[str] | Mapping[str, Group]) -> Removal:
        """One channel of each group; neither the first nor the last, since code that takes parts may cut there."""
        return {layer: torch.tensor([len(self.by_layer[layer]) // 3]) for layer in layers}

    def _runs(self, layers: Sequence[str] | Mapping[str, Group]) -> bool:
        try:
            with torch.no_grad():
                self.without(self._one_of_each(layers))(torch.zeros(self._input_shape))
        except Exception as error:  # a forward pass may raise anything
            pass_on_out_of_memory(error)
            return False
        return True

    def _mixed(self) -> set[str]:
        """The layers of groups whose channels meet others than before once some are removed."""
        removal = self._one_of_each(self.by_layer)
        after = name_channels(self.without(removal), self._input_shape, self._shapes, self.kept(removal))
        sets = after.apart_in(self._slices)
        first = {layer: next(iter(group.members.items())) for layer, group in self.by_layer.items()}
        return {
            layer
            for layer, ((name, dim), indices) in first.items()
            if sets & set(self._slices.sets[self._slices.of(name, dim)[indices.flatten()]].tolist())
        }


def _found(network: nn.Module, slices: Slices) -> Iterator[Group]:
    """The groups of at least two channels that some layer outputs."""
    members: dict[int, dict[Place, list[int]]] = defaultdict(dict)  # of each set
    for place in slices.places():
        for index, number in enumerate(slices.sets[slices.of(*place)].tolist()):
            members[number].setdefault(place, []).append(index)
    members.pop(int(slices.sets[FIXED]), None)
    alike: dict[tuple[tuple[Place, int], ...], list[dict[Place, list[int]]]] = defaultdict(list)
    for own in members.values():
        alike[tuple((place, len(indices)) for place, indices in own.items())].append(own)
    layers = {f"{name}.weight": name for name, module in network.named_modules() if isinstance(module, LAYERS)}
    for signature, channels in alike.items():
        outputs = [layers[name] for (name, dim), _ in signature if dim == 0 and name in layers]
        if outputs and len(channels) > 1:
            yield Group(outputs[0], {place: torch.tensor([own[place] for own in channels]) for place, _ in signature})
