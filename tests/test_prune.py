"""Structured pruning: exact counts, a network that runs, and targets that mean at most."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning
from pydantic import ValidationError
from torch import nn

from compressor import Context, TorchModel, load
from compressor.errors import ArchitectureError, ArtifactError, StageError
from compressor.models.artifact import count_macs
from compressor.pruning.batch_norm import match_batch_norm
from compressor.pruning.channels import Ranking
from compressor.pruning.groups import Groups
from compressor.pruning.search import largest_within
from stages import Prune, Target
from tests.conftest import accuracy, equal_states


def conv_macs(network: nn.Module, resolution: dict[str, int]) -> int:
    """MACs from the widths of a pruned tiny ResNet, layer by layer."""
    total = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1]
            total += module.in_channels * module.out_channels * kernel * resolution[name] ** 2
        elif isinstance(module, nn.Linear):
            total += module.in_features * module.out_features
    return total


RESOLUTION = {
    "conv1": 8,
    "layer1.0.conv1": 8,
    "layer1.0.conv2": 8,
    "layer2.0.conv1": 4,
    "layer2.0.conv2": 4,
    "layer2.0.downsample.0": 4,
}


@pytest.mark.parametrize("importance", ["l1", "l2", "taylor", "bn_scale", "random"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_at_most_the_target_is_kept(tiny: TorchModel, context: Context, importance: str, scope: str) -> None:
    stage = Prune.model_validate({"target": {"macs": 0.6}, "importance": importance, "scope": scope, "round_to": 2})
    pruned = stage.run(tiny, context)
    macs = conv_macs(pruned.network, RESOLUTION)
    assert pruned.counts.macs == macs
    assert 0.3 < macs / tiny.counts.macs <= 0.6
    assert pruned.details["kept"]["macs"] == macs / tiny.counts.macs
    assert pruned.predict(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_target_in_parameters(tiny: TorchModel, context: Context) -> None:
    pruned = Prune(target=Target(parameters=0.5), round_to=1).run(tiny, context)
    kept = sum(p.numel() for p in pruned.network.parameters()) / sum(p.numel() for p in tiny.network.parameters())
    assert 0.4 < kept <= 0.5


def test_a_ratio_halves_every_width_but_the_classifiers(tiny: TorchModel, context: Context) -> None:
    pruned = Prune(target=Target(ratio=0.5), round_to=1).run(tiny, context)
    widths = {n: m.out_channels for n, m in pruned.network.named_modules() if isinstance(m, nn.Conv2d)}
    assert widths == {n: 4 if n.startswith(("conv1", "layer1")) else 8 for n in RESOLUTION}
    assert pruned.network.get_submodule("fc").out_features == 10
    assert pruned.details["widths"]["layer2.0.conv1"] == [16, 8]


def test_widths_are_multiples_of_round_to(tiny: TorchModel, context: Context) -> None:
    pruned = Prune(target=Target(macs=0.8), round_to=4, scope="global").run(tiny, context)
    convolutions = [m for m in pruned.network.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.out_channels % 4 == 0 for m in convolutions)


def test_several_steps_reach_the_target_too(tiny: TorchModel, context: Context) -> None:
    pruned = Prune(target=Target(macs=0.5), importance="taylor", steps=4, round_to=1).run(tiny, context)
    assert pruned.counts.macs / tiny.counts.macs <= 0.5


def test_a_target_out_of_reach_says_how_far_it_came(tiny: TorchModel, context: Context) -> None:
    with pytest.raises(
        StageError, match=r"at most 0\.010 .* out of reach with round_to 8; the smallest network keeps 0\.\d+"
    ):
        Prune(target=Target(macs=0.01), round_to=8).run(tiny, context)


def test_nothing_to_remove_is_an_error(tiny: TorchModel, context: Context) -> None:
    with pytest.raises(StageError, match="no channel can be removed with round_to 16; lower it"):
        Prune(target=Target(ratio=0.1), round_to=16).run(tiny, context)
    with pytest.raises(StageError, match="the network's code, or skip, fixes every layer's width"):
        Prune(target=Target(ratio=0.5), skip=("conv1", "layer1", "layer2")).run(tiny, context)


@pytest.mark.parametrize("target", [{}, {"macs": 0.5, "ratio": 0.5}, {"macs": 0}, {"macs": 1.5}])
def test_a_target_is_one_fraction(target: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Prune.model_validate({"target": target})


def test_the_important_channels_stay(tiny: TorchModel, context: Context) -> None:
    """Channels of one inner layer are made tiny; those are the ones to go."""
    network = tiny.copy_network()
    doomed = [1, 2, 5, 6]
    for name in ("layer1.0.conv1.weight", "layer1.0.bn1.weight"):
        network.get_parameter(name).data[doomed] = 1e-4
    network.get_parameter("layer1.0.conv2.weight").data[:, doomed] = 1e-4
    marked = tiny.with_network(network, details={})
    pruned = Prune(target=Target(ratio=0.5), round_to=1).run(marked, context)
    match_batch_norm(network, context.data.calibration_batches())
    left = pruned.network.get_parameter("layer1.0.bn1.weight")
    assert torch.equal(left, network.get_parameter("layer1.0.bn1.weight")[[0, 3, 4, 7]])


def test_a_pruned_network_is_rebuilt_from_its_widths(tiny: TorchModel, context: Context, tmp_path: Any) -> None:
    pruned = Prune(target=Target(macs=0.5), round_to=1).run(tiny, context)
    pruned.save(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, TorchModel)
    assert count_macs(loaded.network, loaded.preprocess) == pruned.counts.macs
    again = Prune(target=Target(macs=0.8), round_to=1).run(loaded, context)
    again.save(tmp_path)
    twice = load(tmp_path)
    assert isinstance(twice, TorchModel)
    assert len(twice.changes) == 2
    assert torch.equal(twice.predict(torch.ones(1, 1, 8, 8)), again.predict(torch.ones(1, 1, 8, 8)))


def test_a_network_of_ones_own_is_pruned(context: Context) -> None:
    name = "tests.networks:LeNet"
    lenet = context.new_model(name, {})
    pruned = Prune(target=Target(macs=0.5), round_to=1).run(lenet, context)
    assert pruned.network.get_submodule("fc2").out_features == 10
    assert pruned.counts.macs / lenet.counts.macs <= 0.5


@pytest.mark.parametrize("name", ["PaddedShortcut", "Reshaped"])
def test_a_width_written_into_forward_is_left_alone_and_named(
    context: Context, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network = context.new_model(f"tests.networks:{name}", {})
    with pytest.raises(StageError, match=r"out of reach with round_to 1; the smallest network keeps 1\.000"):
        Prune(target=Target(macs=0.5), round_to=1).run(network, context)


def test_a_quantized_network_is_refused(int8: TorchModel, context: Context) -> None:
    with pytest.raises(ArchitectureError, match="prune before you quantize"):
        Prune(target=Target(macs=0.5)).run(int8, context)


def test_pruning_little_costs_little(tiny: TorchModel, context: Context) -> None:
    pruned = Prune(target=Target(macs=0.95), round_to=1, scope="global").run(tiny, context)
    assert accuracy(pruned, context.data) > 0.6


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("steps", [1, 3])
def test_ranking_is_the_librarys_where_nothing_is_grouped(
    tiny: TorchModel, context: Context, scope: str, steps: int
) -> None:
    expected = tiny.copy_network().requires_grad_(True)
    pruner = torch_pruning.pruner.BasePruner(
        expected,
        torch.zeros(2, 1, 8, 8),
        torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=scope == "global",
        pruning_ratio=0.4,
        iterative_steps=steps,
        ignored_layers=[expected.get_submodule("fc")],
        round_to=1,
    )
    for _ in range(steps):
        pruner.step()
    assert equal_states(removed(tiny, context, 0.4, scope=scope, steps=steps), expected)


def removed(model: TorchModel, context: Context, ratio: float, **settings: Any) -> nn.Module:
    settings = {"criterion": "l2", "scope": "local", "round_to": 1, "steps": 1, "seed": 0, **settings}
    groups = Groups(model.network, model.preprocess.input_shape(2), settings.pop("skip", ()))
    return groups.without(Ranking(groups, context.data, **settings).least(ratio))


@pytest.mark.parametrize(("name", "shares"), [("Shuffled", (0.95, 0.85)), ("ResNeXt", (0.7, 0.4))])
@pytest.mark.parametrize(("scope", "round_to"), [("local", 8), ("global", 1)])
def test_grouped_networks_come_as_close_as_can_be(
    context: Context, name: str, shares: tuple[float, float], scope: Any, round_to: int
) -> None:
    model = context.new_model(f"tests.networks:{name}", {})
    network = model.copy_network()
    match_batch_norm(network, context.data.calibration_batches())  # what the stage ranks
    model = model.with_network(network, details={})
    groups = Groups(network, model.preprocess.input_shape(2))
    ranking = Ranking(groups, context.data, "l2", scope, round_to, steps=1, seed=0)
    scan = {count_macs(groups.without(ranking.least(ratio / 50)), model.preprocess) for ratio in range(1, 50)}
    for macs in shares:
        stage = Prune.model_validate({"target": {"macs": macs}, "scope": scope, "round_to": round_to})
        limit = macs * model.counts.macs
        assert max(each for each in scan if each <= limit) <= stage.run(model, context).counts.macs <= limit


@pytest.mark.parametrize(
    ("ratio", "round_to", "widths"),
    [
        (0.3, 1, (16, 40)),  # of 8 groups: of 4 channels 2 are left, and of 8 channels 5
        (0.3, 16, (16, 48)),  # 2 are left, and of 5 the nearest even number
        (0.6, 8, (8, 24)),  # 1 is left, and 3
        (0.99, 8, (8, 8)),
        (0.99, 24, (24, 24)),  # one multiple, of 3 channels in a group
        (0.99, 64, (32, 64)),  # the narrower layer has no 64 channels, and stays
    ],
)
def test_grouped_channels_are_rounded_in_all_groups_together(
    context: Context, ratio: float, round_to: int, widths: tuple[int, int]
) -> None:
    network = removed(context.new_model("tests.networks:ResNeXt", {}), context, ratio, round_to=round_to)
    grouped = [network.get_submodule(f"blocks.{block}.grouped") for block in (0, 1)]
    assert [(layer.out_channels, layer.groups) for layer in grouped] == [(width, 8) for width in widths]


def test_channels_of_zeros_are_removed_from_every_group_of_a_convolution(context: Context) -> None:
    model = context.new_model("tests.networks:ResNeXt", {})
    network = model.copy_network()
    for block in (0, 1):
        grouped = network.get_submodule(f"blocks.{block}.grouped")
        own = grouped.weight.shape[1]  # channels of a group
        doomed = [i for i in range(8 * own) if i % own == own // 2]  # one of each of the 8 groups
        for name in ("reduce.weight", "grouped.weight", "bn.weight", "bn.bias"):
            network.get_parameter(f"blocks.{block}.{name}").data[doomed] = 0
        grouped.weight.data[:, own // 2] = 0
        network.get_parameter(f"blocks.{block}.expand.weight").data[:, doomed] = 0
    marked = model.with_network(network, details={})
    pruned = removed(marked, context, 0.12, skip=("stem",))  # of 8 in a group 1, of 4 none; of those in the sum none
    assert pruned.get_submodule("blocks.1.grouped").weight.shape == (56, 7, 3, 3)
    images = torch.rand(4, 1, 8, 8)
    assert torch.allclose(pruned.eval()(images), marked.predict(images), atol=1e-6)


def test_several_steps_go_on_to_one_channel_in_a_group(context: Context) -> None:
    model = context.new_model("tests.networks:Shuffled", {})
    network = removed(model, context, 0.9, scope="global", steps=3)
    widths = {m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)}
    assert min(widths) == 4


def test_the_search_starts_from_what_reaches_the_target() -> None:
    """Ratios above 0.85 remove nothing, as where a layer would be left with no channel."""

    def kept(percent: int) -> float:
        return 1.0 if percent > 85 else 1 - percent / 100

    def search(limit: float) -> tuple[int | None, float]:
        return largest_within(limit, lambda ratio: int(ratio * 100), kept, lambda less, more: [less, more])

    assert search(0.7) == (30, pytest.approx(0.7))
    assert search(0.305) == (70, pytest.approx(0.3))
    assert search(0.2) == (80, pytest.approx(0.2))
    assert search(0.1) == (None, pytest.approx(0.2))


@pytest.mark.parametrize(("limit", "layers"), [(0.95, 1), (0.9, 1), (0.89, 2), (0.51, 5), (0.5, 5)])
def test_where_a_ratio_jumps_over_the_target_some_layers_are_enough(limit: float, layers: int) -> None:
    """At a ratio of 0.3, all of five layers lose half of their channels at once."""

    def between(less: int, more: int) -> list[int]:
        return list(range(less, more + 1))

    found = largest_within(limit, lambda ratio: 5 if ratio >= 0.3 else 0, lambda lost: 1 - lost / 10, between)
    assert found == (layers, pytest.approx(1 - layers / 10))


def test_what_no_rule_is_known_for_stays_whole(context: Context, tmp_path: Path) -> None:
    model = context.new_model("tests.networks:Upsampled", {})
    pruned = Prune(target=Target(ratio=0.5), round_to=1).run(model, context)
    widths = {name: outputs for name, (_, outputs) in pruned.details["widths"].items()}
    assert widths == {"stem": 16, "conv": 8, "last": 8, "fc": 10}  # what feeds the transposed convolution, too
    pruned.save(tmp_path)
    loaded = load(tmp_path, factories=frozenset({"tests.networks:Upsampled"}))
    assert isinstance(loaded, TorchModel)
    assert torch.equal(loaded.predict(torch.ones(1, 1, 8, 8)), pruned.predict(torch.ones(1, 1, 8, 8)))


@pytest.mark.parametrize("skip", ["layer9", "layer1.0.conv", "relu", ""])
def test_a_skip_that_names_no_layer_is_refused(tiny: TorchModel, context: Context, skip: str) -> None:
    with pytest.raises(ArchitectureError, match=f"skip names '{skip}', but no layer"):
        Prune(target=Target(macs=0.8), round_to=1, skip=(skip,)).run(tiny, context)


def test_a_skipped_module_keeps_the_channels_of_all_its_layers(tiny: TorchModel, context: Context) -> None:
    pruned = Prune(target=Target(ratio=0.5), round_to=1, skip=("layer2",)).run(tiny, context)
    left = {name: outputs for name, (_, outputs) in pruned.details["widths"].items() if name != "fc"}
    assert left == {
        "conv1": 8,  # what layer2 is given
        "layer1.0.conv1": 4,
        "layer1.0.conv2": 8,
        "layer2.0.conv1": 16,
        "layer2.0.conv2": 16,
        "layer2.0.downsample.0": 16,
    }


@pytest.mark.parametrize("scope", ["local", "global"])
def test_nothing_left_to_prune_is_an_error(tiny: TorchModel, context: Context, scope: str) -> None:
    stage = Prune.model_validate({"target": {"macs": 0.8}, "scope": scope, "skip": ["conv1", "layer1", "layer2"]})
    with pytest.raises(StageError, match=r"out of reach .* keeps 1\.000"):
        stage.run(tiny, context)


def test_norms_and_one_dimensional_convolutions_are_saved(context: Context, tmp_path: Path) -> None:
    pruned = Prune(target=Target(ratio=0.5), round_to=1).run(context.new_model("tests.networks:Normed", {}), context)
    shapes = {name: list(tensor.shape) for name, tensor in pruned.network.state_dict().items()}
    assert shapes["group_norm.weight"] == shapes["layer_norm.weight"] == shapes["plain.running_mean"] == [8]
    assert shapes["row.weight"] == [8, 8, 3]
    pruned.save(tmp_path)
    loaded = load(tmp_path, factories=frozenset({"tests.networks:Normed"}))
    assert isinstance(loaded, TorchModel)
    assert torch.equal(loaded.predict(torch.ones(1, 1, 8, 8)), pruned.predict(torch.ones(1, 1, 8, 8)))


@pytest.mark.parametrize(
    ("layer", "width", "says"),
    [
        ("layer9", {"inputs": 8, "outputs": 8}, "name a layer 'layer9' that the network lacks"),
        ("layer1", {"inputs": 8, "outputs": 8}, "name a layer 'layer1' that the network lacks"),
        (
            "layer1.0.conv1",
            {"inputs": 8, "outputs": 10**12},
            r"make 'layer1\.0\.conv1' wider than the architecture does",
        ),
        ("layer1.0.conv1", {"inputs": 9, "outputs": 8}, r"make 'layer1\.0\.conv1' wider than the architecture does"),
        ("layer1.0.conv1", {"inputs": 8, "outputs": 8, "groups": 8}, "wider than the architecture does"),
        ("layer1.0.conv1", {"inputs": 8, "outputs": 0}, "greater than or equal to 1"),
        ("layer1.0.conv1", {"inputs": -8, "outputs": 8}, "greater than or equal to 1"),
        ("layer1.0.conv1", {"inputs": 8, "outputs": 8, "groups": 3}, "8 and 8 channels do not lie in 3 equal groups"),
    ],
)
def test_widths_that_no_pruning_left_are_refused(
    tiny: TorchModel, context: Context, tmp_path: Path, layer: str, width: dict[str, int], says: str
) -> None:
    Prune(target=Target(ratio=0.5), round_to=1).run(tiny, context).save(tmp_path)
    manifest = tmp_path / "manifest.json"
    content = json.loads(manifest.read_text())
    content["changes"][0]["layers"][layer] = width
    manifest.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=says):
        load(tmp_path)
