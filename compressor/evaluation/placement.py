"""Where integers pay: placements of the quantizers, timed in ONNX Runtime against the float file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from compressor.evaluation.engines.base import Subject
from compressor.evaluation.latency import Latency, in_sessions
from compressor.evaluation.pair import Pair
from compressor.evaluation.shipping import SETTING, roughly_quantized
from compressor.export import export_onnx, layer_times
from compressor.models.artifact import TorchModel
from compressor.quantization import Placement, layer_names
from compressor.tracing import inside

GAIN = 1.02  # a placement has to be this much faster than another, or chance decides
LARGE = 0.01  # of the time of all layers: losses that are tried by themselves


@dataclass(frozen=True)
class Candidate:
    """A placement, and the names of layers that it leaves in float."""

    placement: Placement
    skip: tuple[str, ...]


@dataclass(frozen=True)
class Attempt:
    """A candidate, and how long its file takes against the float file."""

    candidate: Candidate
    latency: Latency

    def in_words(self) -> str:
        """As `wide with 5 layers in float 1.20x`."""
        skip = self.candidate.skip
        left = f" with {len(skip)} layer{'s' * (len(skip) > 1)} in float" if skip else ""
        return f"{self.candidate.placement}{left} {self.latency.speedup:.2f}x"

    def details(self) -> dict[str, Any]:
        """As a stage reports it."""
        return {**asdict(self.candidate), "latency": self.latency.model_dump(mode="json")}


@dataclass(frozen=True)
class Fastest:
    """The fastest of the candidates that were tried."""

    chosen: Attempt
    tried: tuple[Attempt, ...]

    @property
    def faster(self) -> tuple[Attempt, ...]:
        """Those that are faster than the float file: the chosen one, then the others, the fastest first."""
        others = [each for each in self.tried if each.candidate != self.chosen.candidate]
        others.sort(key=lambda each: -each.latency.speedup)
        return tuple(each for each in (self.chosen, *others) if each.latency.speedup > 1)

    def in_words(self) -> str:
        """What is fastest, and how fast the others were, against the float file."""
        others = ", ".join(each.in_words() for each in self.tried if each.candidate != self.chosen.candidate)
        if self.faster:
            return f"fastest against the float file is {self.chosen.in_words()} ({others})"
        return f"integers are nowhere faster than the float file; the fastest is {self.chosen.in_words()} ({others})"

    def details(self, kept: Attempt | None, correct: Mapping[Candidate, int] | None = None) -> dict[str, Any]:
        """As a stage reports it: what was kept, if anything, and all that was tried.

        Args:
            kept: the candidate that is used; None if the network stays in float.
            correct: the validation images that candidates predict correctly, of those that were judged.
        """
        correct = correct or {}
        tried = [{**each.details(), "correct": correct.get(each.candidate)} for each in self.tried]
        in_float = {"placement": None, "skip": (), "latency": None}
        return {**(in_float if kept is None else kept.details()), "tried": tried}


def fastest_placement(model: TorchModel, images: Tensor, *, skip: Sequence[str] = (), weight_bits: int = 8) -> Fastest:
    """Time both placements against the float file, then the faster one without the layers that lose time.

    At most five files are exported. Ranges hardly change the speed, so a few images calibrate all candidates.

    Args:
        model: a float network.
        images: normalised, `[N, C, H, W]`.
        skip: names of layers that stay in float in any case.
        weight_bits: 8 or 7.

    Raises:
        ArchitectureError: the network cannot be traced, or has no layer that `skip` names.
    """
    with TemporaryDirectory() as folder:
        trial = _Trial(model, images, weight_bits, Path(folder))
        tried = trial.timed(Candidate("layers", tuple(skip)), Candidate("wide", tuple(skip)))
        best = _faster(*tried)
        for candidate in trial.without_losses(best.candidate):
            again, new = trial.timed(best.candidate, candidate)
            tried.append(new)
            best = _faster(again, new)
    return Fastest(best, tuple(tried))


def _faster(first: Attempt, second: Attempt) -> Attempt:
    """The second only if it is faster beyond doubt."""
    return second if second.latency.speedup > GAIN * first.latency.speedup else first


class _Trial:
    """Exports candidates and times them."""

    def __init__(self, model: TorchModel, images: Tensor, weight_bits: int, folder: Path) -> None:
        self.model, self.images, self.weight_bits, self.folder = model, images, weight_bits, folder
        self.float_file = self._written("float", model.to_onnx("").content)
        self.files: dict[Candidate, Path] = {}
        self.layers: dict[Placement, tuple[str, ...]] = {}  # in the order of the file

    def timed(self, *candidates: Candidate) -> list[Attempt]:
        """How long the candidates take, in alternation with the float file and session by session with one another."""
        baseline = Subject(self.float_file)
        times = in_sessions([Pair(Subject(self._file(candidate)), baseline, SETTING) for candidate in candidates])
        return [Attempt(candidate, latency) for candidate, latency in zip(candidates, times, strict=True)]

    def without_losses(self, best: Candidate) -> Iterator[Candidate]:
        """`best` without the layers that take longer on integers than in float: those that lose most, then all.

        The layers alone are compared, without what rounding between float and integers costs: trying tells.
        """
        on_integers = self._layer_times(self._file(best), self.layers[best.placement])
        in_float = self._layer_times(self.float_file, self.layers["layers"])
        left = {name for name in on_integers if not any(inside(name, skipped) for skipped in best.skip)}
        losses = {name: on_integers[name] - in_float[name] for name in left & in_float.keys()}
        losing = sorted(name for name in losses if losses[name] > 0)
        large = [name for name in losing if losses[name] > LARGE * sum(on_integers.values())]
        for names in (large, losing) if large != losing else (losing,):
            if 0 < len(names) < len(left):  # a network without a layer on integers is refused
                yield Candidate(best.placement, (*best.skip, *names))

    def _layer_times(self, file: Path, names: Sequence[str]) -> dict[str, float]:
        """The seconds of every layer; empty if the file has other layers than the network."""
        shape = self.model.preprocess.input_shape(1)
        times = layer_times(file.read_bytes(), np.zeros(shape, dtype=np.float32))
        if len(times) != len(names):
            return {}
        found: dict[str, float] = {}
        for name, seconds in zip(names, times, strict=True):
            if name and seconds is not None:
                found[name] = found.get(name, 0.0) + seconds
        return found

    def _file(self, candidate: Candidate) -> Path:
        if candidate not in self.files:
            network = roughly_quantized(
                self.model,
                self.images,
                placement=candidate.placement,
                skip=candidate.skip,
                weight_bits=self.weight_bits,
            )
            self.layers.setdefault(candidate.placement, layer_names(network))
            content = export_onnx(network, self.model.preprocess, {})
            self.files[candidate] = self._written(str(len(self.files)), content)
        return self.files[candidate]

    def _written(self, name: str, content: bytes) -> Path:
        path = self.folder / f"{name}.onnx"
        path.write_bytes(content)
        return path
