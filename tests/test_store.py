"""Folders larger than memory: decoded once into a store on disk, bounded, whole, mended where it is damaged."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compressor import Data, Measure, Pipeline, run
from compressor.data import decoding
from compressor.data.sources import image_folder
from compressor.data.store import ABOUT, DECODED_AT_ONCE, IMAGES, INDEX, Stored
from compressor.errors import DataError
from compressor.storage import files
from stages import Train

PER_CLASS = DECODED_AT_ONCE // 2 + 9  # more than one batch of decoding in all


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of small images, one of which is broken."""
    root = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for label, brightness in (("cat", 60), ("dog", 180)):
        (root / label).mkdir()
        for number in range(PER_CLASS):
            pixels = generator.integers(brightness, brightness + 60, (10, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number:03}.png")
    (root / "dog" / "broken.png").write_bytes(b"no image")
    return root


@pytest.fixture
def photographs(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "photographs"))  # with the same times


def settings(root: Path, **more: Any) -> Data:
    store = {"folder": root.parent / "store", **more.pop("store", {})}
    return Data(name="image_folder", root=root, size=(8, 8), unreadable="skip", store=store, **more)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "IN_MEMORY_BYTES", 0)


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are decoded, as they are."""
    seen: list[Path] = []
    opened = image_folder.opened

    def remembered(path: Path) -> Any:
        seen.append(path)
        return opened(path)

    monkeypatch.setattr(image_folder, "opened", remembered)
    return seen


def stores(root: Path) -> list[Path]:
    return sorted(path.parent for path in (root.parent / "store").glob(f"*/{ABOUT}"))


def test_what_is_read_from_the_store_is_what_memory_holds(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = settings(photographs).load(0)
    assert stores(photographs) == []
    monkeypatch.setattr(decoding, "IN_MEMORY_BYTES", 0)
    stored = settings(photographs).load(0)
    assert isinstance(stored.train.source, Stored)
    for name in ("train", "validation", "calibration", "test"):
        one, other = getattr(in_memory, name), getattr(stored, name)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    assert stored.notes == in_memory.notes
    assert "broken.png" in " ".join(stored.notes)


@pytest.mark.usefixtures("no_memory")
def test_nothing_is_decoded_twice(photographs: Path, decodings: list[Path]) -> None:
    first = settings(photographs).load(0)
    assert len(decodings) == 2 * PER_CLASS + 1
    again = settings(photographs, mean=(0.0, 0.0, 0.0)).load(1)
    assert len(decodings) == 2 * PER_CLASS + 1
    assert again.notes == first.notes
    assert settings(photographs).load(0).fingerprint == first.fingerprint
    assert settings(photographs).load(1).fingerprint != first.fingerprint
    settings(photographs, resize=9).load(0)
    assert len(decodings) == 4 * PER_CLASS + 2
    os.utime(photographs / "cat" / "000.png", (1, 1))
    settings(photographs).load(0)
    assert len(decodings) == 6 * PER_CLASS + 3
    assert len(stores(photographs)) == 3


@pytest.mark.usefixtures("no_memory")
def test_the_fingerprint_follows_pixels_and_classes(photographs: Path) -> None:
    before = settings(photographs).load(0).train.fingerprint
    Image.new("RGB", (10, 8)).save(photographs / "cat" / "000.png")
    changed = settings(photographs).load(0).train.fingerprint
    (photographs / "cat" / "001.png").rename(photographs / "dog" / "zzz.png")
    assert len({before, changed, settings(photographs).load(0).train.fingerprint}) == 3


@pytest.mark.usefixtures("no_memory")
def test_a_damaged_image_is_decoded_again(photographs: Path, decodings: list[Path]) -> None:
    whole = settings(photographs).load(0).train.images
    (store,) = stores(photographs)
    content = (store / IMAGES).read_bytes()
    (store / IMAGES).write_bytes(bytes(200) + content[200:])
    decodings.clear()
    assert torch.equal(settings(photographs).load(0).train.images, whole)
    assert 0 < len(decodings) <= 2  # the first images, as far as they are for training
    train = settings(photographs).load(0)
    for split in (train.train, train.validation, train.test):
        assert len(split.images)
    assert (store / IMAGES).read_bytes() == content


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(
    ("name", "content"), [(INDEX, b""), (INDEX, bytes(1000)), (ABOUT, b"{}"), (ABOUT, b"["), (IMAGES, b"short")]
)
def test_a_damaged_store_is_made_again(photographs: Path, decodings: list[Path], name: str, content: bytes) -> None:
    whole = settings(photographs).load(0)
    (store,) = stores(photographs)
    (store / name).write_bytes(content)
    decodings.clear()
    again = settings(photographs).load(0)
    assert len(decodings) == 2 * PER_CLASS + 1
    assert again.fingerprint == whole.fingerprint
    assert torch.equal(again.train.images, whole.train.images)


@pytest.mark.usefixtures("no_memory")
def test_an_image_that_changed_meanwhile_is_named(photographs: Path) -> None:
    data = settings(photographs).load(0)
    (store,) = stores(photographs)
    (store / IMAGES).write_bytes(bytes((store / IMAGES).stat().st_size))
    for path in photographs.glob("*/*.png"):
        Image.new("RGB", (8, 8), "red").save(path)
    with pytest.raises(DataError, match=r"\.png is not the image that it was when the run began; start the run again"):
        data.train.batch(torch.tensor([0]))


@pytest.mark.usefixtures("no_memory")
def test_what_was_not_used_for_longest_goes_first(photographs: Path) -> None:
    size = (2 * PER_CLASS + 1) * 3 * 8 * 8
    room = {"gigabytes": 2.9 * size / 1e9}  # for two stores, with their indices

    def made(resize: int) -> Path:
        before = set(stores(photographs))
        settings(photographs, resize=resize, store=room).load(0)
        (new,) = set(stores(photographs)) - before or {
            max(stores(photographs), key=lambda p: (p / ABOUT).stat().st_mtime)
        }
        return new

    first, second = made(9), made(10)
    for age, store in enumerate((second, first)):
        os.utime(store / ABOUT, (1000 + age, 1000 + age))
    data = settings(photographs, resize=10, store=room).load(0)  # which uses the second one again
    os.utime(first / ABOUT, (1, 1))
    third = made(11)
    assert set(stores(photographs)) == {second, third}
    files.remove(second)
    assert len(data.train.images)  # a run that reads it goes on


@pytest.mark.usefixtures("no_memory")
def test_nothing_but_stores_is_removed(photographs: Path) -> None:
    home = photographs.parent / "store"
    for name in ("project", "a" * 64):
        (home / name).mkdir(parents=True)
        (home / name / ABOUT).write_text("{}")
        (home / name / "thesis").write_text("x" * 10_000)
    (home / ".config.old").mkdir()
    size = (2 * PER_CLASS + 1) * 3 * 8 * 8
    for resize in (9, 10):
        settings(photographs, resize=resize, store={"gigabytes": 1.5 * size / 1e9}).load(0)
    assert len([store for store in stores(photographs) if (store / IMAGES).exists()]) == 1
    assert (home / "project" / "thesis").exists()
    assert (home / ("a" * 64) / "thesis").exists()
    assert (home / ".config.old").exists()


@pytest.mark.usefixtures("no_memory")
def test_folders_of_equal_names_sizes_and_times_are_told_apart(tmp_path: Path) -> None:
    loaded = []
    for name, brightness in (("one", 10), ("other", 200)):
        root = tmp_path / name
        for label in ("cat", "dog"):
            (root / label).mkdir(parents=True)
            for number in range(9):
                path = root / label / f"{number}.bmp"
                Image.new("RGB", (8, 8), (brightness + number,) * 3).save(path)
                os.utime(path, (1, 1))
        loaded.append(settings(root, store={"folder": tmp_path / "store"}).load(0))
    assert loaded[0].fingerprint != loaded[1].fingerprint
    assert loaded[0].train.images.max() < 100 < loaded[1].train.images.min()
    path = tmp_path / "one" / "cat" / "0.bmp"
    Image.new("RGB", (8, 8), "white").save(path)
    os.utime(path, (1, 1))
    again = settings(tmp_path / "one", store={"folder": tmp_path / "store"}).load(0)
    assert again.fingerprint != loaded[0].fingerprint


@pytest.mark.usefixtures("no_memory")
def test_nothing_is_mended_through_a_link(photographs: Path, tmp_path: Path) -> None:
    whole = settings(photographs).load(0).train.images
    (store,) = stores(photographs)
    victim = tmp_path / "victim"
    victim.write_bytes(bytes((store / IMAGES).stat().st_size))
    for link in (os.symlink, os.link):
        (store / IMAGES).unlink()
        link(victim, store / IMAGES)
        assert torch.equal(settings(photographs).load(0).train.images, whole)
        assert not any(victim.read_bytes())


@pytest.mark.usefixtures("no_memory")
def test_odd_names_and_dead_links_are_as_in_memory(photographs: Path) -> None:
    name = photographs / "cat" / os.fsdecode(b"\xff.png")
    shutil.copy(photographs / "cat" / "000.png", name)
    (photographs / "cat" / os.fsdecode(b"\xfe.png")).write_text("no image")
    (photographs / "cat" / "gone.png").symlink_to(photographs / "nowhere")
    data = settings(photographs).load(0)
    assert sum(len(split) for split in (data.train, data.validation, data.test)) == 2 * PER_CLASS + 1
    assert "unreadable files left out (3)" in " ".join(data.notes)


@pytest.mark.usefixtures("no_memory")
def test_too_little_room_is_said_before_anything_is_decoded(
    photographs: Path, decodings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"data.store: the images take 0\.0 GB decoded, and gigabytes allows 0\.0"):
        settings(photographs, store={"gigabytes": 1e-6}).load(0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(DataError, match=r"has 0\.0 GB free; name a folder on another disk"):
        settings(photographs).load(0)
    assert decodings == []
    assert stores(photographs) == []


@pytest.mark.usefixtures("no_memory")
def test_what_fails_leaves_no_half_of_a_store(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        settings(photographs).load(0)
    assert not any(path.is_dir() for path in (photographs.parent / "store").iterdir())


@pytest.mark.usefixtures("no_memory")
def test_a_run_from_the_store(photographs: Path, tmp_path: Path) -> None:
    stages = (Train(model="resnet", arguments={"blocks": [1], "widths": [4]}, epochs=2, batch_size=32),)
    pipeline = Pipeline(name="p", data=settings(photographs), stages=stages, measure=Measure(engines=()))
    assert run(pipeline, tmp_path / "run", device="cpu").shipped_row.accuracy.value > 0.9
    elsewhere = pipeline.data.model_copy(update={"store": pipeline.data.store.model_copy(update={"gigabytes": 7})})
    assert pipeline.model_copy(update={"data": elsewhere}).digest == pipeline.digest


@pytest.mark.usefixtures("no_memory")
def test_a_run_does_not_remove_its_own_images_for_want_of_room(photographs: Path, decodings: list[Path]) -> None:
    shutil.copytree(photographs, photographs.parent / "split" / "train")
    shutil.copytree(photographs, photographs.parent / "split" / "val")
    root = photographs.parent / "split"
    size = 2 * (2 * PER_CLASS + 1) * 3 * 8 * 8  # of both splits
    with pytest.raises(DataError, match="the images take"):
        settings(root, store={"gigabytes": 0.9 * size / 1e9}).load(0)
    assert decodings == []
    room = {"gigabytes": 1.01 * size / 1e9}  # their indices take more
    settings(root, store=room).load(0)
    count = len(decodings)
    assert count
    settings(root, store=room).load(0)
    assert len(decodings) == count
