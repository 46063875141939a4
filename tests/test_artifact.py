"""Saving and loading without pickle."""

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from compressor import Context, TorchModel, load
from compressor.data.preprocess import Preprocess
from compressor.errors import ArchitectureError, ArtifactError
from compressor.models.artifact import count_macs
from compressor.models.weights import load_weights, read_weights
from compressor.storage import files
from tests.conftest import LAYERS, equal_states


def test_a_folder_holds_a_manifest_and_safetensors(tiny: TorchModel, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "weights.safetensors"}
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["architecture"]["model"] == "resnet"
    assert manifest["labels"] == [str(digit) for digit in range(10)]


def test_a_quantized_network_is_saved_by_names_of_its_own(int8: TorchModel, tmp_path: Path) -> None:
    int8.save(tmp_path)
    (change,) = json.loads((tmp_path / "manifest.json").read_text())["changes"]
    assert change["kind"] == "int8"
    assert {"input", "relu:relu", "layer1.0.conv2:conv2d", "layer2.0.downsample.0:conv2d"} <= set(change["activations"])
    assert set(safetensors.torch.load_file(tmp_path / "weights.safetensors")) == {
        f"{layer}.{kind}" for kind in ("weight", "bias") for layer in LAYERS
    }


def test_counts_are_those_of_the_unfolded_network(tiny: TorchModel, int8: TorchModel) -> None:
    assert int8.counts.parameters == tiny.counts.parameters == sum(p.numel() for p in tiny.network.parameters())
    assert int8.counts.macs == tiny.counts.macs


def test_nonzero_parameters_are_counted(tiny: TorchModel) -> None:
    network = tiny.copy_network()
    weight = network.get_parameter("fc.weight")
    weight.data.zero_()
    masked = tiny.with_network(network, details={})
    assert masked.counts.nonzero_parameters == tiny.counts.nonzero_parameters - weight.numel()


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_noticed(tiny: TorchModel, tmp_path: Path, name: str, damage: str) -> None:
    tiny.save(tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        load(tmp_path)


def test_a_manifest_does_not_decide_what_is_imported(context: Context, tmp_path: Path) -> None:
    name = "tests.networks:LeNet"
    context.new_model(name, {}).save(tmp_path)
    with pytest.raises(ArchitectureError, match="only when the pipeline itself names it"):
        load(tmp_path)
    assert isinstance(load(tmp_path, factories=frozenset({name})), TorchModel)


def test_weights_that_do_not_fit_are_named_with_both_shapes(tiny: TorchModel) -> None:
    weights = dict(tiny.network.state_dict())
    weights["fc.weight"] = torch.zeros(3, 4)
    del weights["conv1.weight"]
    weights["head.weight"] = torch.zeros(1)
    with pytest.raises(ArtifactError) as caught:
        load_weights(tiny.copy_network(), weights, source="weights.safetensors")
    message = str(caught.value)
    assert "conv1.weight [8, 1, 3, 3] is missing" in message
    assert "fc.weight is [3, 4], the network needs [10, 16]" in message
    assert "head.weight [1] is not in the network" in message


def test_weights_from_safetensors_and_from_a_state_dict(tiny: TorchModel, tmp_path: Path) -> None:
    state = tiny.network.state_dict()
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        read = read_weights(tmp_path / name)
        assert all(torch.equal(read[key], state[key]) for key in state)


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploited"),))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    pickle.dump({"conv1.weight": Exploit()}, buffer)
    (tmp_path / name).write_bytes(buffer.getvalue())
    with pytest.raises(ArtifactError, match=name):
        read_weights(tmp_path / name)
    assert not (tmp_path / "exploited").exists()


def test_missing_weights_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no file"):
        read_weights(tmp_path / "none.safetensors")


def test_an_onnx_file_that_reads_others_is_refused(int8: TorchModel, tmp_path: Path) -> None:
    exported = int8.to_onnx("tests")
    model = onnx.load_from_string(exported.content)
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 8)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    replace(exported, content=model.SerializeToString()).save(tmp_path)
    with pytest.raises(ArtifactError, match="refers to data outside itself; it is not read"):
        load(tmp_path)


def test_a_seal_names_files_of_its_own_folder_only(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "stage"
    folder.mkdir()
    (folder / "weights").write_text("y")
    files.seal(folder)
    assert files.damaged(folder) is None
    (folder / files.SEAL).write_text(f"{files.digest(b'x')}  ../secret\n")
    assert "does not hold the files in SHA256SUMS" in str(files.damaged(folder))


def test_a_model_changes_nothing_of_the_network_it_is_given(tiny: TorchModel) -> None:
    network = tiny.copy_network().train().requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = {name: (value.data_ptr(), value.stride()) for name, value in network.state_dict().items()}
    model = TorchModel(network, tiny.architecture, tiny.preprocess, tiny.labels)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert {name: (value.data_ptr(), value.stride()) for name, value in network.state_dict().items()} == before
    with torch.no_grad():
        next(network.parameters()).zero_()
    assert equal_states(model.network, tiny.network)


class Attention(nn.Module):
    """Patches of 2 x 2, an encoder layer that torch computes in one kernel, attention written out, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 2, stride=2)
        self.encoder = nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.encoder(self.patches(x).flatten(2).transpose(1, 2))  # [N, 16, 16]
        mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        logits: Tensor = self.head(mixed.mean(1))
        return logits


def test_the_multiply_adds_of_attention_by_hand() -> None:
    preprocess = Preprocess(size=(8, 8), channels=1, mean=(0.5,), std=(0.25,))
    tokens, width = 16, 16
    projections = tokens * width * (3 * width + width)  # query, key, value; output
    products = 2 * tokens * tokens * width  # queries with keys, shares with values
    feed_forward = 2 * tokens * width * 32
    by_hand = tokens * width * 4 + projections + products + feed_forward + products + width * 10
    assert torch.backends.mha.get_fastpath_enabled()
    assert count_macs(Attention(), preprocess) == by_hand
    assert torch.backends.mha.get_fastpath_enabled()
