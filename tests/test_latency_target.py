"""Pruning to a latency: the knapsack, the search against all choices, and targets by a table made by hand."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torchvision.models import DenseNet

from compressor import Context, TorchModel, load
from compressor.console import Console
from compressor.errors import StageError, UserError
from compressor.evaluation import GivenTable, Layer, operations_of
from compressor.evaluation.costs import layers as costs
from compressor.pruning import Choice, Prunable
from compressor.pruning.blocks import removable_blocks
from compressor.pruning.choices import WHOLE
from compressor.pruning.groups import Groups
from compressor.pruning.knapsack import least_loss
from compressor.pruning.latency import Options, Search, layers_left
from compressor.pruning.latency_target import Here
from compressor.pruning.times import Times
from compressor_command import main
from stages import Prune, PruneBlocks, Share, Target, Train

DEEP = {"blocks": [2, 2], "widths": [16, 32]}


def microseconds(layer: Layer) -> float:
    """A machine on which time is multiply-adds, and a little for every value."""
    area = layer.output_size[0] * layer.output_size[1] if layer.operator != "linear" else 1
    weights = layer.outputs * layer.inputs // layer.groups * layer.kernel[0] * layer.kernel[1]
    return (area * (weights if layer.operator in ("conv", "linear") else layer.outputs)) / 1000


def seconds_of(model: TorchModel) -> float:
    shape = model.preprocess.input_shape(2)
    return sum(microseconds(operation.layer) for operation in operations_of(model.network, shape, "float32"))


@pytest.fixture(scope="module")
def deep(context: Context) -> TorchModel:
    return Train(model="resnet", arguments=DEEP, epochs=2, batch_size=64).run(None, context)


@pytest.fixture
def table(deep: TorchModel, context: Context, tmp_path: Path) -> Path:
    """What a stage says it may need, at the prices above."""
    wanted = Prune(target=Target(latency=0.5), round_to=8).timed_layers(deep, context)
    path = tmp_path / "machine.json"
    path.write_text(costs.as_json({layer: microseconds(layer) for layer in wanted}, 2**20, 1))
    return path


@pytest.mark.parametrize("seed", range(20))
def test_the_knapsack_against_all_choices(seed: int) -> None:
    generator = np.random.default_rng(seed)
    times = [generator.integers(0, 100, generator.integers(1, 5)).astype(float) for _ in range(4)]
    losses = [generator.random(len(own)) for own in times]
    limit = float(generator.integers(20, 250))
    allowed = [
        (sum(own[pick] for own, pick in zip(losses, picks, strict=True)), list(picks))
        for picks in itertools.product(*(range(len(own)) for own in times))
        if sum(own[pick] for own, pick in zip(times, picks, strict=True)) <= limit
    ]
    found = least_loss(times, losses, limit)
    if not allowed:
        assert found is None
        return
    assert found is not None
    assert sum(own[pick] for own, pick in zip(times, found, strict=True)) <= limit
    best = min(allowed)[0]
    assert sum(own[pick] for own, pick in zip(losses, found, strict=True)) == pytest.approx(best, abs=0.05)


def test_nothing_fits_into_no_time() -> None:
    assert least_loss([np.array([0.0])], [np.array([1.0])], 0.0) is None
    assert least_loss([], [], 1.0) == []


def prunable_of(model: TorchModel, round_to: int) -> Prunable:
    shape = model.preprocess.input_shape(2)
    groups = Groups(model.network, shape)
    order = {layer: torch.arange(len(group)) for layer, group in groups.by_layer.items()}
    return Prunable.of(model.network, shape, groups, order, round_to=round_to)


def test_hubs_are_the_residual_streams(deep: TorchModel) -> None:
    times = Times(prunable_of(deep, 8), "float32")
    assert sorted(times.hubs) == ["conv1", "layer2.0.conv2"]
    assert {(unit.block, unit.groups) for unit in times.units} == {
        ("layer1.0", ("layer1.0.conv1",)),
        ("layer1.1", ("layer1.1.conv1",)),
        ("layer2.1", ("layer2.1.conv1",)),
        ("", ("layer2.0.conv1",)),
    }
    whole = [operation.layer for operation in operations_of(deep.network, (2, 1, 8, 8), "float32")]
    assert times.left(Choice()) == whole
    left = Choice({"conv1": 8, "layer2.0.conv1": 16}, frozenset({"layer1.1"}))
    pruned = [o.layer for o in operations_of(times.prunable.without(left), (2, 1, 8, 8), "float32")]
    assert sorted(times.left(left)) == sorted(pruned)


def test_the_stem_of_integers_is_padded_as_far_as_it_is_exported_so(deep: TorchModel) -> None:
    """Files pad the image to four channels if the stem has 16 outputs, not if it has 8."""
    times = Times(prunable_of(deep, 8), "int8")
    for kept, inputs in ((16, 4), (8, 1)):
        stem = times.left(Choice({"conv1": kept}))[1]
        assert (stem.inputs, stem.outputs) == (inputs, kept)


class Chain(nn.Module):
    """Three modules of a layer, the second of which hands on as many channels as it is given, but others."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.ModuleList([Unit(3, 16), Unit(16, 16), Unit(16, 16)])
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for unit in self.units:
            x = unit(x)
        return self.fc(x.mean((2, 3)))


class Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x))


def test_a_block_whose_ends_are_different_channels_stays() -> None:
    network = Chain().eval()
    assert list(removable_blocks(network, torch.zeros(2, 3, 4, 4))) == ["units.1", "units.2"]
    groups = Groups(network, (2, 3, 4, 4))
    order = {layer: torch.arange(len(group)) for layer, group in groups.by_layer.items()}
    assert len(order) == 3
    assert Prunable.of(network, (2, 3, 4, 4), groups, order, round_to=8).blocks == []


def test_layers_that_read_many_groups_leave_most_of_them_as_they_are() -> None:
    network = DenseNet(16, (6,), 16, 2, num_classes=10).eval()
    groups = Groups(network, (2, 3, 32, 32))
    order = {layer: torch.arange(len(group)) for layer, group in groups.by_layer.items()}
    times = Times(Prunable(network, (2, 3, 32, 32), groups, order, [], 4), "int8")
    free = {group for timed in times.layers for group in timed.losses}
    bottlenecks = {f"features.denseblock1.denselayer{index}.conv1" for index in range(1, 7)}
    assert bottlenecks <= free < order.keys()
    assert len(layers_left(times)) < 500


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_the_search_finds_what_trying_everything_finds(deep: TorchModel, share: float) -> None:
    """With losses that add up, so that the best of all choices is known."""
    times = Times(prunable_of(deep, 16), "float32")
    worth = {group: 1.0 + index for index, group in enumerate(times.prunable.order)}

    def divergence(choice: Choice) -> float:
        lost = times.removed(choice.kept)
        inner = {unit.block: unit.groups for unit in times.units if unit.block}
        gone = {group for block in choice.removed for group in inner[block]}
        return sum(worth[group] * (32 if group in gone else count) for group, count in lost.items())

    class Priced(GivenTable):
        def __init__(self) -> None:
            self.known = {layer: microseconds(layer) for layer in layers_left(times)}

    search = Search(times, Priced(), divergence, Console())
    whole = search.microseconds(Choice())
    found = Options(search, WHOLE).within(share * whole)
    groups = list(times.prunable.order)
    best = min(
        divergence(choice)
        for widths in itertools.product(*(times.prunable.levels(group) for group in groups))
        for count in range(len(times.prunable.blocks) + 1)
        for removed in itertools.combinations(times.prunable.blocks, count)
        if search.microseconds(choice := Choice(dict(zip(groups, widths, strict=True)), frozenset(removed)))
        <= share * whole
    )
    assert 1 <= len(found) <= 5
    assert all(each.microseconds <= share * whole * (1 + 1e-9) for each in found)
    assert [each.loss for each in found] == sorted(each.loss for each in found)
    assert divergence(found[0].choice) == found[0].loss == best
    in_steps = search.candidates(share * whole)
    assert all(each.microseconds <= share * whole * (1 + 1e-9) for each in in_steps)
    assert divergence(in_steps[0].choice) >= best


@pytest.mark.parametrize("share", [0.6, 0.25])
def test_a_share_of_the_latency_of_another_machine(
    deep: TorchModel, context: Context, table: Path, tmp_path: Path, share: float
) -> None:
    pruned = Prune(target=Target(latency=share, table=table), round_to=8).run(deep, context)
    assert seconds_of(pruned) <= share * seconds_of(deep)
    assert seconds_of(pruned) > 0.7 * share * seconds_of(deep)
    told = pruned.details["latency_target"]
    taken = told["tried"][told["taken"]]
    assert taken["predicted"] == pytest.approx(seconds_of(pruned) / seconds_of(deep))
    assert taken["measured"] is None
    assert taken["divergence"] == min(each["divergence"] for each in told["tried"])
    for name in pruned.details["removed_blocks"]:
        assert pruned.details["widths"][f"{name}.conv1"][1] == 0
    pruned.save(tmp_path)
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    again = load(tmp_path)
    assert isinstance(again, TorchModel)
    assert bool((again.predict(inputs) == pruned.predict(inputs)).all())


def test_blocks_alone(deep: TorchModel, context: Context, table: Path) -> None:
    pruned = PruneBlocks(target=Share(latency=0.7, table=table)).run(deep, context)
    assert seconds_of(pruned) <= 0.7 * seconds_of(deep)
    assert pruned.details["removed_blocks"]
    assert {tuple(widths) for widths in pruned.details["widths"].values() if widths[1]} <= {
        (16, 16),
        (32, 32),
        (10, 10),
    }


def test_milliseconds_and_speed_by_a_table(deep: TorchModel, context: Context, table: Path) -> None:
    whole_ms = seconds_of(deep) / 1000
    by_time = Prune(target=Target(latency_ms=whole_ms / 2, table=table), round_to=8).run(deep, context)
    assert by_time.details["latency_target"]["goal"] == pytest.approx(0.5)
    behind = replace(context, baseline=deep)
    by_speed = Prune(target=Target(speedup=2, table=table), round_to=8).run(deep, behind)
    assert by_speed.details["latency_target"]["goal"] == pytest.approx(0.5)
    assert seconds_of(by_speed) == seconds_of(by_time)
    with pytest.raises(UserError, match="speedup is against the baseline, which must be an earlier stage"):
        Prune(target=Target(speedup=2, table=table)).run(deep, context)


def test_what_is_fast_enough_stays_as_it_is(
    deep: TorchModel, context: Context, monkeypatch: pytest.MonkeyPatch, table: Path
) -> None:
    same = Prune(target=Target(latency_ms=1e5, table=table), round_to=8).run(deep, context)
    assert seconds_of(same) == seconds_of(deep)
    assert same.details["latency_target"]["tried"] == []
    assert not same.changes


def test_out_of_reach(deep: TorchModel, context: Context, table: Path) -> None:
    with pytest.raises(
        StageError, match=r"the target, 0\.010 of the incoming latency, is out of reach; .* keeps 0\.\d{3}"
    ):
        Prune(target=Target(latency=0.01, table=table), round_to=8).run(deep, context)


def test_candidates_are_exported_and_timed_in_the_precision_that_ships(deep: TorchModel, context: Context) -> None:
    clock = Here(deep, prunable_of(deep, 8), replace(context, ships_int8=True))
    assert b"QuantizeLinear" in clock.incoming
    (timed,) = clock.timed([Choice({"conv1": 8}, frozenset({"layer1.0"}))])
    assert timed is not None
    assert timed.runs >= 120
    assert clock.incoming_speedup(deep, context) > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"latency": 0.5, "macs": 0.5},
            "expected exactly one of macs, parameters, latency, latency_ms, speedup and ratio",
        ),
        ({"latency": 1.5}, "less than 1"),
        ({"speedup": 0.5}, "greater than 1"),
        ({"macs": 0.5, "table": "pi.json"}, "table is for latency"),
        ({"table": "pi.json"}, "expected exactly one"),
    ],
)
def test_wrong_targets(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Target.model_validate(settings)


def test_settings_that_a_latency_does_not_use() -> None:
    with pytest.raises(ValidationError, match="leave scope and steps out"):
        Prune(target=Target(latency=0.5), scope="global")


PIPELINE = """\
name: fast
data: {name: digits, validation: 100, calibration: 32}
stages:
  - {stage: train, id: teacher, model: resnet, arguments: {blocks: [1], widths: [16]}, epochs: 1, batch_size: 256}
  - {stage: prune, id: pruned, target: {latency: 0.8, table: machine.json}}
  - {stage: quantize, id: int8, mode: ptq}
measure: {engines: []}
"""


def test_a_table_from_the_command_line_steers_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setattr(costs, "measure", lambda layers, **_: {layer: microseconds(layer) for layer in layers})
    Path("fast.yaml").write_text(PIPELINE)
    assert main(["table", "fast.yaml", "-o", "machine.json", "--script", "pi.py"]) == 0
    wanted = GivenTable(Path("machine.json")).known
    assert {layer.precision for layer in wanted} == {"int8"}  # what ships
    assert Path("pi.py").read_text().count("Layer(operator=") == len(wanted)
    assert f"pi.py times {len(wanted)} layers where it is run: python pi.py TABLE.json" in capsys.readouterr().out
    assert main(["run", "fast.yaml", "--out", "out"]) == 0
    shown = capsys.readouterr().out
    assert "pruned: 80% of the incoming latency was asked for, the layers' times add up to" in shown
    assert "not timed, since another machine ships; 1 block removed" in shown
    assert "16 → removed" in Path("out/report.html").read_text()
    Path("machine.json").write_text(costs.as_json({}, 1, 1))
    assert main(["run", "fast.yaml", "--out", "out"]) == 2  # another table: the stage is made again
    assert "machine.json lacks" in capsys.readouterr().err
