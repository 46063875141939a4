"""Augmentation: each change is what it says, and a function of the seed, the view and the image alone."""

import base64
import io
import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from pydantic import ValidationError

from compressor import Augment, Context, Data, Dataset
from compressor.data import InMemory, Preprocess, Split, View, decoding
from compressor.data.views import Mix, Shift
from compressor.errors import DataError
from compressor.report import contact_sheet
from compressor.training import Batch, CrossEntropy, Watched, shown
from stages import Cache, Distill, Train
from tests.conftest import TINY, taught

CPU = torch.device("cpu")
EVERYTHING = (
    {"crop": 2, "flip": True, "color": 0.4},
    {"resized_crop": [0.3, 1], "randaugment": {}, "erase": 0.5},
    {"flip": True, "mixup": 0.4},
    {"flip": True, "color": 0.2, "cutmix": 1.0, "mixup": 0.4},
)


def dataset(images: np.ndarray, labels: list[int], classes: int = 3, **augment: Any) -> Dataset:  # type: ignore[type-arg]
    """Images `[N, C, H, W]` to train on."""
    split = Split.of(InMemory(torch.from_numpy(images), torch.tensor(labels)))
    channels, *size = images.shape[1:]
    figures = (0.25, 0.5, 0.75)[:channels]
    preprocess = Preprocess(size=tuple(size), channels=channels, mean=figures, std=figures)
    names = tuple("abcdefgh"[:classes])
    return Dataset(split, split, split, split, names, preprocess, Augment.model_validate(augment))


def noise(count: int = 9, channels: int = 3) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).integers(0, 256, (count, channels, 12, 16), dtype=np.uint8)


def flat(count: int, *colors: tuple[int, int, int]) -> np.ndarray:  # type: ignore[type-arg]
    """Images of one color each, taken in turns."""
    every = np.array([colors[index % len(colors)] for index in range(count)], np.uint8)
    return np.broadcast_to(every[:, :, None, None], (count, 3, 24, 32)).copy()


def everything(data: Dataset, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    pixels, labels = View.draw(data, seed).batch(torch.arange(len(data.train)), CPU)
    return pixels.numpy().astype(float), labels.numpy()


def test_a_shift_is_the_crop_and_mirror_it_says() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 5, 7), dtype=np.uint8))
    augment = Augment(crop=2, flip=True)
    shift = Shift.draw(augment, 6, torch.Generator().manual_seed(3))
    indices = torch.tensor([4, 1, 5])
    got = shift.of(images[indices], indices).numpy()
    for position, index in enumerate(indices.tolist()):
        image = images[index].numpy()
        image = image[:, :, ::-1] if shift.flips[index] else image
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        row, column = shift.offsets[index].tolist()
        assert np.array_equal(got[position], padded[:, row : row + 5, column : column + 7])
    many = Shift.draw(augment, 1000, torch.Generator().manual_seed(0))
    assert (many.offsets.min(), many.offsets.max()) == (0, 4)
    assert many.flips.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_alternating_images_are_mirrored_in_every_other_view() -> None:
    augment = Augment(flip=True, alternate=True)
    flips = [Shift.draw(augment, 1000, torch.Generator().manual_seed(number), number).flips for number in range(4)]
    assert all(bool((before ^ after).all()) for before, after in itertools.pairwise(flips))
    assert flips[0].float().mean().item() == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValidationError, match="add flip: true"):
        Augment(alternate=True)


def test_no_augmentation_leaves_images_alone() -> None:
    data = dataset(noise(), [0] * 9)
    assert np.array_equal(everything(data)[0], noise())


@pytest.mark.parametrize("augment", EVERYTHING)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_depends_on_the_seed_and_the_image_alone(augment: dict[str, Any], channels: int) -> None:
    data = dataset(np.repeat(noise(3, channels), 3, 0), [0, 1, 2] * 3, **augment)  # each image three times
    generator = torch.get_rng_state()
    pixels, labels = everything(data)
    assert torch.equal(generator, torch.get_rng_state())
    view = View.draw(data, 5)
    torch.manual_seed(99)
    for few in torch.tensor([7, 0, 3, 3, 8]).split(2):
        again, named = view.batch(few, CPU)
        assert np.array_equal(again.numpy(), pixels[few.numpy()])
        assert np.array_equal(named.numpy(), labels[few.numpy()])
    assert not np.array_equal(everything(data, seed=6)[0], pixels)
    for copies in np.split(pixels, 3):
        assert len({copy.tobytes() for copy in copies}) > 1  # they are drawn for each image


def test_a_resized_crop_has_an_area_in_the_range() -> None:
    rows, columns = np.mgrid[0:96, 0:128]
    ramps = np.stack([rows, columns, 0 * rows]).astype(np.uint8)
    pixels, _ = everything(dataset(np.repeat(ramps[None], 60, 0), [0] * 60, resized_crop=[0.3, 0.5]))
    assert pixels.shape == (60, 3, 96, 128)
    heights = (pixels[:, 0].max((1, 2)) - pixels[:, 0].min((1, 2)) + 1) / 96
    widths = (pixels[:, 1].max((1, 2)) - pixels[:, 1].min((1, 2)) + 1) / 128
    areas, ratios = heights * widths, widths * 128 / (heights * 96)
    assert (areas.min(), areas.max()) == pytest.approx((0.3, 0.5), abs=0.05)
    assert (ratios.min(), ratios.max()) == pytest.approx((3 / 4, 4 / 3), abs=0.12)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_resized_crop_is_cut_out_of_the_whole_file(
    tmp_path: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photographs three times as wide as high: the centre is all that the other splits are given of them."""
    if not in_memory:
        monkeypatch.setattr(decoding, "IN_MEMORY_BYTES", 0)
    columns = np.broadcast_to(np.arange(0, 240, 2, np.uint8), (40, 120))
    for name, green in (("cat", 50), ("dog", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            ramp = np.stack([columns, np.full_like(columns, green), np.full_like(columns, number)], 2)
            Image.fromarray(ramp).save(tmp_path / "photos" / name / f"{number:02}.png")
    (tmp_path / "photos" / "cat" / "05.png").write_bytes(b"no image")
    settings = {
        "name": "image_folder",
        "root": tmp_path / "photos",
        "size": (20, 20),
        "resize": 20,
        "unreadable": "skip",
        "store": {"folder": tmp_path / "store"},
    }
    plain = Data.model_validate(settings).load(0)
    data = Data.model_validate({**settings, "augment": {"resized_crop": [0.1, 0.3], "flip": True}}).load(0)
    for name in ("train", "validation", "calibration", "test"):
        assert torch.equal(getattr(plain, name).images, getattr(data, name).images)
    assert plain.train.images[:, 0].min() >= 80
    assert plain.train.images[:, 0].max() <= 160
    pixels, labels = everything(data)
    assert np.array_equal(np.where(labels == 0, 50, 200), pixels[:, 1].mean((1, 2)))
    assert np.array_equal(plain.train.images[:, 2, 0, 0], pixels[:, 2].mean((1, 2)))  # each its own file
    assert pixels[:, 0].min() < 20
    assert pixels[:, 0].max() > 220
    rising = pixels[:, 0, 0, -1] > pixels[:, 0, 0, 0]
    assert 0.2 < rising.mean() < 0.8  # mirrored by halves
    few = torch.tensor([9, 2])
    assert np.array_equal(View.draw(data, 5).batch(few, CPU)[0].numpy(), pixels[few.numpy()])
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(DataError, match=r"\.png is not a usable image: .*No such file"):
        View.draw(data, 5).batch(few, CPU)


def test_a_large_jpeg_is_decoded_small_but_upright() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # lies on its side
    Image.new("RGB", (1600, 1200), (200, 100, 0)).save(file, "JPEG", exif=exif)
    preprocess = Preprocess(size=(100, 120), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    whole = preprocess.whole(Image.open(file))
    assert whole.shape == (3, 400, 300)
    assert np.allclose(whole.mean((1, 2)), (200, 100, 0), atol=2)


def test_color_changes_brightness_and_hue_within_bounds() -> None:
    """Of a gray image, contrast, saturation and hue change nothing; of a red one, hue turns within a quarter."""
    pixels, _ = everything(dataset(flat(200, (100, 100, 100)), [0] * 200, color=0.4))
    assert (pixels.min(), pixels.max()) == pytest.approx((60, 140), abs=5)
    assert np.ptp(pixels.reshape(200, -1), 1).max() <= 2  # one gray
    red, _ = everything(dataset(flat(200, (120, 0, 0)), [0] * 200, color=0.4))
    more, less = red[:, 0, 0, 0], red[:, 1:, 0, 0].max(1)
    assert ((less / more).max() / 6) == pytest.approx(0.1, abs=0.02)  # a sixth of a turn makes red yellow


def test_randaugment_changes_as_much_as_its_magnitude() -> None:
    """At magnitude 0 no operation moves a pixel; its few that have no strength change colors all the same."""
    data = dataset(noise(60), [0] * 60, randaugment={"operations": 1, "magnitude": 0})
    still = [np.array_equal(*pair) for pair in zip(everything(data)[0], noise(60), strict=True)]
    strong = replace(data, augment=Augment.model_validate({"randaugment": {"operations": 3, "magnitude": 30}}))
    moved = [np.array_equal(*pair) for pair in zip(everything(strong)[0], noise(60), strict=True)]
    assert np.mean(still) > 0.6
    assert np.mean(moved) < 0.1


def test_erasing_leaves_a_rectangle_of_the_mean_color() -> None:
    pixels, _ = everything(dataset(flat(300, (0, 0, 0)), [0] * 300, erase=0.25))
    erased = (pixels == np.array([63, 127, 191])[:, None, None]).all(1)  # the mean of `dataset`
    assert (pixels[~erased[:, None].repeat(3, 1)] == 0).all()
    assert erased.any((1, 2)).mean() == pytest.approx(0.25, abs=0.06)
    for mask in erased[erased.any((1, 2))]:
        assert 0.01 < mask.mean() < 0.35  # of the paper: 2% to 33%
        assert mask.sum() == mask.any(0).sum() * mask.any(1).sum()


def test_the_labels_of_a_mixed_image_are_the_shares_of_its_pixels() -> None:
    colors = ((240, 0, 0), (0, 240, 0), (0, 0, 240))
    labels = [0, 1, 2] * 100
    for augment, blends in (({"mixup": 0.8}, 1.0), ({"cutmix": 1.0}, 0.0), ({"mixup": 0.8, "cutmix": 1.0}, 0.5)):
        pixels, shares = everything(dataset(flat(300, *colors), labels, **augment))
        assert np.allclose(shares.sum(1), 1)
        assert np.allclose(pixels.mean((2, 3)) / 240, shares, atol=0.01)  # each channel is a class
        mixed = (shares.max(1) < 0.9) & (shares.max(1) > 0.1)
        one_color = np.ptp(pixels[mixed], axis=(2, 3)).max(1) < 1
        assert one_color.mean() == pytest.approx(blends, abs=0.15)
        assert (shares[np.arange(300), labels] > 0).mean() > 0.95  # its own class is in it


def test_every_image_is_a_partner_once() -> None:
    view = View.draw(dataset(noise(), [0] * 9, mixup=1.0), 3)
    assert view.mix is not None
    assert sorted(view.mix.partners.tolist()) == list(range(9))


@pytest.mark.parametrize("size", [(24, 32), (10, 40)])
def test_shares_are_drawn_from_beta(size: tuple[int, int]) -> None:
    for settings in ({"mixup": 0.4}, {"mixup": 2.0}, {"cutmix": 2.0}):
        ((way, a),) = settings.items()
        mix = Mix.draw(Augment.model_validate(settings), size, 2000, seed=7)
        indices = torch.arange(2000)
        own = mix.own(indices, size, CPU).numpy()
        assert own.shape == (2000, *size)
        shares = own.mean((1, 2))
        assert np.allclose(mix.kept(indices, size), shares, atol=1e-6)
        if way == "mixup":
            assert np.ptp(own, axis=(1, 2)).max() == 0
            assert shares.mean() == pytest.approx(0.5, abs=0.03)
            assert shares.var() == pytest.approx(1 / (4 * (2 * a + 1)), rel=0.1)
        else:
            assert set(np.unique(own)) == {0, 1}
            assert 0.55 < shares.mean() < 0.75  # half, but for what lies beyond the border
            rows, columns = (own == 0).any(2).sum(1), (own == 0).any(1).sum(1)
            assert ((own == 0).sum((1, 2)) == rows * columns).all()  # a box
            assert columns.max() / rows.max() == pytest.approx(size[1] / size[0], rel=0.3)  # as wide as the image


def log_softmax(logits: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_losses_of_mixed_labels_are_those_of_numpy() -> None:
    random = np.random.default_rng(1)
    logits, teacher = random.normal(size=(2, 5, 4))
    shares = random.dirichlet(np.ones(4), 5)
    given = [torch.from_numpy(each).float() for each in (logits, teacher, shares)]
    batch = Batch(given[0], given[2], torch.arange(5), 0)
    smoothed = 0.9 * shares + 0.1 / 4
    expected = -(smoothed * log_softmax(logits)).sum(1).mean()
    loss = CrossEntropy(label_smoothing=0.1)(Watched(torch.nn.Identity()), batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    t, s = log_softmax(teacher / 3), log_softmax(logits / 3)
    soft = (np.exp(t) * (t - s)).sum(1).mean()
    expected = 0.7 * 9 * soft - 0.3 * (shares * log_softmax(logits)).sum(1).mean()
    got = taught(*given, temperature=3, alpha=0.7)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_stored_outputs_of_mixed_images_are_those_that_training_would_compute() -> None:
    augment = Augment(crop=1, color=0.3, mixup=0.4, cutmix=1.0)
    data = Data(name="digits", train=200, augment=augment).load(0)
    context = Context(data=data.without_test())
    teacher = Train(model="resnet", arguments=TINY, epochs=1, precision="fp32").run(None, context)
    context = replace(context, teachers={"teacher": teacher})
    settings = {"teacher": "teacher", "model": "resnet", "arguments": TINY, "epochs": 2, "precision": "fp32"}
    stored = Distill.model_validate({**settings, "cache": Cache(views=2)}).run(None, context)
    computed = Distill.model_validate(settings).run(None, context)
    for one, other in zip(stored.details["curve"], computed.details["curve"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)  # the teacher may run in bf16


def test_what_was_written_before_there_were_more_augmentations_stays_valid() -> None:
    assert repr(Augment(crop=1)) == "Augment(crop=1, flip=False)"
    assert Augment(crop=1).model_dump(mode="json") == {"crop": 1, "flip": False}
    for settings in EVERYTHING:
        augment = Augment.model_validate(settings)
        assert Augment.model_validate(augment.model_dump(mode="json")) == augment
        assert all(name in repr(augment) for name in settings)


def test_the_contact_sheet_holds_what_training_shows() -> None:
    images = noise(20, channels=1)
    context = Context(data=dataset(images, [0] * 20, crop=3, flip=True))
    sheet = contact_sheet(shown(context, 4, 2).numpy())
    assert sheet == contact_sheet(shown(context, 4, 2).numpy())
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet))))
    assert pixels.shape == (4 * 12 + 3 * 2, 2 * 16 + 2)
    for row, index in enumerate((0, 6, 12, 19)):
        for column in range(2):
            view, _ = View.draw(context.data, context.seed_for(f"view {column}")).batch(torch.tensor([index]), CPU)
            assert np.array_equal(pixels[14 * row :][:12, 18 * column :][:, :16], view[0, 0])
    large = Image.open(io.BytesIO(base64.b64decode(contact_sheet(np.zeros((8, 6, 3, 300, 200), np.uint8)))))
    assert large.size == (6 * 64 + 5 * 2, 8 * 96 + 7 * 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": 1, "resized_crop": [0.5, 1]}, "crop and resized_crop both cut a part out; leave one of the two out"),
        ({"resized_crop": [1, 0.5]}, r"resized_crop \[1.0, 0.5\] is no range; put the smaller area first"),
        ({"resized_crop": [0, 1]}, "greater than 0"),
        ({"color": 2}, "less than or equal to 1"),
        ({"randaugment": {"magnitude": 31}}, "less than or equal to 30"),
    ],
)
def test_augmentations_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Augment.model_validate(settings)


def test_images_stay_where_they_are_on_a_cpu_or_where_each_is_changed_alone() -> None:
    data = Data(name="digits", train=20).load(0)
    assert data.on(CPU).train is data.train
    alone = replace(data, augment=Augment(color=0.5))
    assert alone.on(torch.device("cuda")) is alone


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", [{"crop": 2, "flip": True}, {"crop": 1, "mixup": 1, "cutmix": 1}])
def test_a_gpu_shows_the_same_views(augment: dict[str, Any]) -> None:
    data = replace(Data(name="digits", train=100).load(0), augment=Augment.model_validate(augment))
    gpu, order = torch.device("cuda"), torch.randperm(100)
    held = data.on(gpu)
    assert held.train.batch(order).device.type == "cuda"
    expected, shares = View.draw(data, 7).batch(order, CPU)
    pixels, same = View.draw(held, 7).batch(order, gpu)
    torch.testing.assert_close(pixels.cpu(), expected, check_dtype=False, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(same.cpu(), shares)
