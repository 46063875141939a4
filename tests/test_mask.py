"""Unstructured pruning: which weights become zero, and that they stay zero in the exported file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from compressor import Context, TorchModel, load
from compressor.errors import ArchitectureError, ArtifactError, StageError
from compressor.report.report import Report
from compressor.report.wording import remarks
from stages import Distill, Mask, Prune, Quantize, Target, Train
from tests.conftest import LAYERS, accuracy


def weights(model: TorchModel) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {name: model.network.get_parameter(f"{name}.weight").detach().numpy().copy() for name in LAYERS}


def zeros(model: TorchModel) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {name: weight == 0 for name, weight in weights(model).items()}


@pytest.fixture(scope="module")
def masked(tiny: TorchModel, context: Context) -> TorchModel:
    return Mask(sparsity=0.6).run(tiny, context)


def test_the_smallest_of_all_weights_go(tiny: TorchModel, masked: TorchModel) -> None:
    before = weights(tiny)
    magnitudes = np.sort(np.abs(np.concatenate([weight.ravel() for weight in before.values()])))
    count = round(0.6 * len(magnitudes))
    threshold = (magnitudes[count - 1] + magnitudes[count]) / 2
    for name, after in weights(masked).items():
        assert np.array_equal(after, np.where(np.abs(before[name]) < threshold, 0, before[name]))
    assert masked.counts.nonzero_parameters == masked.counts.parameters - count
    assert masked.counts.parameters == tiny.counts.parameters


def test_locally_each_layer_loses_the_same_share(tiny: TorchModel, context: Context) -> None:
    local = Mask(sparsity=0.25, scope="local").run(tiny, context)
    for name, before in weights(tiny).items():
        count = round(0.25 * before.size)
        assert zeros(local)[name].sum() == count
        assert np.abs(before[zeros(local)[name]]).max() <= np.sort(np.abs(before).ravel())[count]
        assert local.details["zeros"][f"{name}.weight"] == pytest.approx(count / before.size)


@pytest.mark.parametrize(
    "settings", [{"optimizer": "sgd", "ema": 0.5}, {"optimizer": "adamw", "ema": 0.5}, {"keep": "best"}]
)
def test_zeros_stay_and_others_move_in_training(masked: TorchModel, context: Context, settings: dict[str, Any]) -> None:
    settings = {"epochs": 1, "learning_rate": 0.01, **settings}
    trained = Train.model_validate(settings).run(masked, context)
    for name, zero in zeros(masked).items():
        assert np.array_equal(zeros(trained)[name], zero)
        assert not np.array_equal(weights(trained)[name], weights(masked)[name])


def test_the_mask_is_exact_to_the_exported_integers(
    tiny: TorchModel, masked: TorchModel, context: Context, tmp_path: Path
) -> None:
    teaching = Context(data=context.data, teachers={"teacher": tiny}, pipeline="tests")
    recovered = Distill(teacher="teacher", epochs=2, learning_rate=0.02).run(masked, teaching)
    int8 = Quantize(mode="qat", epochs=1, keep="last", learning_rate=1e-3).run(recovered, context)
    int8.save(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, TorchModel)
    assert loaded.counts.nonzero_parameters == masked.counts.nonzero_parameters
    graph = onnx.load_from_string(loaded.to_onnx("tests").content).graph
    integers = [array for array in map(onnx.numpy_helper.to_array, graph.initializer) if array.dtype == np.int8]
    for zero in zeros(masked).values():
        (weight,) = [array for array in integers if array.shape == zero.shape and (array[zero] == 0).all()]
        assert (weight[~zero] != 0).any()
    assert accuracy(loaded, context.data) > 0.8


def test_channels_of_a_masked_network_can_be_pruned(masked: TorchModel, context: Context) -> None:
    pruned = Prune(target=Target(macs=0.7), round_to=2).run(masked, context)
    kept = zeros(pruned)
    trained = Train(epochs=1, learning_rate=0.01).run(pruned, context)
    assert any(zero.any() for zero in kept.values())
    assert all(np.array_equal(zeros(trained)[name], zero) for name, zero in kept.items())


def test_masking_again_continues_from_there(masked: TorchModel, context: Context) -> None:
    again = Mask(sparsity=0.8).run(masked, context)
    assert all((zeros(again)[name] >= zero).all() for name, zero in zeros(masked).items())
    total = sum(zero.size for zero in zeros(again).values())
    assert sum(zero.sum() for zero in zeros(again).values()) == round(0.8 * total)


def test_a_layer_without_any_weight_is_refused(tiny: TorchModel, context: Context) -> None:
    network = tiny.copy_network()
    network.get_parameter("layer1.0.conv1.weight").data *= 1e-4
    with pytest.raises(StageError, match=r"layer1\.0\.conv1\.weight would be left without any weight; .* scope: local"):
        Mask(sparsity=0.5).run(tiny.with_network(network, details={}), context)


def test_a_quantized_network_is_refused(int8: TorchModel, context: Context) -> None:
    with pytest.raises(ArchitectureError, match="mask before you quantize"):
        Mask(sparsity=0.5).run(int8, context)


def test_a_parameter_that_the_network_lacks_is_named(masked: TorchModel, tmp_path: Path) -> None:
    masked.save(tmp_path)
    manifest = tmp_path / "manifest.json"
    content = json.loads(manifest.read_text())
    content["changes"][0]["parameters"] = ["layer9.0.conv1.weight"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"mask a parameter 'layer9\.0\.conv1\.weight' that the network lacks"):
        load(tmp_path)


def test_the_report_says_that_zeros_make_nothing_faster(finished: Path) -> None:
    report = Report.load(finished)
    row = report.rows[1]
    masked = row.model_copy(
        update={"details": {"zeros": {"fc.weight": 0.5}}, "nonzero_parameters": row.parameters - 1200}
    )
    said = remarks(report.model_copy(update={"rows": (masked,)}))
    assert any("1,200 parameters are zero; zeros alone make nothing faster" in remark for remark in said)
    assert not any("zeros" in remark for remark in remarks(report))
