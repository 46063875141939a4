"""Pipeline files: what they say, and what is said of them when they are wrong."""

from pathlib import Path

import pytest

from compressor import Measure, Pipeline
from compressor.errors import SpecError
from stages import Distill, Export, Prune, Quantize, Target, Train

ROOT = Path(__file__).parent.parent
GOOD = """\
name: good
data: {name: digits}
stages:
  - {stage: train, id: teacher, model: resnet20, epochs: 2}
  - stage: distill
    id: student
    model: resnet8
    teacher: teacher
    temperature: 2
    epochs: 1
  - {stage: prune, target: {macs: 0.5}}
  - {stage: quantize, mode: ptq}
  - {stage: export}
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Pipeline:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return Pipeline.load(path, overrides)


def error(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value).replace(str(tmp_path / "p.yaml"), "p.yaml")


def test_a_file_is_its_stages(tmp_path: Path) -> None:
    pipeline = load(tmp_path, GOOD)
    assert pipeline.stages == (
        Train(id="teacher", model="resnet20", epochs=2),
        Distill(id="student", model="resnet8", teacher="teacher", temperature=2, epochs=1),
        Prune(id="prune", target=Target(macs=0.5)),
        Quantize(id="quantize", mode="ptq"),
        Export(id="export"),
    )
    assert pipeline.baseline_id == "teacher"
    assert pipeline.measure == Measure()


def test_it_round_trips_through_yaml(tmp_path: Path) -> None:
    pipeline = load(tmp_path, GOOD)
    assert load(tmp_path, pipeline.to_yaml()) == pipeline
    assert load(tmp_path, pipeline.to_yaml()).digest == pipeline.digest


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_pipeline_is_valid(path: Path) -> None:
    pipeline = Pipeline.load(path)
    assert pipeline.stages[-1].stage == "export"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("temperature", "temprature"), "p.yaml:9:5: stages.1.temprature: unknown key; did you mean `temperature`?"),
        (("temperature: 2", "temperature: 0"), "p.yaml:9:5: stages.1.temperature: Input should be greater than 0"),
        (("epochs: 2", "epochs: many"), "p.yaml:4:50: stages.0.epochs: Input should be a valid integer"),
        (("{macs: 0.5}", "{mac: 0.5}"), "p.yaml:11:29: stages.2.target.mac: unknown key; did you mean `macs`?"),
        (("mode: ptq", "mode: ptqq"), "p.yaml:12:23: stages.3.mode: Input should be 'ptq' or 'qat'"),
        ((", mode: ptq", ""), "p.yaml:12:5: stages.3.mode: is required"),
        (("stage: export", "stage: exprt"), "p.yaml:13:6: stages.4.stage: there is no stage 'exprt'; did you mean `export`?"),
        (("{stage: export}", "{id: x}"), "p.yaml:13:5: stages.4: names no stage"),
        (("{stage: export}", "export"), "p.yaml:13:5: stages.4: names no stage"),
        (("name: digits", "name: digit"), "p.yaml:2:8: data.name: Input should be"),
        (("name: good", "name: Good"), "p.yaml:1:1: name: String should match pattern"),
        (("id: student", "id: teacher"), "p.yaml:1:1: two stages have the id 'teacher'"),
        (("teacher: teacher", "teacher: tutor"), "stage 'student': teacher 'tutor' is not the id of an earlier stage"),
        (("name: good", "name: good\nbaseline: none"), "baseline 'none' is not the id of a stage"),
        (("  - {stage: prune", "  - {stage: export, id: x}\n  - {stage: prune"), "stage 'prune' (prune) takes a torch network, but there is an ONNX file before it, from stage 'x'"),
        (("id: teacher, model: resnet20", "id: teacher"), "stage 'teacher' comes first, so it needs a model"),
        (("name: good", "name: good\nname: better"), "p.yaml:2:1: name: stands here twice; keep one"),
        (("mode: ptq", "mode: qat, epochs: 1, teacher: export"), "teacher 'export' is not the id of an earlier stage"),
        (("name: good", "name: [good"), "p.yaml:2:5: not YAML"),
        (("data: {name: digits}\n", ""), "p.yaml:1:1: data: is required"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_where(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    text = GOOD.replace(*change, 1)
    assert text != GOOD
    assert says in error(tmp_path, text)


def test_all_errors_are_said_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("temperature: 2", "temperature: -1").replace("mode: ptq", "mode: x").replace("digits", "d", 1)
    assert len(error(tmp_path, text).splitlines()) == 3


def test_a_stage_that_cannot_come_first(tmp_path: Path) -> None:
    text = "name: x\ndata: {name: digits}\nstages: [{stage: quantize, mode: ptq}]\n"
    assert "stage 'quantize' (quantize) takes a torch network, but there is nothing before it" in error(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a\n- b\n",
        "just words",
        "a: [1, 2",
        "a: !!python/object:os.system {}",
        "\x00",
        "a: &a {b: 1}\nc: {<<: *a}",
        "a: 2020-99-99",
        "? [1]\n: 2",
        "&a a: *a",
        "a: &a [*a]",
        "1: 2",
    ],
)
def test_what_is_no_pipeline_is_said(tmp_path: Path, text: str) -> None:
    assert "p.yaml" in error(tmp_path, text)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(SpecError, match="cannot be read"):
            Pipeline.load(path)
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(SpecError, match="not a text file"):
        Pipeline.load(tmp_path / "binary.yaml")


def test_set_reaches_a_stage_by_its_id(tmp_path: Path) -> None:
    pipeline = load(tmp_path, GOOD, "stages.teacher.epochs=7", "stages.prune.target={parameters: 0.3}", "seed=3")
    assert pipeline.stages[0].epochs == 7  # type: ignore[attr-defined]
    assert pipeline.stages[2].target == Target(parameters=0.3)  # type: ignore[attr-defined]
    assert pipeline.seed == 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stages.teacher.epochs=-1", "--set stages.teacher.epochs=-1: stages.0.epochs: Input should be greater than"),
        ("stages.tutor.epochs=1", "there is no stage with the id 'tutor'; the pipeline has: teacher, student, prune"),
        ("stages.teacher.epoch=1", "--set stages.teacher.epoch=1: stages.0.epoch: unknown key; did you mean `epochs`?"),
        ("seed", "--set seed: expected dotted.key=value"),
        ("seed.x=1", "--set seed.x=1: seed"),
        ("seed={", "--set seed={: the value is not YAML"),
    ],
)
def test_set_is_checked_and_named(tmp_path: Path, override: str, says: str) -> None:
    assert says in error(tmp_path, GOOD + "seed: 1\n", override)
