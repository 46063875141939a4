"""Which layers of two networks a loss compares, where the pipeline names none."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import ArchitectureError


def shared_layers(student: nn.Module, teacher: nn.Module, example: Tensor) -> list[str]:
    """The layers that end the teacher's stages, if the student was made of its blocks.

    Of the blocks that both networks have by that name, these are the outermost at each size of the teacher's maps, and
    of several the last to end. A block is part of the network itself, or of an `nn.Sequential` that is, and runs once.

    Args:
        student: on the CPU, like the teacher.
        teacher: from which blocks or channels were removed.
        example: `[N, C, H, W]`.

    Raises:
        ArchitectureError: there are none.
    """
    known = _maps(student, example)
    shared = [(name, size) for name, size in _maps(teacher, example).items() if name in known]
    at_size = {size: name for name, size in sorted(shared, key=lambda each: -each[0].count("."))}
    if not at_size:
        raise ArchitectureError(
            "student and teacher have no block of maps [N, C, H, W] by the same name; name a layer of each, with "
            "student and teacher"
        )
    return [name for name, _ in shared if name in at_size.values()]


def classifier_of(network: nn.Module, example: Tensor) -> str:
    """The last layer to run of those that have weights, and no layers in them that have."""
    weighted = {name.rpartition(".")[0] for name, _ in network.named_parameters()}
    innermost = {name for name in weighted if name and not any(other.startswith(f"{name}.") for other in weighted)}
    return [name for name, _ in _ended(network, example) if name in innermost][-1]


def _maps(network: nn.Module, example: Tensor) -> dict[str, tuple[int, int]]:
    """Height and width of what each block outputs, in the order in which blocks end; maps have the image's proportions.

    So maps `[N, H, W, C]` are left out, and what is one pixel.
    """
    ended = _ended(network, example)
    runs, blocks = Counter(name for name, _ in ended), set(_blocks(network))
    height, width = example.shape[2:]
    return {
        name: (shape[2], shape[3])
        for name, shape in ended
        if name in blocks
        and runs[name] == 1
        and len(shape) == 4
        and abs(shape[2] * width - shape[3] * height) <= max(height, width)
        and tuple(shape[2:]) != (1, 1)
    }


def _blocks(network: nn.Module, prefix: str = "") -> Iterator[str]:
    for name, child in network.named_children():
        yield prefix + name
        if type(child) is nn.Sequential:
            yield from _blocks(child, f"{prefix}{name}.")


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
