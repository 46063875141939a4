"""The ONNX file: lean, self-contained, described, and in agreement with the network."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from compressor import Context, OnnxModel, TorchModel
from compressor.errors import StageError
from compressor.export import onnx_file
from stages import Export
from tests.test_quantize import model_of


@pytest.fixture(scope="module")
def shipped(int8: TorchModel, context: Context) -> OnnxModel:
    return Export().run(int8, context)


def test_the_file_is_what_readers_expect(shipped: OnnxModel) -> None:
    model = onnx.load_from_string(shipped.content)
    onnx.checker.check_model(model, full_check=True)
    (given,), (made,) = model.graph.input, model.graph.output
    assert (given.name, made.name) == ("input", "logits")
    shape = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
    assert shape == ["batch", 1, 8, 8]
    assert [d.dim_param or d.dim_value for d in made.type.tensor_type.shape.dim] == ["batch", 10]
    assert given.type.tensor_type.elem_type == made.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_metadata_says_how_to_feed_it(shipped: OnnxModel, context: Context) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load_from_string(shipped.content).metadata_props}
    assert set(metadata) == {
        "compressor.preprocess",
        "compressor.labels",
        "compressor.pipeline",
        "compressor.weight_bits",
        "compressor.made_for",
    }
    assert json.loads(metadata["compressor.preprocess"]) == {
        "size": [8, 8],
        "channels": 1,
        "mean": list(context.data.preprocess.mean),
        "std": list(context.data.preprocess.std),
    }
    assert json.loads(metadata["compressor.labels"]) == [str(digit) for digit in range(10)]
    assert metadata["compressor.pipeline"] == "tests"


def test_attributes_that_are_defaults_are_left_out(shipped: OnnxModel) -> None:
    nodes = onnx.load_from_string(shipped.content).graph.node
    found = [{each.name for each in node.attribute} for node in nodes if node.op_type == "Conv"]
    assert found == [{"kernel_shape", "pads"} | ({"strides"} if "strides" in names else set()) for names in found]
    assert any("strides" in names for names in found)  # that halve the image
    assert not all("strides" in names for names in found)


def test_attributes_of_operators_that_are_not_of_onnx_are_kept() -> None:
    node = onnx.helper.make_node("QuickGelu", ["x"], ["y"], domain="com.microsoft", alpha=1.0)
    onnx_file._drop_defaults(node, 1)
    assert [each.name for each in node.attribute] == ["alpha"]


def test_nothing_of_the_exporting_machine_is_left(shipped: OnnxModel, tiny: TorchModel) -> None:
    for content in (shipped.content, tiny.to_onnx("test").content):
        assert b".py" not in content
        assert str(Path.cwd()).encode() not in content
        assert b"stack_trace" not in content
        model = onnx.load_from_string(content)
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_any_batch_gives_the_same_logits(shipped: OnnxModel, context: Context) -> None:
    inputs = context.data.preprocess.normalise(context.data.validation.images[:7]).numpy()
    whole = shipped.predict(inputs)
    one_by_one = np.concatenate([shipped.predict(inputs[i : i + 1]) for i in range(7)])
    assert np.allclose(whole, one_by_one, atol=1e-6)


def test_agreement_is_counted_by_hand(shipped: OnnxModel, int8: TorchModel, context: Context) -> None:
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    session = onnxruntime.InferenceSession(shipped.content)
    got = session.run(["logits"], {"input": inputs.numpy()})[0]
    with torch.no_grad():
        expected = int8.network(inputs).numpy()
    agreement = shipped.details["agreement"]
    assert agreement["images"] == 200
    assert agreement["same_top1"] == (got.argmax(1) == expected.argmax(1)).sum() >= 198
    assert agreement["largest_logit_difference"] == pytest.approx(np.abs(got - expected).max(), abs=1e-5)
    assert agreement["mean_logit_difference"] == pytest.approx(np.abs(got - expected).mean(), abs=1e-6)


def test_too_little_agreement_fails(tiny: TorchModel, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    logits_of = onnx_file.logits_of
    monkeypatch.setattr(onnx_file, "logits_of", lambda *given: np.roll(logits_of(*given), 1, axis=1))
    with pytest.raises(StageError, match=r"agree on 0 of 200 validation images, under the 99\.0% asked for"):
        Export().run(tiny, context)


@pytest.mark.parametrize("opset", [18, 19, 20, 21, 22, 23])
def test_the_opset_is_the_one_asked_for(int8: TorchModel, context: Context, opset: int) -> None:
    model = onnx.load_from_string(Export(opset=opset).run(int8, context).content)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]


@pytest.mark.parametrize("opset", [17, 24])
def test_other_opsets_are_refused(opset: int) -> None:
    with pytest.raises(ValueError, match="opset"):
        Export(opset=opset)


def test_a_clamp_from_a_whole_number_to_another(context: Context) -> None:
    class Clamped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1)).clamp(-1, 0.5)  # type: ignore[no-any-return]

    network, images = Clamped(), 3 * torch.randn(5, 1, 8, 8)
    session = onnx_file.session(onnx_file.export_onnx(network, context.data.preprocess, {}))
    expected = np.clip(network.fc(images.flatten(1)).detach().numpy(), -1, 0.5)
    assert np.allclose(onnx_file.logits_of(session, images.numpy()), expected, atol=1e-5)


def test_resnet20_in_int8_is_under_315_kb() -> None:
    """272 kB of it are weights."""
    from compressor.models.architectures import Architecture
    from compressor.models.changes import Int8
    from compressor.quantization.placement import quantize_network

    network = Architecture(model="resnet20", num_classes=10, in_channels=3).build()
    model = model_of(network, "resnet20", 32, 3)
    quantized = quantize_network(model.network, (2, 3, 32, 32))
    change = Int8(activations=quantized.ranges())
    assert len(model.with_network(quantized, change, details={}).to_onnx("0" * 64).content) < 315_000
