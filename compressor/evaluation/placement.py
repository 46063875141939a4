"""Where integers pay: placements of the quantizers, timed in ONNX Runtime against the float file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from compressor.evaluation.engines.base import Session, Subject, engine_of
from compressor.evaluation.latency import Latency, compare, in_sessions
from compressor.evaluation.setting import REFERENCE, Setting
from compressor.export import export_onnx, layer_times
from compressor.models.artifact import TorchModel
from compressor.quantization import Placement, calibrate, layer_names, quantize_network

SETTING = Setting(engine=REFERENCE, device="cpu", threads=1, batch=1)
GAIN = 1.02  # a placement has to be this much faster than another, or measurements decide by chance
LARGE = 0.01  # of all layers' time: losses that are tried by themselves


@dataclass(frozen=True)
class Timed:
    """A placement, and how many times faster than the float file it was in every comparison with it."""

    placement: Placement
    skip: tuple[str, ...]
    latency: Latency | None = None

    def in_words(self) -> str:
        """As `wide without 2 layers 1.32x`."""
        assert self.latency is not None
        without = f" without {', '.join(self.skip)}" if self.skip else ""
        return f"{self.placement}{without} {self.latency.speedup:.2f}x"


@dataclass(frozen=True)
class Fastest:
    """The fastest of the placements that were tried."""

    chosen: Timed
    tried: tuple[Timed, ...]

    def details(self) -> dict[str, Any]:
        """As a stage reports it."""

        def plain(each: Timed) -> dict[str, Any]:
            latency = each.latency.model_dump(mode="json") if each.latency else None
            return {"placement": each.placement, "skip": list(each.skip), "latency": latency}

        return {**plain(self.chosen), "tried": [plain(each) for each in self.tried]}


def fastest_placement(model: TorchModel, images: Tensor, *, skip: Sequence[str] = (), weight_bits: int = 8) -> Fastest:
    """Time both placements against the float file, then the faster one without the layers that lose time.

    At most five files are exported. Ranges hardly change the speed, so a few `images` calibrate all candidates.

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
        tried = [Timed("layers", tuple(skip)), Timed("wide", tuple(skip))]
        tried = trial.timed(tried)
        best = max(tried, key=_speedup)
        if _speedup(best) < GAIN * _speedup(tried[0]):
            best = tried[0]
        for fewer in list(trial.without_losses(best)):
            again, new = trial.timed([best, fewer])
            tried.append(new)
            best = new if _speedup(new) > GAIN * _speedup(again) else again
    return Fastest(best, tuple(tried))


def _speedup(timed: Timed) -> float:
    assert timed.latency is not None
    return timed.latency.speedup


class _Trial:
    """Exports candidates and times them."""

    def __init__(self, model: TorchModel, images: Tensor, weight_bits: int, folder: Path) -> None:
        self.model, self.images, self.weight_bits, self.folder = model, images, weight_bits, folder
        self.float_file = self._written("float", export_onnx(model.copy_network(), model.preprocess, {}))
        self.files: dict[Timed, Path] = {}
        self.layers: dict[Placement, tuple[str, ...]] = {}  # in the order of the file

    def timed(self, candidates: Sequence[Timed]) -> list[Timed]:
        """The candidates with their latency, measured in alternation with the float file and one another."""
        baseline = self._open(self.float_file)
        sessions = [self._open(self._file(each)) for each in candidates]
        comparisons = [partial(compare, each.seconds, baseline.seconds, SETTING) for each in sessions]
        return [
            replace(each, latency=latency) for each, latency in zip(candidates, in_sessions(comparisons), strict=True)
        ]

    def without_losses(self, best: Timed) -> Iterator[Timed]:
        """`best` without the layers that take longer on integers than in float: the large ones, all.

        The layers alone are compared, without what rounding between float and integers costs: trying tells.
        """
        integer = self._layer_times(self._file(best), self.layers[best.placement])
        float_ = self._layer_times(self.float_file, self.layers["layers"])
        losses = {name: integer[name] - float_[name] for name in integer.keys() & float_.keys()}
        losing = sorted((name for name in losses if losses[name] > 0), key=lambda name: -losses[name])
        large = [name for name in losing if losses[name] > LARGE * sum(integer.values())]
        seen: set[int] = {0, len(integer)}  # a network without a layer on integers is none
        for names in (large, losing):
            if len(names) not in seen:
                seen.add(len(names))
                yield Timed(best.placement, (*best.skip, *names))

    def _layer_times(self, file: Path, names: Sequence[str]) -> dict[str, float]:
        """The seconds of every layer whose name is known."""
        shape = self.model.preprocess.input_shape(1)
        times = layer_times(file.read_bytes(), np.zeros(shape, dtype=np.float32))
        if len(times) != len(names):
            return {}
        found: dict[str, float] = {}
        for name, seconds in zip(names, times, strict=True):
            if name and seconds is not None:
                found[name] = found.get(name, 0.0) + seconds
        return found

    def _file(self, candidate: Timed) -> Path:
        key = replace(candidate, latency=None)
        if key not in self.files:
            network = quantize_network(
                self.model.copy_network(),
                self.model.preprocess.input_shape(2),
                skip=candidate.skip,
                weight_bits=self.weight_bits,
                placement=candidate.placement,
            )
            self.layers.setdefault(candidate.placement, layer_names(network))
            calibrate(network, [self.images], "min_max", 1.0)
            content = export_onnx(network, self.model.preprocess, {})
            self.files[key] = self._written(str(len(self.files)), content)
        return self.files[key]

    def _written(self, name: str, content: bytes) -> Path:
        path = self.folder / f"{name}.onnx"
        path.write_bytes(content)
        return path

    @staticmethod
    def _open(file: Path) -> Session:
        return engine_of(SETTING.engine).open(Subject(file), SETTING)
