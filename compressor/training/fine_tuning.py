"""Which parameters a training leaves alone, and which have a learning rate of their own.

A name in `freeze`, `unfreeze` and `learning_rates` is that of a module or a parameter, or `body`: everything but the
classifier. A quantized network keeps the names of its layers; its BatchNorms are folded into them.
"""

from collections.abc import Iterable, Set
from itertools import accumulate
from typing import TYPE_CHECKING

from torch import nn

from compressor.config.spec import did_you_mean
from compressor.errors import ArchitectureError
from compressor.tracing import inside
from compressor.training.settings import BODY, Training

if TYPE_CHECKING:
    from compressor.models.artifact import TorchModel

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


def frozen_by(training: Training, network: nn.Module, start: "TorchModel | None") -> frozenset[str]:
    """The parameters and BatchNorms that `freeze` names and `unfreeze` does not.

    Raises:
        ArchitectureError: a name is of nothing that can be frozen, or of nothing that is.
    """
    norms = {name for name, module in network.named_modules() if isinstance(module, BatchNorm)}
    members = norms | dict(network.named_parameters()).keys()
    frozen = {each for name in training.freeze for each in _named(name, "freeze", members, network, start)}
    for name in training.unfreeze:
        free = _named(name, "unfreeze", members, network, start)
        if not frozen & free:
            raise ArchitectureError(f"unfreeze names {name!r}, but freeze names nothing in it; leave it out")
        frozen -= free
    return frozenset(frozen)


def rates_by(training: Training, network: nn.Module, start: "TorchModel | None") -> dict[str, float]:
    """The peak learning rates of parameters that have one of their own; of several names, the longest holds.

    Raises:
        ArchitectureError: a name is of no parameter that is trained.
    """
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    rates: dict[str, float] = {}
    for name in sorted(training.learning_rates, key=lambda name: (name != BODY, len(name))):
        chosen = _named(name, "learning_rates", dict(network.named_parameters()).keys(), network, start)
        if not chosen & trained:
            raise ArchitectureError(f"learning_rates names {name!r}, but all of it is frozen; leave it out")
        rates |= dict.fromkeys(chosen, training.learning_rates[name])
    return rates


def still_norms(network: nn.Module, frozen: Set[str]) -> list[nn.Module]:
    """The BatchNorms that keep their statistics: those that are frozen, and those whose parameters all are."""
    return [
        module
        for name, module in network.named_modules()
        if isinstance(module, BatchNorm) and (name in frozen or _all_in(frozen, name, module))
    ]


def _all_in(frozen: Set[str], name: str, module: nn.Module) -> bool:
    own = {f"{name}.{each}" for each, _ in module.named_parameters(recurse=False)}
    return bool(own) and own <= frozen


def _named(name: str, setting: str, members: Iterable[str], network: nn.Module, start: "TorchModel | None") -> set[str]:
    """The members that a name means.

    Raises:
        ArchitectureError: there are none.
    """
    if name == BODY and not hasattr(network, BODY):
        classifier = start.classifier if start is not None else frozenset[str]()
        if not classifier:
            raise ArchitectureError(
                f"{setting} names the {BODY}, but which layer is the classifier cannot be told, because the network's "
                "factory takes no num_classes; name modules instead"
            )
        return {each for each in members if not any(inside(each, layer) for layer in classifier)}
    chosen = {each for each in members if inside(each, name)}
    if not chosen:
        known = {path for each in members for path in accumulate(each.split("."), "{}.{}".format)} | {BODY}
        raise ArchitectureError(f"{setting} names {name!r}, which holds no parameter{did_you_mean(name, known)}")
    return chosen
