"""Data sets in Hugging Face's format: by type of column, split by name, through the same preprocessing and store."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, DatasetDict, Features, Value
from datasets import Image as ImageType
from PIL import Image
from pydantic import ValidationError

from compressor import Data, Measure, Pipeline, run
from compressor.console import Console
from compressor.data import decoding
from compressor.data.preprocess import Preprocess
from compressor.data.store import ABOUT, Stored
from compressor.errors import DataError
from stages import Train

COMMIT = "0b2714987fa478483af9968de7c934580d0bb9a2"
NAMES = ["cat", "dog", "eel"]
FEATURES = Features({"picture": ImageType(), "kind": ClassLabel(names=NAMES), "note": Value("string")})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written to the user's own cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def photographs(count: int, seed: int = 0) -> list[Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 9, 12, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in pixels]


def rows(count: int, seed: int = 0, **more: list[Any]) -> datasets.Dataset:
    content = {
        "picture": photographs(count, seed),
        "kind": [index % 3 for index in range(count)],
        "note": ["x"] * count,
        **more,
    }
    return datasets.Dataset.from_dict(content, features=FEATURES)


def settings(root: Path, **more: Any) -> Data:
    store = {"folder": root.parent / "store"}
    return Data.model_validate({"name": "hugging_face", "root": root, "size": (6, 8), "store": store, **more})


def expected(images: list[Image.Image]) -> torch.Tensor:
    resized = [np.asarray(image.resize((8, 6), Image.Resampling.BILINEAR)) for image in images]
    return torch.from_numpy(np.stack(resized).transpose(0, 3, 1, 2).copy())


def save(folder: Path, how: str, **splits: datasets.Dataset) -> Path:
    if how == "disk":
        DatasetDict(splits).save_to_disk(folder)
    else:
        folder.mkdir()
        for name, each in splits.items():
            each.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("how", ["disk", "parquet"])
def test_its_own_splits_are_read_as_they_are(tmp_path: Path, how: str) -> None:
    root = save(tmp_path / "data", how, train=rows(12, 1), validation=rows(6, 2), test=rows(9, 3))
    data = settings(root).load(0)
    assert data.labels == tuple(NAMES)
    assert settings(root).labels() == tuple(NAMES)
    for split, count, seed in ((data.train, 12, 1), (data.validation, 6, 2), (data.test, 9, 3)):
        assert torch.equal(split.images, expected(photographs(count, seed)))
        assert split.labels.tolist() == [index % 3 for index in range(count)]
    with pytest.raises(DataError, match="the data has a test split of its own"):
        settings(root, test=3).labels()


def test_without_a_test_split_validation_is_it(tmp_path: Path) -> None:
    root = save(tmp_path / "data", "disk", train=rows(30), validation=rows(6, 2), extra=rows(3))
    data = settings(root).load(0)
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 6)
    assert "validation is the test split; validation images are carved from train" in data.notes
    assert any(note.startswith("splits left out: extra") for note in data.notes)


def test_a_folder_of_one_split_is_split_by_the_seed(tmp_path: Path) -> None:
    rows(30).save_to_disk(tmp_path / "data")
    data = settings(tmp_path / "data").load(0)
    assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 6)


def test_a_split_without_classes_is_left_out(tmp_path: Path) -> None:
    competition = rows(6, kind=[-1] * 6)
    root = save(tmp_path / "data", "disk", train=rows(30), validation=rows(6, 2), test=competition)
    data = settings(root).load(0)
    assert torch.equal(data.test.images, expected(photographs(6, 2)))
    assert any(note.startswith("splits left out: test") for note in data.notes)
    root = save(tmp_path / "none", "disk", train=rows(3, kind=[0, None, -1]))
    with pytest.raises(DataError, match="2 images of the split train have no class"):
        settings(root).load(0)


def test_columns_are_found_by_type_and_named_only_where_there_are_several(tmp_path: Path) -> None:
    masks = rows(12, 5).select_columns("picture").rename_column("picture", "mask")
    two = datasets.concatenate_datasets([rows(12), masks], axis=1)
    root = save(tmp_path / "data", "disk", train=two)
    with pytest.raises(DataError, match=r"has 2 columns of type Image, .*; name one, as in columns: {image: picture}"):
        settings(root).load(0)
    data = settings(root, columns={"image": "mask"}).load(0)
    everything = torch.cat([data.train.images, data.validation.images, data.test.images])
    wanted = {image.numpy().tobytes() for image in expected(photographs(12, 5))}
    assert {image.numpy().tobytes() for image in everything} == wanted
    with pytest.raises(DataError, match=r"data\.columns\.label: 'note' is no column of type ClassLabel; those are:"):
        settings(root, columns={"image": "mask", "label": "note"}).load(0)
    root = save(tmp_path / "no", "disk", train=rows(12).remove_columns("kind"))
    with pytest.raises(DataError, match="has 0 columns of type ClassLabel"):
        settings(root).labels()


@pytest.mark.parametrize("how", ["disk", "parquet"])
def test_a_large_one_goes_through_the_store(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = save(tmp_path / "data", how, train=rows(30), test=rows(9, 3))
    in_memory = settings(root).load(0)
    monkeypatch.setattr(decoding, "IN_MEMORY_BYTES", 0)
    stored = settings(root).load(0)
    assert isinstance(stored.train.source, Stored)
    assert torch.equal(stored.train.images, in_memory.train.images)
    assert torch.equal(stored.test.images, in_memory.test.images)
    with monkeypatch.context() as patch:
        patch.setattr(Preprocess, "pixels", lambda *_: pytest.fail("decoded again"))
        assert settings(root).load(0).fingerprint == stored.fingerprint
    assert len(list((tmp_path / "store").glob(f"*/{ABOUT}"))) == 2
    save(tmp_path / "other", how, train=rows(30, 7), test=rows(9, 3))
    root.rename(tmp_path / "before")
    (tmp_path / "other").rename(root)  # other images under the same names
    assert torch.equal(settings(root).load(0).test.images, in_memory.test.images)
    everything = settings(root).load(0)
    wanted = {image.numpy().tobytes() for image in expected(photographs(30, 7))}
    assert {image.numpy().tobytes() for image in everything.train.images} < wanted


def test_images_are_opened_by_content_and_only_from_the_data_set(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    photographs(1)[0].save(secret)
    eps = io.BytesIO()
    photographs(1)[0].save(eps, "EPS")
    odd = [{"bytes": None, "path": str(secret)}, {"bytes": eps.getvalue(), "path": "a.png"}, *photographs(28)]
    (tmp_path / "data").mkdir()
    table = rows(30, picture=odd).data.table.cast(FEATURES.arrow_schema)  # `to_parquet` would read the path
    pyarrow.parquet.write_table(table, tmp_path / "data" / "train.parquet")
    with pytest.raises(DataError) as refused:
        settings(tmp_path / "data").load(0)
    assert "train[0] is not a usable image: its bytes are not in the data set" in str(refused.value)
    assert "train[1] is not a usable image: it is none of AVIF" in str(refused.value)
    data = settings(tmp_path / "data", unreadable="skip").load(0)
    assert len(data.train) + len(data.validation) + len(data.test) == 28


def test_code_beside_the_data_is_not_run(tmp_path: Path) -> None:
    root = save(tmp_path / "data", "parquet", train=rows(12))
    (root / "data.py").write_text("raise SystemExit('run')")
    assert settings(root).labels() == tuple(NAMES)
    (root / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match="is no data set of Hugging Face's"):
        settings(root).labels()


def test_a_damaged_one_is_one_sentence(tmp_path: Path) -> None:
    root = save(tmp_path / "data", "parquet", train=rows(12))
    (root / "train-00000-of-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"data cannot be read as a data set: .*") as caught:
        settings(root).labels()
    assert "\n" not in str(caught.value)


def test_the_hub_is_asked_for_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, **more: Any) -> DatasetDict:
        asked.append((name, more))
        return DatasetDict(train=rows(12), test=rows(6))

    monkeypatch.setattr("datasets.load_dataset", load)
    settings(tmp_path / "data", hub="some/one", revision=COMMIT).load(0)
    assert set(map(str, asked)) == {
        str(("some/one", {"revision": COMMIT, "cache_dir": str(tmp_path / "data" / "hugging_face")}))
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hub": "some/one"}, "hub needs `revision:`, the 40 hexadecimal digits of a commit"),
        ({"hub": "some/one", "revision": "main"}, "hub needs `revision:`"),
        ({"hub": "../one", "revision": COMMIT}, "names no data set; expected `owner/name`"),
        ({"revision": COMMIT}, "revision is of a data set on the hub"),
        ({"name": "digits", "hub": "some/one", "revision": COMMIT}, "need name: hugging_face"),
    ],
)
def test_a_hub_that_is_not_pinned_is_refused(tmp_path: Path, wrong: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(tmp_path, **wrong)


def test_without_the_package_one_sentence_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.data.sources.hugging_face.find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"pip install 'compressor\[hugging_face\]'"):
        settings(tmp_path).labels()


def test_a_run(tmp_path: Path) -> None:
    root = save(tmp_path / "data", "parquet", train=rows(30), test=rows(9, 3))
    stage = Train(id="teacher", model="resnet", arguments={"blocks": [1], "widths": [4]}, epochs=1)
    pipeline = Pipeline(name="tiny", data=settings(root), stages=(stage,), measure=Measure(engines=()))
    report = run(pipeline, tmp_path / "out", device="cpu", console=Console())
    assert (report.data.name, report.data.train, report.data.test, report.labels) == (
        "hugging_face",
        27,
        9,
        tuple(NAMES),
    )
    assert "hub" not in report.spec
