"""Images without classes, from which a student learns what its teacher says of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from compressor import Context, Data, Dataset, TorchModel
from compressor.data.split import Joined, Split
from compressor.errors import DataError, UserError
from compressor_command import main
from stages import Distill, Quantize, Train
from tests.conftest import TINY, equal_states
from tests.test_data import write_folder

SETTINGS: dict[str, Any] = {
    "name": "image_folder",
    "size": (8, 8),
    "channels": 1,
    "validation": 4,
    "test": 4,
    "calibration": 8,
}
ALONE = {"teacher": "t", "epochs": 1, "batch_size": 8, "alpha": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """12 images to train on, and 30 of no class, some of them in folders of their own."""
    root = tmp_path_factory.mktemp("photos")
    write_folder(root / "classes")
    write_folder(root / "more", count=15, classes=("a", "b"))
    (root / "more" / "a" / "0.png").rename(root / "more" / "0.png")
    return Data(root=root / "classes", unlabeled=root / "more", **SETTINGS).load(0)


def test_they_stand_behind_the_training_images(data: Dataset) -> None:
    assert data.unlabeled is not None
    assert (len(data.train), len(data.unlabeled)) == (12, 30)
    joined = data.with_unlabeled()
    everything = torch.cat([data.train.images, data.unlabeled.images])
    assert torch.equal(joined.train.images, everything)
    picked = torch.tensor([40, 3, 12, 11, 29])
    assert torch.equal(joined.train.batch(picked), everything[picked])
    assert all(torch.equal(a, b) for a, b in zip(joined.train.whole(picked), everything[picked], strict=True))
    assert torch.equal(joined.train.labels[:12], data.train.labels)
    assert torch.equal(joined.calibration.images, data.calibration.images)


def test_a_join_is_told_by_its_images_and_their_order(data: Dataset) -> None:
    assert data.unlabeled is not None
    train, more = data.train, data.unlabeled
    order = torch.arange(42)
    prints = [
        Split.of(Joined(train, more)).fingerprint,
        Split.of(Joined(more, train)).fingerprint,
        Split.of(Joined(train, more.take(torch.arange(29)))).fingerprint,
        Split.of(Joined(train, more)).take(order.flip(0)).fingerprint,
        Split.of(Joined(train, more)).take(order.roll(20)).fingerprint,
    ]
    assert len(set(prints)) == 5
    assert Split.of(Joined(train, more)).fingerprint == prints[0]
    assert data.fingerprint != replace(data, unlabeled=None).fingerprint


@pytest.fixture(scope="module")
def teacher(data: Dataset) -> TorchModel:
    return Train(model="resnet", arguments=TINY, epochs=2, batch_size=4).run(None, Context(data=data.without_test()))


@pytest.mark.parametrize("cache", [None, {"views": 1}])
def test_a_student_learns_from_them(data: Dataset, teacher: TorchModel, cache: dict[str, int] | None) -> None:
    context = Context(data=data.without_test(), teachers={"t": teacher})
    settings = {**ALONE, "model": "resnet", "arguments": TINY, "cache": cache}
    without, along = (
        Distill.model_validate({**settings, "unlabeled": each}).run(None, context) for each in (False, True)
    )
    assert not equal_states(without.network, along.network)
    qat = Quantize.model_validate({**ALONE, "stage": "quantize", "mode": "qat", "unlabeled": True, "cache": cache})
    assert qat.run(along, context).quantized
    with pytest.raises(UserError, match=r"name their folder in data\.unlabeled"):
        Distill(**ALONE, unlabeled=True).run(teacher, Context(data=replace(data, unlabeled=None)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": 0.9}, "no class to learn; set alpha: 1"),
        ({"alpha_end": 0.5}, "set alpha: 1, and leave alpha_end"),
        ({"balance": "sampler"}, "leave alpha_end and balance out"),
        ({"losses": [{"loss": "dkd"}]}, "the loss dkd needs a class for every image"),
    ],
)
def test_what_needs_classes_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Distill.model_validate({**ALONE, "unlabeled": True, **settings})


def test_their_folder_is_one_of_images_elsewhere(tmp_path: Path) -> None:
    write_folder(tmp_path / "classes")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("none", r"data.unlabeled: there is no folder .*none"),
        ("empty", "empty holds no image"),
        ("classes/cat", "lie in one another"),
        (".", "lie in one another"),
    ):
        with pytest.raises(DataError, match=words):
            Data(root=tmp_path / "classes", unlabeled=tmp_path / name, **SETTINGS).load(0)
    with pytest.raises(ValidationError, match="unlabeled needs name: image_folder"):
        Data(name="digits", unlabeled=tmp_path)


def test_a_pipeline_with_unlabeled_images_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "classes")
    (tmp_path / "more").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "more" / "1.jpg")
    (tmp_path / "p.yaml").write_text(f"""\
name: more
data: {{name: image_folder, root: {tmp_path}/classes, unlabeled: {tmp_path}/more, size: [8, 8], channels: 1}}
stages:
  - {{stage: train, id: t, model: resnet, arguments: {{blocks: [1, 1], widths: [8, 16]}}, epochs: 1}}
  - {{stage: distill, id: student, teacher: t, epochs: 1, alpha: 1, unlabeled: true, cache: {{views: 1}}}}
measure: {{engines: []}}
""")
    assert main(["run", str(tmp_path / "p.yaml"), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    text = (tmp_path / "p.yaml").read_text().replace(f"unlabeled: {tmp_path}/more, ", "")
    (tmp_path / "q.yaml").write_text(text)
    assert main(["validate", str(tmp_path / "q.yaml")]) == 2
    assert "stage 'student': unlabeled: true needs images without classes" in capsys.readouterr().err
