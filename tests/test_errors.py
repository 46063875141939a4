"""Every line of the table in docs/errors.md, made to happen through the command line."""

import errno
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
import torchvision
from filelock import FileLock
from PIL import Image

from compressor.errors import is_out_of_memory
from compressor.models.architectures import Architecture
from compressor.storage import files
from compressor_command import main
from tests.test_data import write_folder
from tests.test_report_properties import small

ROOT = Path(__file__).parent.parent
TABLE = {
    cells[0].strip(): (cells[1].strip()[1:-1], int(cells[2]))
    for line in (ROOT / "docs" / "errors.md").read_text().splitlines()
    if line.startswith("| ") and len(cells := line.strip("|").split("|")) == 3 and cells[2].strip().isdigit()
}
PIPELINE = """\
name: tiny
data: {name: digits}
stages:
  - {stage: train, id: teacher, model: resnet, arguments: {blocks: [1], widths: [4]}, epochs: 1}
measure: {engines: []}
"""
RUN = ["run", "p.yaml", "--out", "out", "--device", "cpu"]
OWN = "stages.teacher.arguments={}"
Patch = pytest.MonkeyPatch


def with_settings(*settings: str) -> list[str]:
    return RUN + [part for setting in settings for part in ("--set", setting)]


def folder_of_images(**settings: object) -> list[str]:
    write_folder(Path("images"), count=10, classes=("cat", "dog"))
    return with_settings("data={name: image_folder, root: images, size: [8, 8]}")


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def no_images(patch: Patch) -> list[str]:
    arguments = folder_of_images()
    for path in Path("images/dog").iterdir():
        path.unlink()
    return arguments


def one_class(patch: Patch) -> list[str]:
    arguments = no_images(patch)
    Path("images/dog").rmdir()
    return arguments


def other_classes(patch: Patch) -> list[str]:
    write_folder(Path("images/train"), count=5, classes=("cat", "emu"))
    write_folder(Path("images/test"), count=5, classes=("dog", "emu"))
    return with_settings("data={name: image_folder, root: images}")


def corrupt_image(patch: Patch) -> list[str]:
    arguments = folder_of_images()
    Path("images/cat/0.png").write_bytes(Path("images/cat/0.png").read_bytes()[:50])
    return arguments


def corrupt_images(patch: Patch) -> list[str]:
    arguments = corrupt_image(patch)
    Path("images/dog/1.png").write_bytes(b"")
    return arguments


def another_format(patch: Patch) -> list[str]:
    arguments = folder_of_images()
    Image.new("RGB", (8, 8)).save("images/cat/0.png", format="EPS")
    return arguments


def a_pipe(patch: Patch) -> list[str]:
    arguments = folder_of_images()
    Path("images/cat/0.png").unlink()
    os.mkfifo("images/cat/0.png")
    return arguments


def a_link(patch: Patch) -> list[str]:
    Path("out").mkdir()
    Path("out/report.md").symlink_to(Path("p.yaml").absolute())
    return RUN


def a_report() -> None:
    """`out/report.json`, of a pipeline whose network is somebody's own."""
    report = small()
    spec = PIPELINE.replace("model: resnet, arguments: {blocks: [1], widths: [4]}", "model: networks:LeNet")
    Path("out").mkdir()
    Path("out/report.json").write_text(json.dumps({**report.to_json(), "spec": spec}))


def a_readme(patch: Patch) -> list[str]:
    a_report()
    Path("out/README.md").write_text("mine")
    return ["report", "out"]


def foreign_code(patch: Patch) -> list[str]:
    a_report()
    return ["reproduce", "out"]


def an_older_repetition(patch: Patch) -> list[str]:
    Path("out").mkdir()
    content = {**small().to_json(), "spec": PIPELINE}
    content["rows"] = content["rows"][:1]
    content |= {"shipped": "teacher", "over_seeds": []}
    Path("out/report.json").write_text(json.dumps(content))
    Path("out-again").mkdir()
    return ["reproduce", "out"]


def an_onnx_file(pads: int, location: str | None = None) -> list[str]:
    """`m.onnx`, one convolution of an 8 x 8 image."""
    kernel = onnx.numpy_helper.from_array(np.zeros((1, 1, 3, 3), np.float32), "kernel")
    if location is not None:
        kernel.ClearField("raw_data")
        kernel.data_location = onnx.TensorProto.EXTERNAL
        kernel.external_data.add(key="location", value=location)
    kind = onnx.TensorProto.FLOAT
    image, features = (
        onnx.helper.make_tensor_value_info(*value)
        for value in (("image", kind, [1, 1, 8, 8]), ("features", kind, [1, 1, None, None]))
    )
    node = onnx.helper.make_node("Conv", ["image", "kernel"], ["features"], pads=[pads] * 4)
    graph = onnx.helper.make_graph([node], "graph", [image], [features], [kernel])
    Path("m.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return ["bench", "m.onnx"]


def split_twice(patch: Patch) -> list[str]:
    write_folder(Path("images/train"), count=5)
    write_folder(Path("images/test"), count=5)
    return with_settings("data={name: image_folder, root: images, test: 5}")


def a_class_in_latin1(patch: Patch) -> list[str]:
    arguments = folder_of_images()
    Path(os.fsdecode(b"images/caf\xe9")).mkdir()
    return arguments


def many_keys(patch: Patch) -> list[str]:
    return written("p.yaml", (PIPELINE + "".join(f"key{number}: 1\n" for number in range(100_000))).encode())


def pretrained(name: str, weights: str, channels: int = 3) -> list[str]:
    model = f"stages.teacher.model=torchvision:{name}"
    return with_settings(
        model, OWN, f"stages.teacher.weights={weights}", f"data.channels={channels}", "data.size=[32, 32]"
    )


def without_a_connection(patch: Patch) -> list[str]:
    patch.setenv("TORCH_HOME", str(Path.cwd()))
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.value
    patch.setattr(weights, "url", f"http://127.0.0.1:1/{weights.url.rpartition('/')[2]}")  # where nobody listens
    return pretrained("squeezenet1_1", "pretrained")


def numbered_weights(patch: Patch) -> list[str]:
    torch.save({0: torch.zeros(1)}, "numbered.pt")
    return with_settings("stages.teacher.weights=numbered.pt")


def deep_image(patch: Patch) -> list[str]:
    arguments = folder_of_images()
    Image.fromarray(np.full((8, 8), 1000, np.uint16)).save("images/cat/0.png")
    return arguments


def misfitting_weights(patch: Patch) -> list[str]:
    wider = {"blocks": [1], "widths": [8]}
    network = Architecture(model="resnet", arguments=wider, num_classes=10, in_channels=1).build()
    safetensors.torch.save_file(network.state_dict(), "other.safetensors")
    return with_settings("stages.teacher.weights=other.safetensors")


def a_pickle(patch: Patch) -> list[str]:
    Path("pickle.safetensors").write_bytes(pickle.dumps({"conv1.weight": 1}))
    return with_settings("stages.teacher.weights=pickle.safetensors")


def unusable_folder(patch: Patch) -> list[str]:
    Path("file").write_bytes(b"")
    return ["run", "p.yaml", "--out", "file/out"]


def a_folder_of_ones_own(patch: Patch) -> list[str]:
    Path("out").mkdir()
    Path("out/model.onnx").write_bytes(b"mine")
    return RUN


def unwritable_file(patch: Patch) -> list[str]:
    patch.setattr(
        files, "write_bytes", raising(PermissionError(errno.EACCES, "Permission denied", "out/pipeline.yaml"))
    )
    return RUN


def full_disk(patch: Patch) -> list[str]:
    patch.setattr("os.fsync", raising(OSError(errno.ENOSPC, "No space left on device")))
    return RUN


def out_of_memory(patch: Patch) -> list[str]:
    patch.setattr("compressor.runs.runner.try_stages", lambda *_, **__: None)
    patch.setattr(
        "compressor.training.fit",
        raising(
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        ),
    )
    return RUN


def interrupted(patch: Patch) -> list[str]:
    patch.setattr("compressor.training.fit", raising(KeyboardInterrupt()))
    return RUN


def a_second_run(patch: Patch) -> list[str]:
    Path("out").mkdir()
    lock = FileLock("out/.compress.lock")
    lock.acquire()
    patch.setattr("tests.test_errors.HELD", lock)  # for as long as the test lasts
    return RUN


HELD: object = None


def written(name: str, content: bytes) -> list[str]:
    Path(name).write_bytes(content)
    return ["run", name]


CASES: dict[str, Callable[[Patch], list[str]]] = {
    "missing file": lambda _: ["run", "nowhere.yaml"],
    "a folder in place of a file": lambda _: ["run", "."],
    "empty file": lambda _: written("empty.yaml", b""),
    "binary file": lambda _: written("binary.yaml", bytes(range(256))),
    "misspelt key": lambda _: written("p.yaml", PIPELINE.replace("epochs: 1", "epochs: 1, batch_sise: 8").encode()),
    "one number for a size": lambda _: with_settings("data.size=16"),
    "brackets without end": lambda _: with_settings("data=" + "[" * 5000),
    "number of 5,000 digits": lambda _: with_settings("seed=" + "9" * 5000),
    "NUL byte in a path": lambda _: with_settings('data.root="a\\0b"'),
    "100,000 unknown keys": many_keys,
    "unknown stage": lambda _: ["stages", "prun"],
    "a speed-up before its baseline": lambda _: with_settings(
        "stages=[{stage: train, id: t, model: resnet8, epochs: 1}, {stage: prune, id: p, target: {speedup: 2}}]",
        "baseline=p",
    ),
    "a table that is not there": lambda _: [
        "validate",
        "p.yaml",
        "--set",
        "stages=[{stage: train, id: t, model: resnet8, epochs: 1}, "
        "{stage: prune, id: p, target: {latency: 0.5, table: nowhere.json}}]",
    ],
    "a table of nothing": lambda _: ["table", "p.yaml", "-o", "table.json"],
    "a table without a file": lambda _: ["table", "p.yaml"],
    "a page into no folder": lambda _: ["doctor", "model.onnx", "--page", "nowhere/why.html"],
    "quiet and verbose": lambda _: [*RUN, "--quiet", "--verbose"],
    "no folder of images": lambda _: with_settings("data={name: image_folder, root: images}"),
    "split that the data has": split_twice,
    "class whose name is not UTF-8": a_class_in_latin1,
    "no images": no_images,
    "one class": one_class,
    "train and test of other classes": other_classes,
    "corrupt image": corrupt_image,
    "several corrupt images": corrupt_images,
    "image of another format": another_format,
    "pipe among the images": a_pipe,
    "16-bit image": deep_image,
    "no data set of Hugging Face's": lambda _: with_settings("data={name: hugging_face, root: images}"),
    "hub without a commit": lambda _: with_settings("data={name: hugging_face, hub: some/one, revision: main}"),
    "classes do not fit the network": lambda _: with_settings("stages.teacher.model=tests.networks:WrongHead", OWN),
    "channels do not fit the network": lambda _: with_settings("stages.teacher.model=tests.networks:Colour", OWN),
    "auxiliary outputs": lambda _: with_settings("stages.teacher.model=tests.networks:TwoOutputs", OWN),
    "weight norm": lambda _: with_settings(
        "stages.teacher.model=tests.networks:WeightNormed", "stages.teacher.arguments={old: false}"
    ),
    "random numbers that are not saved": lambda _: with_settings("stages.teacher.model=tests.networks:Drawn", OWN),
    "a branch on values": lambda _: with_settings("stages.teacher.model=tests.networks:Branching", OWN),
    "weights do not fit": misfitting_weights,
    "pretrained weights that there are not": lambda _: pretrained("resnet18", "pretrained:V9"),
    "pretrained weights without a connection": without_a_connection,
    "gray images for pretrained weights": lambda _: pretrained("resnet18", "pretrained", channels=1),
    "number for a name in the weights": numbered_weights,
    "name that freezes nothing": lambda _: with_settings("stages.teacher.freeze=[layer9]"),
    "nothing to train": lambda _: with_settings("stages.teacher.model=tests.networks:WhollyFrozen", OWN),
    "pickle for safetensors": a_pickle,
    "loss not finite": lambda _: with_settings(
        "stages.teacher.model=tests.networks:Exploding", OWN, "stages.teacher.learning_rate=10"
    ),
    "folder that cannot be used": unusable_folder,
    "folder with files of one's own": a_folder_of_ones_own,
    "file that cannot be written": unwritable_file,
    "link in the folder of a run": a_link,
    "report beside a README of one's own": a_readme,
    "code that a folder names": foreign_code,
    "ONNX file with data elsewhere": lambda _: an_onnx_file(1, location="secret.bin"),
    "ONNX file that asks for far too much": lambda _: an_onnx_file(2**20),
    "repetition beside an older one": an_older_repetition,
    "full disk": full_disk,
    "unknown device": lambda _: [*RUN[:-1], "tpu"],
    "absent device": lambda _: [*RUN[:-1], "cuda"],
    "out of memory": out_of_memory,
    "second run in one folder": a_second_run,
    "Ctrl-C": interrupted,
}


def test_the_table_and_the_cases_are_the_same() -> None:
    assert list(TABLE) == list(CASES)


@pytest.mark.parametrize("case", CASES)
def test_what_is_said(case: str, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    if case == "absent device" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(PIPELINE)
    arguments = CASES[case](monkeypatch)
    message, code = TABLE[case]
    before = set(tmp_path.rglob("*"))
    ended = main(arguments)
    said = capsys.readouterr().err
    assert re.fullmatch(
        ".*".join(
            re.escape(part) for part in f"error: {message}\n".replace("error: interrupted", "interrupted").split("…")
        ),
        said.lstrip("\n"),  # Click moves off the line of ^C
    ), said
    assert ended == code
    monkeypatch.undo()
    made = set(tmp_path.rglob("*")) - before
    assert not [path for path in made if "partial" in path.name or path.name in {"report.json", "model.onnx"}]


@pytest.mark.parametrize(
    ("mode", "note"),
    [
        ("L", "1 images are gray; they were made RGB; with data.channels: 1 all stay or become gray"),
        ("RGBA", "1 images are transparent; transparency was dropped"),
        ("LA", "1 images are transparent; transparency was dropped"),
        ("P", None),
        ("1", "1 images are gray; they were made RGB; with data.channels: 1 all stay or become gray"),
        ("CMYK", None),
    ],
)
def test_unusual_images_are_read_and_noted(
    mode: str, note: str | None, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(PIPELINE)
    arguments = folder_of_images()
    suffix = "tif" if mode == "CMYK" else "png"
    Path("images/cat/0.png").unlink()
    Image.new(mode, (1, 1)).save(f"images/cat/0.{suffix}")
    monkeypatch.setattr("compressor.training.fit", raising(KeyboardInterrupt()))
    assert main(arguments) == 130
    out = capsys.readouterr().out
    assert "1 images are enlarged more than 4 times to 8 x 8" in out
    assert note is None or note in out


def test_memory_that_really_ran_out_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2**50)
    assert is_out_of_memory(caught.value)


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    code = (
        "import resource, compressor_command as c; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
        "raise SystemExit(c.main(['init']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: the disk is full at compressor.schema.json; free some space" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_while_importing_is_reported(tmp_path: Path) -> None:
    (tmp_path / "compressor.py").write_text("raise KeyboardInterrupt")
    code = "import sys; sys.path.insert(0, '.'); import compressor_command as c; raise SystemExit(c.main(['stages']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (130, 1)
    assert done.stderr.startswith("interrupted; ")


def test_a_module_that_ends_the_program_is_reported(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("script_that_exits.py").write_text("import sys\nsys.exit(0)\n")
    Path("p.yaml").write_text(PIPELINE)
    assert main(["validate", "p.yaml", "--set", "stages.teacher.model=script_that_exits:Net", "--set", OWN]) == 2
    assert "ends the program when it is imported" in capsys.readouterr().err
