"""Pipeline files: what they mean, and the errors in wrong ones."""

from pathlib import Path

import pytest

from compressor import Measure, Pipeline
from compressor.errors import SpecError
from compressor.pipeline import without_places
from compressor.search import load as load_search
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


def test_a_pipeline_of_somebody_else_keeps_its_seeds(tmp_path: Path) -> None:
    pipeline = load(tmp_path, GOOD, "seeds=[3, 4]", "tracking=[tensorboard]", "data.store={folder: elsewhere}")
    assert without_places(pipeline) == load(tmp_path, GOOD, "seeds=[3, 4]")


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_pipeline_is_valid(path: Path) -> None:
    searched = path.name.startswith("search_")
    pipeline = load_search(path)[1].example if searched else Pipeline.load(path)
    assert pipeline.stages[-1].stage == "export"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("temperature", "temprature"), "p.yaml:9:5: stages.1.temprature: unknown key; did you mean `temperature`?"),
        (("temperature: 2", "sgd: 2"), "p.yaml:9:5: stages.1.sgd: unknown key; expected one of"),
        (("temperature: 2", "losses: [{loss: kl, kl: 2}]"), "p.yaml:9:25: stages.1.losses.0.kl: unknown key"),
        (("temperature: 2", "losses: [{loss: dist, iner: 2}]"), "stages.1.losses.0.iner: unknown key; did you mean `inter`"),
        (("temperature: 2", "temperature: 0"), "p.yaml:9:5: stages.1.temperature: got 0; expected at least 0.1"),
        (("epochs: 2", "epochs: many"), "p.yaml:4:50: stages.0.epochs: got \"many\"; expected a whole number"),
        (("{macs: 0.5}", "{mac: 0.5}"), "p.yaml:11:29: stages.2.target.mac: unknown key; did you mean `macs`?"),
        (("mode: ptq", "mode: ptqq"), "p.yaml:12:23: stages.3.mode: got \"ptqq\"; expected 'ptq' or 'qat'; did you mean `ptq`?"),
        ((", mode: ptq", ""), "p.yaml:12:5: stages.3: set either mode: ptq or qat, or max_drop, the points of accuracy that int8 may cost"),
        (("stage: export", "stage: exprt"), "p.yaml:13:6: stages.4.stage: there is no stage 'exprt'; did you mean `export`?"),
        (("{stage: export}", "{id: x}"), "p.yaml:13:5: stages.4: names no stage"),
        (("{stage: export}", "export"), "p.yaml:13:5: stages.4: names no stage"),
        (("name: digits", "name: digit"), "p.yaml:2:8: data.name: got \"digit\"; expected 'digits', 'cifar10'"),
        (("name: good", "name: Good"), "p.yaml:1:1: name: got \"Good\"; expected lower-case letters, digits, `-` and `_`"),
        (("id: student", "id: teacher"), "p.yaml:6:5: stages.1.id: two stages have the id 'teacher'; give each its own"),
        (("teacher: teacher", "teachers: [teacher, tutor]"), "p.yaml:8:25: stages.1.teachers.1: 'tutor' is not the id of an earlier stage; earlier are: `teacher`"),
        (("teacher: teacher", "teacher: tutor"), "p.yaml:8:5: stages.1.teacher: 'tutor' is not the id of an earlier stage; earlier are: `teacher`"),
        (("name: good", "name: good\nbaseline: none"), "p.yaml:2:1: baseline: 'none' is not the id of a stage; expected one of `teacher`, `student`"),
        (("  - {stage: prune", "  - {stage: export, id: x}\n  - {stage: prune"), "p.yaml:12:5: stages.3: stage 'prune' takes a torch network, but there is an ONNX file before it, from stage 'x'"),
        (("id: teacher, model: resnet20", "id: teacher"), "stage 'teacher' comes first, so it needs a model"),
        (("name: good", "name: good\nname: better"), "p.yaml:2:1: name: appears twice; keep one"),
        (("mode: ptq", "mode: qat, epochs: 1, teacher: export"), "p.yaml:12:45: stages.3.teacher: 'export' is not the id of an earlier stage; earlier are"),
        (("name: good", "name: [good"), "p.yaml:2:5: not YAML"),
        (("data: {name: digits}\n", ""), "p.yaml:1:1: data: is missing; it is required"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong_and_where(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    text = GOOD.replace(*change, 1)
    assert text != GOOD
    assert says in error(tmp_path, text)


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("temperature: 2", "temperature: -1").replace("mode: ptq", "mode: x").replace("digits", "d", 1)
    assert len(error(tmp_path, text).splitlines()) == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("temperature: 2", "alpha: 3"), "stages.1.alpha: got 3; expected at most 1"),
        (("epochs: 2", "epochs: -1"), "stages.0.epochs: got -1; expected at least 0"),
        (("epochs: 2", "epochs: 2.5"), "stages.0.epochs: got 2.5; expected a whole number"),
        (("epochs: 2", "epochs: true"), "stages.0.epochs: got true; true and false are not allowed here"),
        (("epochs: 2", "epochs: 1:30"), 'stages.0.epochs: got "1:30"; expected a whole number'),
        (("epochs: 2", "epochs: 2, learning_rate: 1e9"), "stages.0.learning_rate: got 1000000000.0; expected at most 10"),
        (("epochs: 2", "epochs: 2, learning_rate: .nan"), "stages.0.learning_rate: got NaN; expected a finite number"),
        (("epochs: 2", "epochs: 2, learning_rate: .inf"), "stages.0.learning_rate: got Infinity; expected"),
        (("epochs: 2", "epochs: 2, arguments: {x: .nan}"), "stages.0.arguments: expected plain text, finite numbers"),
        (("model: resnet20", "arguments: {blocks: [1]}"), "stages.0: arguments belong to a model, but no model is named"),
        (("mode: ptq", "mode: ptq, percentile: 0.9"), "stages.3: percentile needs observer: percentile"),
        (("mode: ptq", "mode: qat, epochs: 1, alpha: 0.5"), "stages.3: alpha needs a teacher"),
        (("name: digits", "name: digits, mean: [125]"), "data.mean.0: got 125; expected at most 1"),
        (("name: digits", "name: digits, size: [8]"), "data.size.1: is missing; it is required"),
        (("name: digits", "name: digits, size: 8"), "data.size: got 8; expected a list"),
        (("name: digits", "name: digits, augment: {crp: 1}"), "data.augment.crp: unknown key; did you mean `crop`?"),
        (("name: digits", "name: digits, augment: {x: 1}"), "data.augment.x: unknown key; expected one of `crop`, `flip`"),
        (("data:", f"seed: {2**32}\ndata:"), "p.yaml:2:1: seed: got 4294967296; expected at most 4294967295"),
        (("data:", "measure: {threads: []}\ndata:"), "measure.threads: got []; expected at least 1 items"),
        (("id: student", "id: [1]"), "p.yaml:6:5: stages.1.id: got [1]; expected text"),
        (("stage: distill", "stage: [distill]"), "stages.1.stage: there is no stage ['distill']; did you mean `distill`?"),
        (("name: good", "name: good\nbaseline: [1]"), "p.yaml:2:1: baseline: got [1]; expected text"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    text = GOOD.replace(*change, 1)
    assert text != GOOD
    assert says in error(tmp_path, text)


def test_values_are_those_that_editors_see(tmp_path: Path) -> None:
    text = GOOD.replace("epochs: 2", "epochs: 2, learning_rate: 1e-4, arguments: {a: no, b: 010, c: 2020-01-01}")
    stage = load(tmp_path, text).stages[0]
    assert isinstance(stage, Train)
    assert stage.learning_rate == 0.0001
    assert stage.arguments == {"a": "no", "b": "010", "c": "2020-01-01"}


def test_errors_between_stages_are_reported_beside_errors_in_them(tmp_path: Path) -> None:
    text = (
        GOOD.replace("temperature: 2", "temperature: 0")
        .replace("teacher: teacher", "teacher: techer")
        .replace("stage: export}", "stage: export, id: teacher}\n  - {stage: prune, target: {ratio: 0.1}}\nbaseline: x")
    )
    assert [line.split(": ")[:2] for line in error(tmp_path, text).splitlines()] == [
        ["p.yaml:8:5", "stages.1.teacher"],
        ["p.yaml:9:5", "stages.1.temperature"],
        ["p.yaml:13:21", "stages.4.id"],
        ["p.yaml:14:5", "stages.5"],
        ["p.yaml:14:5", "stages.5"],
        ["p.yaml:15:1", "baseline"],
    ]
    assert "did you mean `teacher`?" in error(tmp_path, text)


RECOVERY = "  - {stage: distill, id: recovered, teacher: teacher, epochs: 1}\n"


def test_pruned_and_not_recovered_is_warned_about(tmp_path: Path) -> None:
    warned = load(tmp_path, GOOD).warnings
    assert len(warned) == 1
    assert "stage 'quantize' follows 'prune', which needs recovery" in warned[0]
    assert "mode: ptq" in GOOD
    assert load(tmp_path, GOOD.replace("mode: ptq", "mode: qat, epochs: 1")).warnings == warned
    assert load(tmp_path, GOOD.replace("  - {stage: quantize", RECOVERY + "  - {stage: quantize")).warnings == ()
    twice = "  - {stage: prune, id: again, target: {macs: 0.5}}\n"
    warned = load(tmp_path, GOOD.replace("  - {stage: quantize", twice + "  - {stage: quantize")).warnings
    assert [warning.split()[1] for warning in warned] == ["'quantize'"]


def test_a_stage_that_cannot_come_first(tmp_path: Path) -> None:
    text = "name: x\ndata: {name: digits}\nstages: [{stage: quantize, mode: ptq}]\n"
    assert "stage 'quantize' takes a torch network, but there is nothing before it" in error(tmp_path, text)


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
        "? {a: 1}\n: 2",
        "a: !!binary aGk=",
        "a: !!int x",
        "[" * 5000,
        "a: &a [x, x]\nb: &b [*a, *a]\n"
        + "\n".join(f"{chr(99 + i)}: &{chr(99 + i)} [*{chr(98 + i)}, *{chr(98 + i)}]" for i in range(20)),
    ],
)
def test_a_file_that_is_not_a_pipeline_is_reported(tmp_path: Path, text: str) -> None:
    assert "p.yaml" in error(tmp_path, text)


def test_unreadable_files_are_reported(tmp_path: Path) -> None:
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
    assert load(tmp_path, GOOD, "stages.0.epochs=7").stages[0].epochs == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stages.9.epochs=1", "there is no stage with the id '9'; the pipeline has: teacher, student, prune"),
        ("stage.teacher.epochs=3", "--set stage.teacher.epochs=3: stage: unknown key"),
        ("data.root.x=3", "--set data.root.x=3: data.root: got"),
        ("data.augment={crop: 1, crop: 2}", "crop: appears twice; keep one"),
        ("stages.teacher.epochs=-1", "--set stages.teacher.epochs=-1: stages.0.epochs: got -1; expected at least 0"),
        ("stages.tutor.epochs=1", "there is no stage with the id 'tutor'; the pipeline has: teacher, student, prune"),
        ("stages.teacher.epoch=1", "--set stages.teacher.epoch=1: stages.0.epoch: unknown key; did you mean `epochs`?"),
        ("seed", "--set seed: expected dotted.key=value"),
        ("seed.x=1", "--set seed.x=1: seed"),
        ("seed={", "--set seed={: the value is not plain YAML"),
    ],
)
def test_set_is_checked_and_named(tmp_path: Path, override: str, says: str) -> None:
    assert says in error(tmp_path, GOOD + "seed: 1\n", override)
