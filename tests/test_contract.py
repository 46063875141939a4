"""The contract of every installed stage, whoever wrote it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from compressor import Context, OnnxModel, Stage, TorchModel
from compressor.models.artifact import Artifact
from compressor.pipeline.stage import discover, makes, takes
from tests.conftest import equal_states

STAGES = sorted(discover().items())
BY_TAG = pytest.mark.parametrize(("tag", "kind"), STAGES, ids=[tag for tag, _ in STAGES])
LOAD_AND_PREDICT = """
import sys
from pathlib import Path
import numpy as np, torch
from compressor import TorchModel, load
inputs = np.load(sys.argv[1])
for folder in map(Path, sys.argv[2:]):
    model = load(folder)
    given = torch.from_numpy(inputs) if isinstance(model, TorchModel) else inputs
    np.save(folder / "outputs.npy", np.asarray(model.predict(given)))
"""


def run_example(kind: type[Stage], tiny: TorchModel, context: Context) -> Artifact:
    """The stage with its own example settings, in a context whose only teacher is the tiny network."""
    stage = kind.model_validate(kind.example)
    teachers = {kind.example.get("teacher", "teacher"): tiny}
    fresh = replace(tiny)  # which has exported nothing yet
    made = stage.run(fresh, Context(data=context.data, seed=context.seed, teachers=teachers, pipeline="tests"))
    assert type(made).__name__ in makes(kind)
    return made


def outputs(model: Artifact, inputs: torch.Tensor) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(model.predict(inputs if isinstance(model, TorchModel) else inputs.numpy()))


@pytest.fixture(scope="module")
def inputs(context: Context) -> torch.Tensor:
    return context.data.preprocess.normalise(context.data.validation.images[:40])


@pytest.fixture(scope="module")
def made(tiny: TorchModel, context: Context) -> dict[str, Artifact]:
    """Every stage's artifact."""
    return {tag: run_example(kind, tiny, context) for tag, kind in STAGES}


@BY_TAG
def test_the_spec_round_trips(tag: str, kind: type[Stage]) -> None:
    stage = kind.model_validate(kind.example)
    again = kind.model_validate(yaml.safe_load(yaml.safe_dump(stage.model_dump(mode="json"))))
    assert again == stage
    assert stage.stage == tag


@BY_TAG
def test_the_spec_is_frozen_and_closed(tag: str, kind: type[Stage]) -> None:
    stage = kind.model_validate(kind.example)
    with pytest.raises(ValueError, match="frozen"):
        stage.id = "other"
    with pytest.raises(ValueError, match="Extra inputs"):
        kind.model_validate({**kind.example, "no_such_setting": 1})


@BY_TAG
def test_its_types_are_artifacts(tag: str, kind: type[Stage]) -> None:
    assert takes(kind)
    assert takes(kind) <= {"TorchModel", "OnnxModel", "None"}
    assert makes(kind)
    assert makes(kind) <= {"TorchModel", "OnnxModel"}


@BY_TAG
def test_the_input_is_left_as_it_is(
    tag: str, kind: type[Stage], tiny: TorchModel, context: Context, inputs: torch.Tensor
) -> None:
    before = tiny.copy_network()
    expected = outputs(tiny, inputs)
    run_example(kind, tiny, context)
    assert equal_states(tiny.network, before)
    assert np.array_equal(outputs(tiny, inputs), expected)
    assert not tiny.network.training


@BY_TAG
def test_the_same_seed_gives_the_same_bits(
    tag: str, kind: type[Stage], tiny: TorchModel, context: Context, made: dict[str, Artifact]
) -> None:
    torch.rand(3)  # whatever was drawn before does not matter
    again = run_example(kind, tiny, context)
    first = made[tag]
    if isinstance(first, TorchModel):
        assert isinstance(again, TorchModel)
        assert equal_states(first.network, again.network)
        assert first.changes == again.changes
    else:
        assert isinstance(again, OnnxModel)
        assert first.content == again.content


def test_a_fresh_process_gives_equal_bits(made: dict[str, Artifact], inputs: torch.Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "inputs.npy", inputs.numpy())
    folders = []
    for tag, model in made.items():
        folder = tmp_path / tag
        folder.mkdir()
        model.save(folder)
        folders.append(folder)
    subprocess.run([sys.executable, "-c", LOAD_AND_PREDICT, tmp_path / "inputs.npy", *folders], check=True)
    for tag, model in made.items():
        assert np.array_equal(np.load(tmp_path / tag / "outputs.npy"), outputs(model, inputs)), tag


def test_every_torch_artifact_can_ship(made: dict[str, Artifact], inputs: torch.Tensor) -> None:
    for tag, model in made.items():
        if isinstance(model, TorchModel):
            same = outputs(model.to_onnx("tests"), inputs).argmax(1) == outputs(model, inputs).argmax(1)
            assert same.mean() >= 0.95, tag
