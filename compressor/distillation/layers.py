"""Which layers of two networks a loss compares, where the pipeline names none."""

from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import ArchitectureError


def shared_layers(student: nn.Module, teacher: nn.Module, example: Tensor) -> list[str]:
    """The layers that end the teacher's stages, if the student was made of its blocks.

    Of the layers that both networks have by that name, these are the last to end at each size of the teacher's maps.

    Args:
        student: on the CPU, like the teacher.
        teacher: from which blocks or channels were removed.
        example: `[N, C, H, W]`.

    Raises:
        ArchitectureError: there are none.
    """
    known = {name for name, shape in _ended(student, example) if _is_map(shape)}
    at_size = {tuple(shape[2:]): name for name, shape in _ended(teacher, example) if _is_map(shape) and name in known}
    if not at_size:
        raise ArchitectureError(
            "student and teacher have no layer of maps by the same name; name one of each, with student and teacher"
        )
    return list(at_size.values())


def classifier_of(network: nn.Module, example: Tensor) -> str:
    """The last layer to run that has weights of its own."""
    own = {name for name, module in network.named_modules() if next(module.parameters(recurse=False), None) is not None}
    return [name for name, _ in _ended(network, example) if name in own][-1]


@torch.no_grad()
def _ended(network: nn.Module, example: Tensor) -> list[tuple[str, torch.Size]]:
    """Every layer when it ends, and the shape of its output; of what is no tensor, an empty one."""
    ended: list[tuple[str, torch.Size]] = []

    def note(name: str, output: Any) -> None:
        ended.append((name, output.shape if isinstance(output, Tensor) else torch.Size()))

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in network.named_modules()
        if name
    ]
    try:
        network.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
    return ended


def _is_map(shape: torch.Size) -> bool:
    """Whether it is `[N, C, H, W]` of more than one pixel."""
    return len(shape) == 4 and tuple(shape[2:]) != (1, 1)
