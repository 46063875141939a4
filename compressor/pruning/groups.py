"""Groups of layers whose channels depend on one another (DepGraph, Fang et al. 2023), by torch-pruning."""

import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning.dependency import Node

from compressor.errors import ArchitectureError, first_line, pass_on_out_of_memory
from compressor.pruning.criteria import Importance


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed from all layers of a group at once.

    Attributes:
        layer: the name of the layer that outputs the channels.
        dependencies: torch-pruning's group.
        parts: the channels form this many parts that must stay equal: groups of convolutions and of GroupNorm.
        scores: the importance of a channel `[C / parts]`, averaged over the parts.
    """

    layer: str
    dependencies: Any
    parts: int
    scores: Tensor


class Groups:
    """The groups of a network, which is changed in place when channels are removed.

    Args:
        network: its parameters must require gradients, because the graph is built from them.
        example: a batch of inputs `[N, C, H, W]`.
        skip: names of layers and parameters, or of modules that hold them; a group that includes one stays whole.

    Raises:
        ArchitectureError: torch-pruning cannot follow the network, or `skip` names nothing with channels to remove.
    """

    def __init__(self, network: nn.Module, example: Tensor, skip: Sequence[str] = ()) -> None:
        self._names = {part: name for name, part in (*network.named_parameters(), *network.named_modules())}
        self._parts = {module: _parts(module) for module in network.modules()}  # pruned, grouped may look depthwise
        self._classifier = _classifier(network, example)
        with _saying("torch-pruning cannot follow the network", self._names):
            self._graph = torch_pruning.DependencyGraph().build_dependency(network, example, verbose=False)
        _bound(self._graph, max(max(parameter.shape, default=1) for parameter in network.parameters()))
        self._skipped = self._named_by(skip) if skip else set()

    def scored(self, importance: Importance) -> list[Group]:
        """The groups that channels can be removed from, with the current importance of each channel."""
        groups = []
        for found in self._found():
            layer = self._names[found[0].dep.target.module]
            members = _members(found)
            if any(self._names.get(member) in self._skipped for member in members):
                continue
            parts = math.lcm(*(self._parts.get(member, 1) for member in members))
            if len(found[0].idxs) > parts:
                with _saying(f"torch-pruning cannot rank the channels of layer {layer!r}", {}):
                    scores = importance(found)
                if scores is not None:
                    groups.append(Group(layer, found, parts, scores.view(parts, -1).mean(0)))
        return groups

    def remove(self, group: Group, count: int) -> None:
        """Remove the `count` least important channels of each part, unless that leaves some layer with none."""
        least = group.scores.argsort()[:count]
        starts = torch.arange(group.parts) * len(group.scores)
        channels = (starts[:, None] + least).flatten().sort().values.tolist()
        root = group.dependencies[0].dep
        with _saying(f"torch-pruning cannot remove channels of layer {group.layer!r}", {}), torch.no_grad():
            removal = self._graph.get_pruning_group(root.target.module, root.handler, channels)
            if self._graph.check_pruning_group(removal):
                removal.prune()

    def _found(self) -> list[Any]:
        with _saying("torch-pruning cannot follow the network", self._names):
            return list(self._graph.get_all_groups(ignored_layers=[self._classifier]))

    def _named_by(self, skip: Sequence[str]) -> set[str]:
        """The names of all layers and parameters that `skip` names, directly or by a module that holds them."""
        members = {self._names.get(member) for found in self._found() for member in _members(found)}
        skipped: set[str] = set()
        for name in skip:
            inside = {member for member in members if member and f"{member}.".startswith(f"{name}.")}
            if not inside:
                raise ArchitectureError(f"skip names {name!r}, but no layer there has channels to remove")
            skipped |= inside
        return skipped


@contextmanager
def _saying(what: str, names: Mapping[Any, str]) -> Iterator[None]:
    """Turn an error into a sentence: what fails, after which layer (if torch-pruning's frames tell), and why."""
    try:
        yield
    except Exception as error:  # torch-pruning may raise anything at an operator that it does not know
        pass_on_out_of_memory(error)
        frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
        nodes = [value for local in frames for value in local.values() if isinstance(value, Node)]
        layer = _layer_before(nodes[-1], names) if nodes else None
        behind = f" after {layer!r}" if layer else ""
        raise ArchitectureError(f"{what}{behind}: {type(error).__name__}: {first_line(error)}") from error


def _layer_before(operator: Node, names: Mapping[Any, str]) -> str | None:
    """The nearest layer or parameter that the inputs of `operator` come from."""
    nearest = [operator]
    for node in nearest:
        if node.module in names:
            return names[node.module]
        nearest += [each for each in node.inputs if each not in nearest]
    return None


def _members(group: Any) -> list[Any]:
    """The modules, parameters and operators in a torch-pruning group."""
    return [dependency.target.module for dependency, _ in group]


def _parts(module: nn.Module) -> int:
    match module:
        case nn.Conv1d() | nn.Conv2d() | nn.ConvTranspose1d() | nn.ConvTranspose2d():
            depthwise = module.groups == module.in_channels == module.out_channels
            return 1 if depthwise else module.groups
        case nn.GroupNorm():
            return module.num_groups
    return 1


def _classifier(network: nn.Module, example: Tensor) -> nn.Module:
    """The layer that outputs the logits: the last convolution or linear layer that runs."""
    ran: list[nn.Module] = []
    layers = [module for module in network.modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(lambda module, *_: ran.append(module)) for layer in layers]
    try:
        with torch.no_grad():
            network.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise ArchitectureError("the network has no nn.Conv2d or nn.Linear to prune")
    return ran[-1]


def _bound(graph: Any, widest: int) -> None:
    """Stop a walk in which channels multiply at every turn (windowed attention) and which would never end."""

    def check(channels: list[Any]) -> list[Any]:
        if len(channels) > widest:
            raise OverflowError(f"a layer would lose {len(channels)} channels, but the widest has {widest}")
        return channels

    for node in graph.module2node.values():
        for dependency in node.dependencies:
            dependency.index_mapping.append(check)  # after torch-pruning's own two
