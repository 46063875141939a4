"""Pretrained weights of torchvision and timm, from stand-ins of their hosts on this machine."""

import copy
import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from compressor import Context, Data, Pipeline, TorchModel, load
from compressor.console import Console
from compressor.errors import ArchitectureError, ArtifactError
from compressor.models.architectures import Architecture
from compressor.models.libraries.catalogue import pretrained
from compressor.pipeline import completed
from compressor.runs.dry_run import synthetic
from compressor.runs.keys import changes, made_from
from compressor_command import main
from stages import Train

COMMIT, OLDER = "a" * 40, "b" * 40
REPOSITORY = "timm/test_resnet.r160_in1k"


@dataclass
class Host:
    """Answers with the files it holds, as the hub does: their commit and digest in the header."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            content = held.files.get(self.path)
            if self.command == "GET":
                held.asked.append(self.path)
            self.send_response(200 if content is not None else 404)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
                content = b""
            self.send_header("X-Repo-Commit", OLDER if OLDER in self.path else COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    held = Host(f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", held.url)  # HF_ENDPOINT was read when it was imported
    template = f"{held.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield held
    server.shutdown()
    thread.join()
    server.server_close()


def images(size: int, channels: int = 3) -> Context:
    """A context with four random images of ten classes."""
    preprocess = Data.model_validate({"name": "digits", "size": [size, size], "channels": channels}).preprocess()
    return Context(data=synthetic(tuple("0123456789"), preprocess, Data(name="digits")))


def timm_weights(host: Host, name: str, commit: str = COMMIT, **arguments: object) -> dict[str, Tensor]:
    """Weights of a network of timm, which the hub then holds."""
    torch.manual_seed(int(commit[0], 16))
    state: dict[str, Tensor] = timm.create_model(name, **arguments).state_dict()
    content = safetensors.torch.save(state)
    for revision in (commit, "main") if commit == COMMIT else (commit,):
        host.files[f"/{timm.get_pretrained_cfg(name).hf_hub_id}/resolve/{revision}/model.safetensors"] = content
    return state


def torchvision_weights(host: Host, patch: pytest.MonkeyPatch, name: str, **arguments: object) -> dict[str, Tensor]:
    """Weights of a network of torchvision, which its host then holds, with their digest in their name."""
    torch.manual_seed(1)
    state: dict[str, Tensor] = torchvision.models.get_model(name, **arguments).state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    path = f"/{name}-{hashlib.sha256(file.getvalue()).hexdigest()[:8]}.pth"
    host.files[path] = file.getvalue()
    patch.setattr(torchvision.models.get_model_weights(name).DEFAULT.value, "url", host.url + path)
    return state


def differing(network: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """The tensors of a network that are not those of `state`."""
    own = network.state_dict()
    return {name for name in own if name not in state or not torch.equal(own[name], state[name])}


# timm


def test_timm_networks_are_built_for_the_data() -> None:
    network = Architecture(model="timm:test_resnet", num_classes=7, in_channels=1).build()
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_the_head_of_a_timm_network_is_made_anew(host: Host) -> None:
    state = timm_weights(host, "test_resnet")
    model = Train(model="timm:test_resnet", weights="pretrained", epochs=0).run(None, images(32))
    assert differing(model.network, state) == {"fc.weight", "fc.bias"}
    assert model.details["pretrained"] == {
        "model": "timm:test_resnet",
        "source": f"{REPOSITORY}@{COMMIT}",
        "license": "apache-2.0",
        "new_layers": ["fc"],
    }
    again = Train(model="timm:test_resnet", weights="pretrained", epochs=0).run(None, images(32))
    assert differing(again.network, model.network.state_dict()) == set()  # the head is drawn by the seed
    assert len(host.asked) == 1  # then it is in the hub's cache


def test_a_commit_can_be_pinned(host: Host) -> None:
    timm_weights(host, "test_resnet")
    older = timm_weights(host, "test_resnet", OLDER)
    stage = Train(model="timm:test_resnet", weights=f"pretrained:{OLDER}", epochs=0)
    model = stage.run(None, images(32))
    assert differing(model.network, older) == {"fc.weight", "fc.bias"}
    assert model.details["pretrained"]["source"] == f"{REPOSITORY}@{OLDER}"


def test_gray_images_get_the_sum_over_the_colours(host: Host) -> None:
    """As timm adapts a first convolution: a gray image is one whose three channels are the same."""
    state = timm_weights(host, "test_resnet")
    model = Train(model="timm:test_resnet", weights="pretrained", epochs=0).run(None, images(32, channels=1))
    first = model.network.state_dict()["conv1.0.weight"]
    torch.testing.assert_close(first, state["conv1.0.weight"].sum(1, keepdim=True))
    assert differing(model.network, state) == {"conv1.0.weight", "fc.weight", "fc.bias"}


def test_position_embeddings_follow_the_size_as_timm_resamples_them(host: Host) -> None:
    state = timm_weights(host, "test_vit")
    stage = Train(model="timm:test_vit", arguments={"img_size": 64}, weights="pretrained", epochs=0)
    model = stage.run(None, images(64))
    assert differing(model.network, state) == {"pos_embed", "head.weight", "head.bias"}
    expected = timm.layers.resample_abs_pos_embed(state["pos_embed"], (4, 4), num_prefix_tokens=1)
    torch.testing.assert_close(model.network.state_dict()["pos_embed"], expected)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("timm:test_resnett", "timm has no network named 'test_resnett'; did you mean `test_resnet`"),
        ("timm:hf-hub:timm/test_resnet", "timm has no network named 'hf-hub:timm/test_resnet'"),
        ("timm:local-dir:/tmp", "timm has no network named 'local-dir:/tmp'"),
        ("timm:test_resnet.r160_in2k", "timm has no weights 'r160_in2k' of test_resnet; did you mean `r160_in1k`"),
        ("timm:resnet18.", "timm has no weights '' of resnet18; expected one of "),
        ("timm:test_coatnet", "timm:test_coatnet has no pretrained weights as safetensors on the hub"),
        ("resnet20", "there are no pretrained weights of 'resnet20'"),
        ("torchvision:resnet18", "torchvision:resnet18 has no pretrained weights 'V9'; expected one of IMAGENET1K_V1"),
        ("torchvision:vgg16", "the pretrained weights IMAGENET1K_FEATURES of torchvision:vgg16 have no classifier"),
    ],
)
def test_weights_that_there_are_not_are_refused(model: str, words: str) -> None:
    version = {"torchvision:resnet18": "V9", "torchvision:vgg16": "IMAGENET1K_FEATURES"}.get(model, "")
    with pytest.raises(ArchitectureError, match=re.escape(words)):
        pretrained(model, version)


def test_without_timm_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ArchitectureError, match=r"^timm is not installed; pip install 'compressor\[timm\]'$"):
        Architecture(model="timm:test_resnet", num_classes=7, in_channels=1).build()


# torchvision


def test_the_head_of_a_torchvision_network_is_made_anew(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision_weights(host, monkeypatch, "squeezenet1_1")
    stage = Train(model="torchvision:squeezenet1_1", weights="pretrained:IMAGENET1K_V1", epochs=0)
    model = stage.run(None, images(32))
    assert differing(model.network, state) == {"classifier.1.weight", "classifier.1.bias"}
    assert model.details["pretrained"]["new_layers"] == ["classifier.1"]
    assert model.details["pretrained"]["source"] == host.url + host.asked[0]
    stage.run(None, images(32))
    assert len(host.asked) == 1  # then it is in torch's cache


def test_auxiliary_heads_are_left_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision_weights(host, monkeypatch, "googlenet", init_weights=False)
    assert "aux1.fc2.weight" in state
    model = Train(model="torchvision:googlenet", weights="pretrained", epochs=0).run(None, images(32))
    assert differing(model.network, state) == {"fc.weight", "fc.bias"}
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 32, 32)
    own = torchvision.models.googlenet(init_weights=False, transform_input=True)  # as torchvision's own builder has it
    own.load_state_dict(state)
    own.fc = copy.deepcopy(model.network.fc)
    assert torch.equal(model.predict(inputs), own.eval()(inputs))


def from_a_file(monkeypatch: pytest.MonkeyPatch, path: Path, weights: Mapping[str, Tensor]) -> None:
    """Let torchvision's weights be those in a file."""
    torch.save(weights, path)
    monkeypatch.setattr("compressor.models.libraries.torchvision.TorchvisionWeights._file", lambda _: path)


def test_the_names_in_densenets_files_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`norm.1` for `norm1`."""
    rename = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])\.")
    network = torchvision.models.densenet121()
    weights = {rename.sub(r"\1.\2.", name): tensor for name, tensor in network.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in weights
    from_a_file(monkeypatch, tmp_path / "old.pth", weights)
    loaded, _ = pretrained("torchvision:densenet121").download({}, 3)
    assert differing(loaded, network.state_dict()) == set()


SMALL = {"patch_size": 16, "num_layers": 2, "num_heads": 1, "hidden_dim": 4, "mlp_dim": 4, "image_size": 32}


@pytest.fixture
def small_vit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Module]:
    """A tiny vision transformer in the place of torchvision's."""
    vit = partial(torchvision.models.VisionTransformer, **SMALL)
    monkeypatch.setattr("torchvision.models.get_model", lambda name, weights, **given: vit(**given))
    return vit


def test_files_of_an_older_version_are_understood(
    small_vit: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file says of which version its names are: `linear_1` in the first one of a vision transformer."""
    network = small_vit()
    state = network.state_dict()
    for name in list(state):
        state[name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")] = state.pop(name)
    assert "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in state
    for name, metadata in state._metadata.items():
        if name.endswith(".mlp"):
            metadata["version"] = 1
    from_a_file(monkeypatch, tmp_path / "old.pth", state)
    loaded, _ = pretrained("torchvision:vit_b_16").download({}, 3)
    assert differing(loaded, network.state_dict()) == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image_size": 64}, "do not fit its arguments: size mismatch for encoder.pos_embedding: copying a param"),
        (
            {"num_layers": 1},
            "do not fit its arguments: encoder.layers.encoder_layer_1.ln_1.weight is in one of them only",
        ),
    ],
)
def test_arguments_that_the_weights_do_not_fit_are_named(
    arguments: dict[str, object],
    words: str,
    small_vit: Callable[..., nn.Module],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from_a_file(monkeypatch, tmp_path / "vit.pth", small_vit().state_dict())
    with pytest.raises(ArtifactError, match=re.escape(words)):
        pretrained("torchvision:vit_b_16").download(arguments, 3)


def test_every_file_of_torchvision_has_its_digest_in_its_name_and_a_description_that_data_takes() -> None:
    for name in torchvision.models.list_models(module=torchvision.models):
        for entry in torchvision.models.get_model_weights(name):
            assert torch.hub.HASH_REGEX.search(entry.url.rpartition("/")[2])
            if entry.meta["categories"] is not None:
                found = pretrained(f"torchvision:{name}", entry.name)
                data = Data(name="image_folder").completed(found.data_for(3))
                assert data.preprocess().size == (entry.transforms().crop_size[0],) * 2


def test_every_description_of_timm_is_one_that_data_takes() -> None:
    for name in timm.list_models(pretrained=True)[::5]:
        if timm.get_pretrained_cfg(name).hf_hub_id:
            Data(name="image_folder").completed(pretrained(f"timm:{name}").data_for(3)).preprocess()


# what can go wrong


def test_a_damaged_download_of_torchvision_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_weights(host, monkeypatch, "squeezenet1_1")
    stage = Train(model="torchvision:squeezenet1_1", weights="pretrained", epochs=0)
    (path,) = host.files
    content = host.files[path]
    host.files[path] = content[:-1] + b"!"
    with pytest.raises(ArtifactError, match=r"cannot be downloaded from .* \(invalid hash value .* put the file at /"):
        stage.run(None, images(32))
    file = Path(torch.hub.get_dir(), "checkpoints", path[1:])
    assert list(file.parent.iterdir()) == []
    file.write_bytes(content[:-1] + b"!")
    with pytest.raises(ArtifactError, match="does not have the digest that its name holds; it is damaged: remove it"):
        stage.run(None, images(32))
    file.write_bytes(content)  # as one without a connection puts it there
    stage.run(None, images(32))


def test_a_pickle_of_torchvision_is_not_unpickled(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "unpickled",))

    file = io.BytesIO()
    torch.save({"classifier.1.weight": Evil()}, file)
    name = f"/squeezenet1_1-{hashlib.sha256(file.getvalue()).hexdigest()[:8]}.pth"
    host.files[name] = file.getvalue()
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    monkeypatch.setattr(weights.value, "url", host.url + name)
    with pytest.raises(ArtifactError, match="is not a state dict that loads with weights_only"):
        Train(model="torchvision:squeezenet1_1", weights="pretrained", epochs=0).run(None, images(32))
    assert not (tmp_path / "unpickled").exists()


def test_only_safetensors_are_taken_from_the_hub(host: Host) -> None:
    host.files[f"/{REPOSITORY}/resolve/main/pytorch_model.bin"] = b"a pickle"
    with pytest.raises(
        ArtifactError, match=rf"model.safetensors of {host.url}/{REPOSITORY} at the newest commit \(Client error '404"
    ):
        Train(model="timm:test_resnet", weights="pretrained", epochs=0).run(None, images(32))
    assert not host.asked


def test_weights_of_another_network_are_refused(host: Host) -> None:
    timm_weights(host, "test_vit")
    host.files = {path.replace("test_vit", "test_resnet"): content for path, content in host.files.items()}
    with pytest.raises(
        ArtifactError, match="the pretrained weights of timm:test_resnet do not fit its arguments: Missing key"
    ):
        Train(model="timm:test_resnet", weights="pretrained", epochs=0).run(None, images(32))


@pytest.mark.parametrize(
    "argument", ["pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"]
)
def test_a_manifest_that_names_timm_reads_and_downloads_nothing(argument: str, host: Host, tmp_path: Path) -> None:
    timm_weights(host, "test_resnet")
    model = Train(model="timm:test_resnet", weights="pretrained", epochs=0).run(None, images(32))
    model.save(tmp_path)
    host.asked.clear()
    loaded = load(tmp_path)
    assert isinstance(loaded, TorchModel)
    assert differing(loaded.network, model.network.state_dict()) == set()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["architecture"]["arguments"] = {argument: {"file": "nowhere"}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ArchitectureError, match=f"argument '{argument}' of timm:test_resnet would read or download a file"
    ):
        load(tmp_path)
    manifest["architecture"] |= {"model": f"timm:local-dir:{tmp_path}", "arguments": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArchitectureError, match="timm has no network named 'local-dir:"):
        load(tmp_path)
    assert host.asked == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "resnet20", "weights": "pretrained"}, "needs a model of a library: torchvision:NAME or timm:NAME"),
        ({"weights": "pretrained:x"}, "needs a model of a library: torchvision:NAME or timm:NAME"),
        ({"model": "resnet20", "weights": 5}, "got 5; expected a file, or `pretrained`"),
    ],
)
def test_weights_without_a_library_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Train.model_validate({"epochs": 0, **settings})
    assert isinstance(Train(model="resnet20", weights="pretrained.pt", epochs=0).weights, Path)  # type: ignore[arg-type]


# a pipeline

PIPELINE = """\
name: fine
data: {name: digits, channels: 3, train: 200, validation: 50, test: 50, calibration: 16, size: [40, 40]}
stages:
  - {stage: train, id: teacher, model: "timm:test_resnet", weights: pretrained, epochs: 1, learning_rate: 0.01, freeze: [body]}
measure: {engines: []}
"""


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("", ((224, 224), 235, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),  # floor(224 / 0.95)
        ("size: [112, 96]", ((112, 96), 118, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        (
            "size: [64, 64], resize: 64, interpolation: bilinear, mean: [0, 0, 0], std: [1, 1, 1]",
            ((64, 64), 64, "bilinear", (0, 0, 0), (1, 1, 1)),
        ),
        ("channels: 1", ((224, 224), 235, "bicubic", (0.449,), (0.226,))),
    ],
)
def test_what_data_leave_open_is_as_the_weights_expect(own: str, expected: tuple[object, ...], tmp_path: Path) -> None:
    text = PIPELINE.replace("test_resnet", "resnet18").replace("size: [40, 40]", own).replace("channels: 3, ", "")
    (tmp_path / "p.yaml").write_text(text if "channels" in own else text.replace("name: digits", "name: cifar10"))
    whole = completed(Pipeline.load(tmp_path / "p.yaml"))
    preprocess = whole.data.preprocess()
    found = (preprocess.size, preprocess.resize, preprocess.interpolation)
    assert found == expected[:3]
    assert (preprocess.mean, preprocess.std) == (pytest.approx(expected[3]), pytest.approx(expected[4]))
    assert completed(whole) == whole
    (tmp_path / "again.yaml").write_text(whole.to_yaml())
    assert Pipeline.load(tmp_path / "again.yaml") == whole


def test_what_later_weights_expect_otherwise_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = '  - {stage: train, id: other, model: "torchvision:squeezenet1_1", weights: pretrained, epochs: 0}\n'
    (tmp_path / "p.yaml").write_text(PIPELINE.replace("measure:", f"{later}measure:"))
    completed(Pipeline.load(tmp_path / "p.yaml"), Console.terminal())
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("data as the weights of teacher expect it: resize: 42, ")
    assert second == (
        "  warning: the weights of other expect other data: size: [224, 224], resize: 256, mean: [0.485, 0.456, 0.406], "
        "std: [0.229, 0.224, 0.225]"
    )


def test_torchvisions_preprocessing_is_its_own(tmp_path: Path) -> None:
    """A photograph becomes the same input, to Pillow's rounding."""
    entry = torchvision.models.EfficientNet_B0_Weights.DEFAULT
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    photograph = Image.fromarray(pixels).resize((400, 300))
    found = Data(name="image_folder").completed(pretrained("torchvision:efficientnet_b0").data_for(3)).preprocess()
    own = found.normalise(torch.from_numpy(found.pixels(photograph).copy())[None])[0]
    assert (own - entry.transforms()(photograph)).abs().max() * min(found.std) * 255 < 2


def test_gray_images_for_a_colour_network_are_refused_before_they_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PIPELINE.replace("channels: 3, ", "").replace("timm:test_resnet", "torchvision:resnet18")
    (tmp_path / "p.yaml").write_text(text)
    assert main(["validate", str(tmp_path / "p.yaml")]) == 2
    assert capsys.readouterr().err == (
        "error: stage 'teacher': the pretrained weights of torchvision:resnet18 take RGB images; set data.channels: 3\n"
    )


def test_a_whole_run_from_yaml(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = timm_weights(host, "test_resnet")
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(PIPELINE)
    assert main(["validate", "p.yaml"]) == 0
    said = capsys.readouterr().out
    assert (
        "data as the weights of teacher expect it: resize: 42, interpolation: bilinear, mean: [0.5, 0.5, 0.5]" in said
    )
    assert host.asked == []
    assert main(["run", "p.yaml", "--device", "cpu"]) == 0, capsys.readouterr().err
    teacher = load(Path("runs/fine/stages/teacher"))
    assert isinstance(teacher, TorchModel)
    assert differing(teacher.network, state) == {"fc.weight", "fc.bias"}  # nothing else, and no statistics
    assert (teacher.preprocess.resize, teacher.preprocess.mean) == (42, (0.5, 0.5, 0.5))
    card = Path("runs/fine/README.md").read_text()
    card = card.replace("\\", "")  # escapes
    assert f"teacher began with the weights of timm:test_resnet, from {REPOSITORY}@{COMMIT}" in card
    assert "(licence: apache-2.0)" in card
    host.files.clear()
    capsys.readouterr()
    assert main(["run", "p.yaml", "--device", "cpu"]) == 0
    assert "made again" not in capsys.readouterr().out


def test_another_version_of_the_weights_is_another_result(tmp_path: Path) -> None:
    def of(weights: str) -> tuple[str, dict[str, str]]:
        stage = Train.model_validate({"model": "timm:test_resnet", "weights": weights, "epochs": 0})
        pipeline = Pipeline(name="p", data=Data(name="digits"), stages=(stage,))
        return pipeline.digest, made_from(stage, None, images(8), {})

    newest, pinned = of("pretrained"), of(f"pretrained:{OLDER}")
    assert newest[0] != pinned[0]
    assert changes(newest[1], pinned[1]) == ["its weights"]
    (tmp_path / "pretrained").write_bytes(b"a file of that name")
    assert len({of(str(tmp_path / name))[0] for name in ("pretrained", "other")}) == 1  # paths decide nothing
    assert of(str(tmp_path / "pretrained"))[1]["its weights"] not in (
        newest[1]["its weights"],
        pinned[1]["its weights"],
    )


def test_a_pipeline_without_pretrained_weights_imports_no_library() -> None:
    code = (
        "import sys; from compressor.pipeline import Pipeline, completed; completed(Pipeline.load('pipelines/digits_resnet.yaml'));"
        "sys.exit(bool({'torch', 'torchvision', 'timm'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False).returncode == 0
