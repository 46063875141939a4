"""The ladder: mend what integers cost, the cheapest way first, until the accuracy holds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.quantization.network import QuantizedNetwork


@dataclass(frozen=True)
class Rung:
    """A quantized network, how it was made, and how many of the judged images it predicts correctly."""

    name: str
    network: QuantizedNetwork
    correct: int
    seconds: float
    floats: tuple[str, ...] = ()  # layers that went back to float


class Ladder:
    """Networks made one after the other, as long as none has enough images right."""

    def __init__(
        self, enough: int, judge: Callable[[QuantizedNetwork], int], say: Callable[[str, int], object]
    ) -> None:
        """`judge` counts the images that a network predicts correctly; `say` is told the name and the count."""
        self.enough = enough
        self.judge, self.say = judge, say
        self.rungs: list[Rung] = []

    @property
    def best(self) -> Rung:
        """The most accurate so far; of equals, the first."""
        return max(self.rungs, key=lambda rung: rung.correct)

    @property
    def holds(self) -> bool:
        """Whether the last network, and so the best, has enough images right."""
        return bool(self.rungs) and self.best.correct >= self.enough

    def climb(self, name: str, make: Callable[[], QuantizedNetwork], floats: Sequence[str] = ()) -> Rung:
        """Make and judge one more network."""
        started = time.monotonic()
        network = make()
        correct = self.judge(network)
        rung = Rung(name, network, correct, time.monotonic() - started, tuple(floats))
        self.rungs.append(rung)
        self.say(name, correct)
        return rung

    def back_to_float(self, names: Sequence[str], make: Callable[[Sequence[str]], QuantizedNetwork]) -> None:
        """The fewest of the first layers that have to be in float; that is found by halving.

        Args:
            names: layers, the most sensitive first.
            make: the network with so many of them in float.
        """
        low, high = 1, len(names)  # as many as there are: nothing is left to quantize
        while low < high:
            count = (low + high) // 2
            name = f"{count} layer{'s' * (count > 1)} in float"
            rung = self.climb(name, lambda count=count: make(names[:count]), names[:count])  # type: ignore[misc]
            if rung.correct >= self.enough:
                high = count
            else:
                low = count + 1

    @property
    def kept(self) -> Rung | None:
        """The rung that holds with the fewest layers in float; None if none does."""
        holding = [rung for rung in self.rungs if rung.correct >= self.enough]
        return min(holding, key=lambda rung: len(rung.floats), default=None)

    def details(self, speedups: Sequence[float | None]) -> list[dict[str, Any]]:
        """As a report shows them, with the speed-up of each over the float file where it was timed."""
        return [
            {"name": rung.name, "correct": rung.correct, "seconds": round(rung.seconds, 1), "speedup": speedup}
            for rung, speedup in zip(self.rungs, speedups, strict=True)
        ]
