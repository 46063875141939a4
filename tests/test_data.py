"""Images, splits and augmentation."""

import io
import json
import os
import shutil
import struct
import tarfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import ExifTags, Image
from pydantic import ValidationError
from rich.console import Console as RichConsole
from sklearn.datasets import load_digits
from torchvision import transforms

from compressor import Data, Dataset
from compressor.console import Console
from compressor.data.preprocess import Preprocess
from compressor.data.sources import glyph_images
from compressor.errors import DataError
from compressor_command import main


def write_folder(root: Path, count: int = 10, classes: tuple[str, ...] = ("cat", "dog"), size: int = 12) -> None:
    """`count` noisy images a class; a class differs from the next in brightness."""
    generator = np.random.default_rng(0)
    for index, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 100, (size, size + 4, 3)) + 120 * index
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")


def test_digits_split_is_whole_disjoint_and_proportional(digits: Dataset) -> None:
    parts = [digits.train, digits.validation, digits.test]
    assert [len(part) for part in parts] == [1238, 200, 359]
    everything = torch.cat([part.images for part in parts]).flatten(1)
    scans = np.round(load_digits().images * (255 / 16)).astype(np.uint8).reshape(1797, -1)
    assert sorted(map(bytes, everything.numpy())) == sorted(map(bytes, scans))
    shares = torch.bincount(digits.test.labels) / torch.from_numpy(np.bincount(load_digits().target))
    assert shares.tolist() == pytest.approx([359 / 1797] * 10, abs=0.004)


def test_calibration_images_are_training_images(digits: Dataset) -> None:
    train = {bytes(image) for image in digits.train.images.flatten(1).numpy()}
    assert len(digits.calibration) == 128
    assert all(bytes(image) in train for image in digits.calibration.images.flatten(1).numpy())


def test_the_split_follows_the_seed(digits: Dataset) -> None:
    data = Data(name="digits", validation=200, calibration=128)
    assert data.load(0).fingerprint == digits.fingerprint
    assert data.load(1).fingerprint != digits.fingerprint


def test_stages_are_not_given_the_test_split(digits: Dataset) -> None:
    assert len(digits.without_test().test) == 0


def test_normalisation_by_hand() -> None:
    preprocess = Preprocess(size=(1, 2), channels=1, mean=(0.5,), std=(0.25,))
    pixels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert preprocess.normalise(pixels).tolist() == [[[[-2.0, 2.0]]]]


def test_another_size_is_pillows_bilinear_and_need_not_be_square() -> None:
    preprocess = Preprocess(size=(5, 9), channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 7), dtype=np.uint8))
    expected = np.asarray(image.convert("RGB").resize((9, 5), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(preprocess.pixels(image), expected)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("shape", [(300, 200), (200, 301), (33, 47), (24, 24), (17, 500)])
def test_the_shorter_side_and_the_centre_are_torchvisions(
    kind: Literal["bilinear", "bicubic", "lanczos"], shape: tuple[int, int]
) -> None:
    preprocess = Preprocess(size=(24, 20), channels=3, mean=(0.0,) * 3, std=(1.0,) * 3, resize=27, interpolation=kind)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    theirs = transforms.Compose(
        [transforms.Resize(27, transforms.InterpolationMode(kind)), transforms.CenterCrop((24, 20))]
    )
    expected = np.asarray(theirs(image)).transpose(2, 0, 1)
    assert np.abs(preprocess.pixels(image) - expected.astype(int)).max() <= 1  # of 255


def test_a_photograph_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was turned: show it a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    preprocess = Preprocess(size=(9, 6), channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    with Image.open(tmp_path / "photo.png") as image:
        assert np.array_equal(preprocess.pixels(image), np.rot90(pixels, -1).transpose(2, 0, 1))


def test_preprocessing_as_it_always_was_is_written_as_it_always_was() -> None:
    old = {"size": [4, 6], "channels": 1, "mean": [0.5], "std": [0.25]}
    assert json.loads(Preprocess.model_validate(old).model_dump_json()) == old
    new = {**old, "resize": 8, "interpolation": "bilinear"}
    assert json.loads(Preprocess.model_validate(new).model_dump_json()) == new
    assert Preprocess.model_validate_json(json.dumps(new)) == Preprocess.model_validate(new)
    with pytest.raises(ValidationError, match=r"resize 5 makes the shorter side shorter than size \[4, 6\]"):
        Preprocess.model_validate({**old, "resize": 5})


def test_folder_with_train_and_test(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", 3)
    data = Data(name="image_folder", root=tmp_path, size=(6, 8), validation=4).load(0)
    assert data.labels == ("cat", "dog")
    assert data.train.images.shape == (16, 3, 6, 8)
    assert (len(data.validation), len(data.test)) == (4, 6)
    assert data.train.images[data.train.labels == 0].float().mean() < 100 < data.train.images.float().mean()


def test_one_folder_is_split_by_seed(tmp_path: Path) -> None:
    write_folder(tmp_path)
    data = Data(name="image_folder", root=tmp_path, size=(6, 8), channels=1, validation=2, test=4).load(0)
    assert data.train.images.shape == (14, 1, 6, 8)
    assert torch.bincount(data.test.labels).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "at least two classes; it has 0"),
        (lambda root: write_folder(root, classes=("cat",)), "at least two classes; it has 1"),
        (lambda root: [write_folder(root), (root / "emu").mkdir()], "emu holds no image"),
        (lambda root: [write_folder(root), (root / "cat" / "0.png").write_bytes(b"no")], "0.png is not a usable image"),
        (lambda root: write_folder(root / "train"), "none named test"),
        (
            lambda root: [write_folder(root / "train"), write_folder(root / "test", classes=("cat", "emu"))],
            "not in both: dog, emu",
        ),
        (lambda root: write_folder(root, count=1), "2 images of 2 classes cannot give 1 for test"),
    ],
)
def test_an_unusable_folder_is_reported(tmp_path: Path, make: object, words: str) -> None:
    make(tmp_path)  # type: ignore[operator]
    with pytest.raises(DataError, match=words):
        Data(name="image_folder", root=tmp_path, size=(8, 8)).load(0)


def test_few_images_of_many_classes_are_split_all_the_same(tmp_path: Path) -> None:
    write_folder(tmp_path, count=4, classes=tuple(f"class{number:02}" for number in range(40)))
    data = Data(name="image_folder", root=tmp_path, size=(8, 8)).load(0)
    assert (len(data.train), len(data.validation), len(data.test)) == (116, 12, 32)


@pytest.mark.parametrize("settings", [{"size": (0, 8)}, {"std": (0.0,)}, {"validation": 0}, {"calibration": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Data.model_validate({"name": "digits", **settings})


def test_a_mean_for_another_channel_count_is_reported() -> None:
    with pytest.raises(ValidationError, match="mean and std need one number for each of 1 channels; got 3 and 1"):
        Data(name="digits", mean=(0.5, 0.5, 0.5))


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        Data(name="image_folder", root=tmp_path / "none").load(0)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist", "emnist"])
def test_without_a_network_one_sentence_says_where_files_go(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataError, match=rf"(?s)cannot be downloaded.*put .*(there|into {tmp_path})") as caught:
        Data(name=name, root=tmp_path).load(0)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_cifars_binary_records_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive laid out as the original: a label byte, then 1,024 bytes each of red, green and blue."""
    generator = np.random.default_rng(0)
    records = {
        name: np.concatenate([np.arange(20, dtype=np.uint8)[:, None] % 10, generator.integers(0, 256, (20, 3072))], 1)
        for name in [*(f"data_batch_{part}.bin" for part in range(1, 6)), "test_batch.bin"]
    }
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name, content in records.items():
            raw = content.astype(np.uint8).tobytes()
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))
    monkeypatch.setattr("torchvision.datasets.utils.check_integrity", lambda path, md5: Path(path).is_file())
    data = Data(name="cifar10", root=tmp_path, validation=10).load(0)
    assert (len(data.train), len(data.test), data.labels[3]) == (90, 20, "cat")
    expected = records["test_batch.bin"][:, 1:].reshape(20, 3, 32, 32)
    assert np.array_equal(data.test.images.numpy(), expected)
    assert data.test.labels.tolist() == [index % 10 for index in range(20)]


def test_emnists_images_are_turned_upright(tmp_path: Path) -> None:
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (124, 28, 28), dtype=np.uint8)
    labels = np.arange(124, dtype=np.uint8) % 62
    for split in ("train", "test"):
        header = struct.pack(">4i", 0x0803, *pixels.shape)
        (raw / f"emnist-byclass-{split}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = struct.pack(">2i", 0x0801, len(labels))
        (raw / f"emnist-byclass-{split}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    settings = Data(name="emnist", root=tmp_path, validation=62)
    data = settings.load(0)
    assert np.array_equal(data.test.images.numpy()[:, 0], pixels.transpose(0, 2, 1))
    assert [data.labels[index] for index in (0, 9, 10, 35, 36, 61)] == ["0", "9", "A", "Z", "a", "z"]
    assert data.test.labels.tolist() == labels.tolist()
    for damage in (b"", header + labels.tobytes()[:-1]):
        (raw / "emnist-byclass-train-labels-idx1-ubyte").write_bytes(damage)
        with pytest.raises(DataError, match="EMNIST is missing or damaged in"):
            settings.load(0)


def test_glyphs_are_rendered_by_seed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compressor.data.sources.glyphs.TRAIN", 930)
    monkeypatch.setattr("compressor.data.sources.glyphs.TEST", 310)
    settings = Data(name="glyphs", root=tmp_path, test=310)
    data = settings.load(0)
    assert data.train.images.shape[1:] == (1, 32, 32)
    assert torch.bincount(data.test.labels).tolist() == [5] * 62
    assert len(data.labels) == 62
    assert settings.load(1).fingerprint != data.fingerprint
    monkeypatch.setattr(
        "compressor.data.sources.glyph_images.render", lambda count, seed: pytest.fail("rendered again")
    )
    assert settings.load(0).fingerprint == data.fingerprint


def test_glyphs_are_20000_to_train_and_4000_to_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def blank(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
        return np.zeros((count, 32, 32), np.uint8), np.arange(count) % 62

    monkeypatch.setattr("compressor.data.sources.glyph_images.render", blank)
    data = Data(name="glyphs", root=tmp_path).load(0)
    assert (len(data.train) + len(data.validation), len(data.test)) == (20_000, 4_000)


def test_glyphs_stand_on_one_baseline_at_one_scale() -> None:
    """`o` is smaller than `O`, and `p` goes below the line; noise is darker than what is drawn."""
    pixels, labels = glyph_images.render(62 * 40, seed=3)
    rows = {}
    for character in "oOp":
        drawn = pixels[labels == glyph_images.CHARACTERS.index(character)].astype(float).mean(0).mean(1)
        rows[character] = np.flatnonzero(drawn - drawn.min() > drawn.max() / 4)
    assert len(rows["o"]) + 2 < len(rows["O"])
    assert abs(int(rows["o"][-1]) - int(rows["O"][-1])) <= 1
    assert rows["p"][-1] > rows["o"][-1] + 1
    assert np.bincount(labels).tolist() == [40] * 62


@pytest.mark.parametrize("content", [b"", safetensors.numpy.save({"pixels": np.zeros((1, 32, 32), np.uint8)})])
def test_damaged_glyphs_are_reported(tmp_path: Path, content: bytes) -> None:
    kept = tmp_path / "glyphs" / f"24000-seed-0-version-{glyph_images.VERSION}.safetensors"
    kept.parent.mkdir()
    kept.write_bytes(content)
    with pytest.raises(DataError, match=r"seed-0-version-\d+\.safetensors is damaged .*delete it and run again"):
        Data(name="glyphs", root=tmp_path).load(0)


def test_training_images_are_drawn_by_the_seed() -> None:
    few = Data(name="digits", train=200).load(0)
    assert len(few.train) == 200
    assert torch.bincount(few.train.labels).min() >= 18  # in the proportions of the classes
    whole = Data(name="digits").load(0)
    assert whole.test.fingerprint == few.test.fingerprint
    known = {image.numpy().tobytes() for image in whole.train.images}
    assert all(image.numpy().tobytes() in known for image in few.train.images)
    assert Data(name="digits", train=len(whole.train)).load(0).fingerprint == whole.fingerprint
    with pytest.raises(DataError, match=r"data\.train: 5000 images are asked for, but only 1295 are left"):
        Data(name="digits", train=5000).load(0)
    with pytest.raises(DataError, match=r"data\.train: 9 images cannot hold one of each of 10 classes"):
        Data(name="digits", train=9).load(0)


def folder(root: Path, **settings: Any) -> Data:
    return Data.model_validate({"name": "image_folder", "root": root, "size": (8, 8), **settings})


def whole(data: Dataset) -> int:
    return len(data.train) + len(data.validation) + len(data.test)


def test_folders_below_a_class_are_read_whatever_the_suffix_is_called(tmp_path: Path) -> None:
    write_folder(tmp_path)
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    for suffix, kind in (("jfif", "JPEG"), ("avif", "AVIF"), ("JPG", "JPEG"), ("webp", "WEBP"), ("tif", "TIFF")):
        deep = tmp_path / "cat" / "outside" / suffix
        deep.mkdir(parents=True)
        image.save(deep / f"red.{suffix}", format=kind)
    (tmp_path / "cat" / ".hidden").mkdir()
    image.save(tmp_path / "cat" / ".hidden" / "0.png")
    data = folder(tmp_path).load(0)
    everything = torch.cat([split.images for split in (data.train, data.validation, data.test)])
    assert len(everything) == 25
    red = (everything[:, 0] > 240).flatten(1).all(1) & (everything[:, 1] < 15).flatten(1).all(1)
    assert red.sum() == 5
    assert data.notes == ()


def test_files_of_other_kinds_are_counted_by_suffix(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for name in ("1.heic", "2.HEIC", "3.heic", "a.txt", "b.txt", "LICENSE"):
        (tmp_path / "dog" / name).write_bytes(b"")
    data = folder(tmp_path).load(0)
    assert whole(data) == 20
    assert data.notes[0] == "files of other kinds left out (6): .heic x 3, .txt x 2, no suffix x 1"


def test_unreadable_files_are_all_named_and_left_out_on_request(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for number in range(7):
        (tmp_path / "cat" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(DataError) as refused:
        folder(tmp_path).load(0)
    for number in range(7):
        assert (f"cat/{number}.png is not a usable image" in str(refused.value)) == (number < 5)
    assert "(and 2 more); repair or remove them, or set `unreadable: skip`" in str(refused.value)
    data = folder(tmp_path, unreadable="skip").load(0)
    assert whole(data) == 13
    labels = torch.cat([split.labels for split in (data.train, data.validation, data.test)])
    assert labels.bincount().tolist() == [3, 10]
    (note,) = (note for note in data.notes if "unreadable" in note)
    assert note.startswith("unreadable files left out (7): ")
    assert "cat/4.png" in note
    assert note.endswith("(and 2 more)")


def test_a_split_of_unreadable_images_alone_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", count=1)
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"test holds no image that can be read: .*cat/0\.png.*dog/0\.png"):
        folder(tmp_path, unreadable="skip").load(0)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_train_with_val_alone_is_train_and_test(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / "train")
    write_folder(tmp_path / name, count=3)
    settings = folder(tmp_path, validation=4)
    data = settings.load(0)
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 4, 6)
    assert data.notes == (f"{name}/ is the test split; validation images are carved from train/",)
    with pytest.raises(DataError, match=r"data\.test: the data has a test split of its own"):
        folder(tmp_path, test=4).labels()


def test_train_val_and_test_are_used_whole(tmp_path: Path) -> None:
    for name, count in (("train", 10), ("val", 4), ("test", 3)):
        write_folder(tmp_path / name, count=count)
    data = folder(tmp_path).load(0)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 8, 6)
    assert data.notes == ()
    with pytest.raises(DataError, match=r"data\.validation: the data has a validation split of its own"):
        folder(tmp_path, validation=5).labels()
    shutil.rmtree(tmp_path / "val" / "dog")
    (tmp_path / "val" / "emu").mkdir()
    with pytest.raises(DataError, match="train and val have different classes; not in both: dog, emu"):
        folder(tmp_path).load(0)


def test_classes_that_a_split_lacks_are_warned_about(tmp_path: Path) -> None:
    write_folder(tmp_path, count=3, classes=tuple("abcdefgh"))
    data = folder(tmp_path, test=1, validation=1).load(0)
    for name, split in (("validation", data.validation), ("test", data.test)):
        absent = [label for index, label in enumerate("abcdefgh") if index not in split.labels]
        first = f"no {name} image is of {', '.join(absent[:5])} and 2 more: "
        assert len([note for note in data.notes if note.startswith(first)]) == 1
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(b"no image")
    skipped = folder(tmp_path, unreadable="skip", test=7, validation=7).load(0)
    assert [note.partition(":")[0] for note in skipped.notes if note.startswith("no ")] == [
        f"no {name} image is of a" for name in ("training", "validation", "test")
    ]


def test_a_class_whose_name_is_no_utf8_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(DataError, match=r"has a sub-folder 'caf\\udce9' whose name is not UTF-8; rename it"):
        folder(tmp_path).labels()


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (True, True), (False, False)])
def test_decoding_is_followed_on_a_terminal(tmp_path: Path, terminal: bool, quiet: bool) -> None:
    write_folder(tmp_path)
    screen = io.StringIO()
    rich = RichConsole(file=screen, force_terminal=terminal, width=80)
    folder(tmp_path).load(0, Console(rich, quiet=quiet))
    shown = terminal and not quiet
    assert ("decoding images" in screen.getvalue(), "20/20" in screen.getvalue()) == (shown, shown)


@pytest.mark.dry_run
def test_a_pipeline_is_tried_before_an_image_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(Path("images"))
    Path("images/cat/0.png").write_bytes(b"no image")
    Path("p.yaml").write_text(
        "name: tried\ndata: {name: image_folder, root: images, size: [8, 8]}\nmeasure: {engines: []}\n"
        "stages:\n  - {stage: train, model: resnet, arguments: {blocks: [1], widths: [4]}, epochs: 1}\n"
    )
    command = ["run", "p.yaml", "--device", "cpu"]
    assert main([*command, "--set", "stages.train.model=resnet21", "--set", "stages.train.arguments={}"]) == 2
    assert "6 n + 2" in capsys.readouterr().err
    assert main(command) == 2
    shown = capsys.readouterr()
    assert shown.out == "Dry run: every stage on a few synthetic images\n"
    assert "images/cat/0.png is not a usable image" in shown.err


@pytest.mark.parametrize("names", [("a", "b"), ("y", "z")])
def test_links_to_folders_are_followed_and_each_folder_counts_once(tmp_path: Path, names: tuple[str, str]) -> None:
    write_folder(tmp_path / "data", count=3)
    write_folder(tmp_path / "elsewhere", count=4, classes=("more",))
    cat = tmp_path / "data" / "cat"
    (cat / "m").mkdir()
    (cat / "m" / "inner.png").write_bytes((cat / "0.png").read_bytes())
    for name in names:
        (cat / name).symlink_to(tmp_path / "elsewhere")
    (cat / "again").symlink_to(cat)
    (tmp_path / "elsewhere" / names[0]).symlink_to(cat / "m")
    data = folder(tmp_path / "data", test=1, validation=1).load(0)
    assert len(data.train) + len(data.validation) + len(data.test) == 3 + 3 + 4 + 1


def test_a_link_that_brings_one_splits_images_into_another_is_refused(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_folder(tmp_path / name, count=3)
    link = tmp_path / "test" / "cat" / "more"
    for target in (tmp_path / "train" / "cat", tmp_path / "test" / "dog"):
        link.symlink_to(target)
        with pytest.raises(DataError, match="is, by way of a link, in two splits or two classes; remove the link"):
            folder(tmp_path).load(0)
        link.unlink()


def test_what_can_be_seen_without_an_image_is_refused_before_any_is_read(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_folder(tmp_path / name, count=2)
    with pytest.raises(DataError, match=r"data\.unlabeled: there is no folder"):
        folder(tmp_path, unlabeled=tmp_path / "none").labels()
    (tmp_path / "test" / "emu").mkdir()
    with pytest.raises(DataError, match="train and test have different classes; not in both: emu"):
        folder(tmp_path).labels()
    (tmp_path / "test" / "emu").rmdir()
    for name in ("val", "validation"):
        write_folder(tmp_path / name, count=2)
    with pytest.raises(DataError, match="has val and validation; keep the one with the validation images"):
        folder(tmp_path).labels()
