"""A small member of the families of torchvision through the chain: pruned, recovered, quantized, exported, run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from compressor import Context, Dataset, Preprocess, Split, load
from compressor.data.split import InMemory
from compressor.export import session
from compressor.export.onnx_file import logits_of
from stages import Prune, Quantize, Target, Train
from tests.conftest import executed
from tests.families import FAMILIES

MODEL = "tests.families:member"


@pytest.fixture(scope="module")
def pictures() -> Context:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split.of(InMemory(images, torch.arange(16) % 4))
    preprocess = Preprocess(size=(32, 32), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Context(data=Dataset(split, split, split, split, tuple("abcd"), preprocess))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_goes_through_the_chain(family: str, pictures: Context, tmp_path: Path) -> None:
    model = pictures.new_model(MODEL, {"family": family})
    pruned = Prune(target=Target(macs=0.9), round_to=4).run(model, pictures)
    assert 0.5 < pruned.counts.macs / model.counts.macs <= 0.9
    recovered = Train(epochs=1, batch_size=8, optimizer="adamw", learning_rate=1e-3).run(pruned, pictures)
    int8 = Quantize(mode="ptq").run(recovered, pictures)
    assert sum(int8.details["float_layers"].values()) < 0.5
    content = int8.to_onnx("test").content
    assert sum(count for kind, count in executed(content, tmp_path).items() if kind in {"QLinearConv", "QGemm"}) >= 2
    inputs = pictures.data.preprocess.normalise(pictures.data.test.images)
    expected = int8.predict(inputs)
    found = logits_of(session(content), inputs.numpy())
    assert np.abs(found - expected.numpy()).max() < 0.1 * float(expected.abs().max())
    int8.save(tmp_path)
    again = load(tmp_path, factories=frozenset({MODEL}))
    assert torch.equal(again.predict(inputs), expected)  # type: ignore[arg-type, union-attr]
