"""The ladder: mend what integers cost, the cheapest way first, until the accuracy holds.

PTQ; channels equalised and biases corrected; AdaRound; QAT; then 1, 2, 4, ... of the most sensitive layers in float.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from compressor.quantization.calibration import CALIBRATION_BATCH
from compressor.quantization.equalisation import equalise
from compressor.quantization.layers import integer_layers
from compressor.quantization.network import QuantizedNetwork
from compressor.quantization.reconstruction import images_at_once, reconstruct
from compressor.quantization.sensitivity import carry_over, sensitivities
from compressor.tracing import inside

MENDED_ON = 256  # images, if memory allows it


class Means(Protocol):
    """What the ladder needs from whoever climbs it."""

    def place(self, floats: Sequence[str]) -> QuantizedNetwork:
        """The network on integers but for these layers, not calibrated."""

    def calibrate(self, network: QuantizedNetwork) -> None:
        """Choose ranges, in place."""

    def images(self, most: int) -> Tensor:
        """The first calibration images, normalised, `[N, C, H, W]`."""

    def train(self, network: QuantizedNetwork, label: str) -> object:
        """QAT, in place."""

    def correct(self, network: QuantizedNetwork) -> int:
        """How many of the judged images it predicts correctly."""


@dataclass(frozen=True)
class Rung:
    """How a network was made, and how many of the judged images it predicts correctly."""

    name: str
    correct: int
    seconds: float
    floats: tuple[str, ...]  # layers that went back to float


class Ladder:
    """Networks made one after the other, until one has enough images right.

    Mending makes up for the errors of the layers before, and training does so better by itself, so both always begin
    from a network that was not mended. Training goes on from what was trained before.

    Attributes:
        rungs: what was tried, in order.
        last: the last network.
        trained: the one that training begins from.
    """

    last: QuantizedNetwork
    trained: QuantizedNetwork

    def __init__(self, means: Means, enough: int, *, trains: bool, say: Callable[[str, int], object]) -> None:
        """`say` is told the name of each network, and how many images it has right."""
        self.means, self.enough, self.trains, self.say = means, enough, trains, say
        self.rungs: list[Rung] = []

    @property
    def holds(self) -> bool:
        """Whether the last network has enough images right."""
        return bool(self.rungs) and self.rungs[-1].correct >= self.enough

    def climb(self, calibrated: QuantizedNetwork) -> bool:
        """Whether the last network holds; if not, all layers would have to be in float."""
        even, self.trained = copy.deepcopy(calibrated), calibrated
        self._try("calibrated", lambda: calibrated)
        self._try("equalised, biases corrected", lambda: self._mended(self._equalised(even), round_weights=False))
        if self.rungs[-1].correct < self.rungs[0].correct:
            even = calibrated
        self._try("rounded by AdaRound", lambda: self._mended(even, round_weights=True))
        if self.trains:
            self._try("trained", lambda: self._trained((), "trained"))
        if not self.holds:
            self._back_to_float(even)
        return self.holds

    def partly(self, network: QuantizedNetwork, floats: Sequence[str]) -> QuantizedNetwork:
        """A network with some of its layers in float."""
        partly = self.means.place(floats)
        carry_over(network, partly)
        return partly

    def _back_to_float(self, even: QuantizedNetwork) -> None:
        """The most sensitive layers, twice as many names each time, as long as there are others."""
        names = list(sensitivities(even, self.means.images(CALIBRATION_BATCH)))
        layers = [layer.name for layer in integer_layers(even)]
        count = 1
        while not self.holds:
            floats = names[:count]
            inside_them = sum(any(inside(layer, name) for name in floats) for layer in layers)
            if inside_them == len(layers):
                return
            self._try_floats(f"{inside_them} layer{'s' * (inside_them > 1)} in float", floats, even)
            count *= 2

    def _try_floats(self, name: str, floats: Sequence[str], even: QuantizedNetwork) -> None:
        """Leave some layers in float: mended, then trained."""
        self._try(name, lambda: self._mended(self.partly(even, floats), round_weights=True), floats)
        if self.trains:
            self._try(f"{name}, trained", lambda: self._trained(floats, f"{len(floats)}-in-float"), floats)

    def _try(self, name: str, make: Callable[[], QuantizedNetwork], floats: Sequence[str] = ()) -> None:
        """Make and judge one more network, unless the last one holds."""
        if self.holds:
            return
        started = time.monotonic()
        self.last = make()
        correct = self.means.correct(self.last)
        self.rungs.append(Rung(name, correct, time.monotonic() - started, tuple(floats)))
        self.say(name, correct)

    def _equalised(self, even: QuantizedNetwork) -> QuantizedNetwork:
        """The network itself, equalised and calibrated again."""
        if equalise(even, self.means.images(MENDED_ON).split(CALIBRATION_BATCH)):
            self.means.calibrate(even)
        return even

    def _mended(self, network: QuantizedNetwork, *, round_weights: bool) -> QuantizedNetwork:
        """A copy that is mended layer by layer."""
        mended = copy.deepcopy(network)
        reconstruct(mended, self.means.images(min(MENDED_ON, images_at_once(mended))), round_weights=round_weights)
        return mended

    def _trained(self, floats: Sequence[str], label: str) -> QuantizedNetwork:
        """A copy of what was trained before, with these layers in float, that is trained further."""
        self.trained = self.partly(self.trained, floats)
        self.means.train(self.trained, label)
        return self.trained

    def details(self, speedups: Sequence[float]) -> list[dict[str, Any]]:
        """As a report shows them, with the speed-up of each over the float file."""
        return [
            {"name": rung.name, "correct": rung.correct, "seconds": round(rung.seconds, 1), "speedup": speedup}
            for rung, speedup in zip(self.rungs, speedups, strict=True)
        ]
