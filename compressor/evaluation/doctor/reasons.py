"""Why a file takes its time: each reason is looked for, and what would be faster is timed."""

import platform
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from compressor.evaluation.costs.layers import Layer
from compressor.evaluation.doctor.nodes import (
    DYNAMIC,
    MOVING,
    ROUNDING,
    is_layer,
    layer_of,
    with_whole_widths,
)
from compressor.evaluation.figures import Figures, Microseconds, Rate
from compressor.export import Executed

BEST = Layer("conv", "int8", 64, 64, (28, 28), (3, 3), (1, 1), (1, 1))  # which every processor does well
FASTEST = 1.5  # times the rate of that: no layer is faster
MULTIPLE = 16
GAIN = 2  # times the rate of float: less, and the processor lacks the instructions that make int8 fast
SLOWER = 1.1  # less than this times slower is not said to be slower
TICK = 1e-3  # microseconds: what took no time that can be measured
THREADS = "threads beyond the cores"  # which lies in how a file is run
MOST_TIMED = 8  # different layers for one reason

Times = Mapping[Layer, float]  # in microseconds


class Finding(Figures):
    """Something that costs time.

    `microseconds` is what it costs, as far as `measured` says; `share` is of the time of all operators.
    """

    what: str
    microseconds: Microseconds
    share: Rate
    measured: str
    advice: str


@dataclass(frozen=True)
class Case:
    """A file on this machine.

    Attributes:
        nodes: what is executed.
        by_threads: the file's median microseconds.
        cores: of the machine.
        measure: what layers take by themselves, in microseconds.
    """

    nodes: Sequence[Executed]
    by_threads: Mapping[int, float]
    cores: int
    measure: Callable[[Iterable[Layer]], Times]

    @property
    def total(self) -> float:
        """The microseconds of all operators, as the profiler sees them."""
        return max(_microseconds(self.nodes), TICK)

    @property
    def has_integers(self) -> bool:
        """Whether anything is rounded to integers."""
        return any(node.on_integers or node.operator in ROUNDING for node in self.nodes)

    @cached_property
    def best(self) -> dict[str, float]:
        """The GMAC/s that this processor reaches in a convolution that suits it, by precision."""
        layers = {"int8": BEST, "float32": replace(BEST, precision="float32")}
        times = self.measure(layers.values())
        return {name: layer.macs / max(times[layer], TICK) / 1e3 for name, layer in layers.items()}

    def time(self, layers: Iterable[Layer]) -> Times:
        """What layers take by themselves, and no less than this processor can do: noise would be taken for a gain."""
        return {
            layer: max(each, layer.macs / (FASTEST * self.best[layer.precision]) / 1e3)
            for layer, each in self.measure(layers).items()
        }

    def finding(self, what: str, microseconds: float, measured: str, advice: str) -> Finding:
        """A finding with its share."""
        return Finding(
            what=what, microseconds=microseconds, share=microseconds / self.total, measured=measured, advice=advice
        )

    def slowest(self, wanted: Callable[[Executed], bool]) -> list[Executed]:
        """The nodes of a kind whose layers can be timed by themselves; of many layers, those that cost most."""
        found = [node for node in self.nodes if layer_of(node) is not None and wanted(node)]
        spent: dict[Layer, float] = defaultdict(float)
        for node in found:
            spent[_layer(node)] += node.seconds
        kept = sorted(spent, key=lambda layer: -spent[layer])[:MOST_TIMED]
        return [node for node in found if _layer(node) in kept]


def findings(case: Case) -> list[Finding]:
    """All reasons that lie in the file, the most expensive first; then what lies in how it is run."""
    found = [finding for reason in REASONS for finding in reason(case)]
    return [*sorted(found, key=lambda finding: -finding.share), *threads(case)]


def conversions(case: Case) -> Iterator[Finding]:
    """Rounding and back, apart from the image's own."""
    nodes = [node for node in case.nodes if node.operator in ROUNDING][1:]
    if nodes:
        spent = _microseconds(nodes)
        yield case.finding(
            "rounding to integers and back between operators",
            spent,
            f"{len(nodes)} QuantizeLinear and DequantizeLinear take {spent:.0f} µs",
            "operators between them run in float: put them on integers too, or their neighbours in float as well "
            "(quantize: {placement: measured} tries both)",
        )


def moves(case: Case) -> Iterator[Finding]:
    """Changes of the layout in memory."""
    nodes = [node for node in case.nodes if node.operator in MOVING]
    if nodes:
        spent = _microseconds(nodes)
        yield case.finding(
            "tensors brought into another order",
            spent,
            f"{len(nodes)} {', '.join(sorted({node.operator for node in nodes}))} take {spent:.0f} µs",
            "convolutions and what lies between them want different layouts: keep such operators together, or use one "
            "that has a kernel for the convolutions' layout",
        )


def floats(case: Case) -> Iterator[Finding]:
    """Layers in float that integers make faster."""
    nodes = case.slowest(lambda node: not node.on_integers)
    times = case.time({replace(_layer(node), precision="int8") for node in nodes})
    in_int8 = [times[replace(_layer(node), precision="int8")] for node in nodes]
    spent, least = _microseconds(nodes), sum(in_int8)
    if spent > SLOWER * least:
        yield case.finding(
            "layers that compute in float",
            spent - least,
            f"{len(nodes)} of them take {spent:.0f} µs; on integers, timed by themselves, {least:.0f} µs",
            _towards_integers(case),
        )


def _towards_integers(case: Case) -> str:
    """What lets layers compute on integers that do not."""
    if not case.has_integers:
        return "quantize: it takes calibration images, no training"
    if any(node.operator == "QuantizeLinear" and node.output[0] == "int8" for node in case.nodes):
        return (
            "activations are rounded to int8, some of which ONNX Runtime makes uint8; where the two meet, layers stay "
            "in float: round activations to uint8 (quantize_static: activation_type=QuantType.QUInt8)"
        )
    return (
        "ONNX Runtime takes the integer kernel only between tensors rounded to one type, and if the scale of the "
        "bias is that of the input times that of the weights"
    )


def widths(case: Case) -> Iterator[Finding]:
    """Channels that are no multiple of 16, where a multiple is faster."""
    odd = case.slowest(lambda node: with_whole_widths(_layer(node), MULTIPLE) != _layer(node))
    layers = {_layer(node): with_whole_widths(_layer(node), MULTIPLE) for node in odd}
    times = case.time([*layers, *layers.values()])
    slow = [node for node in odd if times[_layer(node)] > SLOWER * times[layers[_layer(node)]]]
    if slow:
        worst = max(slow, key=lambda node: times[_layer(node)] - times[layers[_layer(node)]])
        own, other = _layer(worst), layers[_layer(worst)]
        yield case.finding(
            f"channels that are no multiple of {MULTIPLE}",
            sum(times[_layer(node)] - times[layers[_layer(node)]] for node in slow),
            f"{own.in_words()} takes {times[own]:.1f} µs, with {other.inputs} to {other.outputs} channels "
            f"{times[other]:.1f} µs; {len(slow)} layers like it",
            f"use widths that are multiples of {MULTIPLE} (prune: {{round_to: {MULTIPLE}}})",
        )


def groups(case: Case) -> Iterator[Finding]:
    """Grouped convolutions that take longer than dense ones."""
    nodes = case.slowest(lambda node: _layer(node).groups > 1)
    layers = {_layer(node): replace(_layer(node), groups=1) for node in nodes}
    times = case.time([*layers, *layers.values()])
    slow = [node for node in nodes if times[_layer(node)] > SLOWER * times[layers[_layer(node)]]]
    if slow:
        own = _layer(slow[0])
        yield case.finding(
            "grouped convolutions",
            sum(times[_layer(node)] - times[layers[_layer(node)]] for node in slow),
            f"{own.in_words()} in {own.groups} groups takes {times[own]:.1f} µs, without groups "
            f"{times[layers[own]]:.1f} µs; {len(slow)} layers like it",
            "a dense convolution of the same width, or a narrower one, is faster on this machine",
        )


def signs(case: Case) -> Iterator[Finding]:
    """Signed activations on x86, whose products want one side unsigned."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return
    nodes = case.slowest(lambda node: node.inputs[0][0] == "int8")
    times = case.time([_layer(node) for node in nodes])
    lost = [1e6 * node.seconds - times[_layer(node)] for node in nodes]
    if sum(lost) > (SLOWER - 1) * _microseconds(nodes):
        yield case.finding(
            "signed activations",
            sum(lost),
            f"{len(nodes)} layers take {_microseconds(nodes):.0f} µs, with unsigned activations "
            f"{sum(times[_layer(node)] for node in nodes):.0f} µs",
            "quantize activations to uint8 (quantize_static: activation_type=QuantType.QUInt8)",
        )


def dynamic(case: Case) -> Iterator[Finding]:
    """Ranges found anew for every image."""
    nodes = [node for node in case.nodes if node.operator in DYNAMIC]
    layers = [layer for node in nodes if (layer := layer_of(node)) is not None]
    times = case.time(layers)
    spent, static = _microseconds(nodes), sum(times[layer] for layer in layers)
    if spent > SLOWER * static:
        yield case.finding(
            "dynamic quantization",
            spent - static,
            f"{len(nodes)} operators take {spent:.0f} µs; with known ranges the {len(layers)} layers among them take "
            f"{static:.0f} µs",
            "calibrate on some images: quantize, or quantize_static",
        )


def instructions(case: Case) -> Iterator[Finding]:
    """Integers on a processor that computes with them hardly faster than in float."""
    nodes = [node for node in case.nodes if is_layer(node) and node.on_integers]
    if nodes and case.best["int8"] < GAIN * case.best["float32"]:
        spent = _microseconds(nodes)
        yield case.finding(
            "integers without the instructions that make them fast",
            spent,
            f"{len(nodes)} layers on integers take {spent:.0f} µs; in a convolution that suits it this processor "
            f"reaches {case.best['int8']:.0f} GMAC/s in int8 and {case.best['float32']:.0f} in float32",
            "time it where it will run: with VNNI (x86) or dot products (ARM) int8 is several times as fast as float",
        )


def threads(case: Case) -> Iterator[Finding]:
    """More threads than cores; a share of the time on so many."""
    more, all_cores = case.by_threads[2 * case.cores], case.by_threads[case.cores]
    if more > SLOWER * all_cores:
        yield Finding(
            what=THREADS,
            microseconds=more - all_cores,
            share=1 - all_cores / more,
            measured=f"{2 * case.cores} threads on {case.cores} cores take {more:.0f} µs, {case.cores} take "
            f"{all_cores:.0f} µs",
            advice=f"set intra_op_num_threads to {case.cores} or less; this concerns a session's options, not the file",
        )


REASONS = (conversions, moves, floats, widths, groups, signs, dynamic, instructions)


def _layer(node: Executed) -> Layer:
    layer = layer_of(node)
    assert layer is not None
    return layer


def _microseconds(nodes: Iterable[Executed]) -> float:
    return sum(1e6 * node.seconds for node in nodes)
