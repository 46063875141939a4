"""Properties of any pipeline: it survives YAML, a misspelt key is refused, and nothing ends in a traceback."""

import string
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from compressor import Augment, Data, Measure, Pipeline
from compressor.config.yaml_file import dump, parse
from compressor.data.settings import Store
from compressor.errors import SpecError
from compressor_command import main
from stages import DIST, DKD, KL, MSE, Cache, Distill, Export, Prune, Quantize, Target, Train
from tests.test_pipeline import GOOD

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]
LIMITS = settings(deadline=None, max_examples=60, derandomize=True, suppress_health_check=SLOW)
IDS = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)
WORDS = st.text(max_size=6)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)


def built(kind: type[BaseModel], **given_settings: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Any valid instance: from the types and bounds of the fields, and what `given_settings` say instead."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for name, info in kind.model_fields.items():
        bounds = tuple(info.metadata)
        fields[name] = st.from_type(Annotated[(info.annotation, *bounds)] if bounds else info.annotation)  # type: ignore[index, arg-type]
    fields.update(given_settings)
    optional = {
        name: fields.pop(name)
        for name in list(fields)
        if name not in given_settings and not kind.model_fields[name].is_required()
    }

    def make(values: dict[str, Any]) -> Any:
        try:
            return kind(**values)
        except ValidationError:
            return None

    return st.fixed_dictionaries(fields, optional=optional).map(make).filter(lambda made: made is not None)


COMMON: dict[str, Any] = {
    "id": IDS,
    "learning_rate": st.none() | st.floats(1e-9, 10),
    "ema": st.none() | st.floats(0.01, 0.99),
    "schedule": st.sampled_from(["cosine", "constant"]),
    "milestones": st.just(()),
}
TAUGHT: dict[str, Any] = {
    "temperature_end": st.none() | st.floats(0.1, 100),
    "alpha_end": st.none() | st.floats(0, 1),
    "losses": st.lists(st.one_of(map(built, (KL, DKD, DIST, MSE))), min_size=1, max_size=2).map(tuple),
    "features": st.just(()),
}
START: dict[str, Any] = {"model": st.just("resnet20"), "arguments": st.dictionaries(WORDS, PLAIN, max_size=2)}
TARGET = st.floats(0.01, 0.99).map(lambda share: Target(macs=share))
AIMS = [{"mode": st.just("qat"), "max_drop": st.none()}, {"mode": st.none(), "max_drop": st.floats(0, 100)}]
PATHS = st.text(string.ascii_letters + "/. é", min_size=1, max_size=5).map(Path)
DATA = built(
    Data,
    name=st.just("digits"),
    root=PATHS,
    unlabeled=st.none(),
    store=built(Store, folder=st.none() | PATHS, gigabytes=st.floats(0.1, 1e6)),
    resize=st.none() | st.just(4096),
    mean=st.none() | st.tuples(st.floats(0, 1)),
    std=st.none() | st.tuples(st.floats(0.01, 1)),
    size=st.none() | st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    augment=st.none() | built(Augment),
)


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    names = draw(st.lists(IDS, min_size=5, max_size=5, unique=True))
    teacher = st.just(names[0])
    stages = [
        draw(built(Train, **COMMON, **START, weights=st.none() | IDS.map(Path))),
        draw(built(Distill, **COMMON, **TAUGHT, **START, teacher=teacher, cache=st.none() | st.integers(1, 9).map(lambda v: Cache(views=v)))),
        draw(built(Prune, id=IDS, target=TARGET)),
        draw(built(Quantize, **COMMON, **TAUGHT, **draw(st.sampled_from(AIMS)), epochs=st.integers(1, 9), teacher=teacher, observer=st.just("percentile"), skip=st.lists(WORDS, max_size=2).map(tuple))),
        draw(built(Export, id=IDS)),
    ]  # fmt: skip
    named = tuple(stage.model_copy(update={"id": name}) for stage, name in zip(stages, names, strict=True))
    measure = Measure(threads=(draw(st.integers(1, 1024)),), batches=(draw(st.integers(1, 9)),))
    return Pipeline(
        name=draw(IDS), seed=draw(st.integers(0, 2**32 - 1)), data=draw(DATA), stages=named, measure=measure
    )


@pytest.mark.parametrize("text", ["\x85", "a\u2028b", "\u2029", "é: #", "no", "1e3"])
def test_odd_text_survives_yaml(text: str) -> None:
    assert parse(dump({text: [text]}), "odd").content == {text: [text]}


@LIMITS
@given(pipeline=pipelines())
def test_any_pipeline_survives_yaml(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(pipeline.to_yaml(), encoding="utf-8")
    again = Pipeline.load(tmp_path / "p.yaml")
    assert again == pipeline
    assert again.digest == pipeline.digest


KEYS = ["name", "data", "stages", "stage", "id", "model", "epochs", "teacher", "temperature", "target", "macs", "mode"]


@LIMITS
@given(
    key=st.sampled_from(KEYS),
    position=st.integers(0, 11),
    letter=st.sampled_from([*string.ascii_lowercase, "", "_", "E"]),
    nth=st.integers(0, 4),
)
def test_a_misspelt_key_is_refused_or_means_the_same(
    key: str, position: int, letter: str, nth: int, tmp_path: Path
) -> None:
    places = [i for i in range(len(GOOD)) if GOOD.startswith(f"{key}:", i) and not GOOD[i - 1].isalpha()]
    at = places[nth % len(places)]
    changed = key[: position % len(key)] + letter + key[position % len(key) + 1 :]
    assume(changed != key)
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "p.yaml").write_text(GOOD[:at] + changed + GOOD[at + len(key) :])
    try:
        pipeline = Pipeline.load(tmp_path / "p.yaml")
    except SpecError as error:
        refused = str(error)
    else:
        refused = ""
        assert pipeline == Pipeline.load(tmp_path / "good.yaml")
    assert refused.startswith(str(tmp_path)) or not refused


TRIED = """\
name: tried
data: {name: digits}
stages:
  - {stage: train, id: teacher, model: resnet, arguments: {blocks: [1], widths: [4]}, epochs: 0}
"""
EDITS = st.tuples(
    st.integers(0, len(TRIED)),
    st.integers(0, 12),
    st.text(max_size=6) | st.sampled_from([": ", "&a", "*a", "[", "{", "!!", "\n", "- ", "1e999", "-1", "null", "~"]),
)


def validate(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["validate", str(path)])
    err = capsys.readouterr().err
    assert code in {0, 1, 2}
    assert "Traceback" not in err
    assert "fault of compressor" not in err, err
    assert (code == 0) == (err == "")


@settings(LIMITS, max_examples=40)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | PLAIN.map(repr).map(str.encode))
@example(content=b"")
@example(content=b"stages: {}\ndata: 3")
def test_any_bytes_give_one_message(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.yaml").write_bytes(content)
    validate(tmp_path / "p.yaml", capsys)


@settings(LIMITS, max_examples=60)
@given(edit=EDITS)
def test_any_edit_gives_one_message(
    edit: tuple[int, int, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at, cut, put = edit
    (tmp_path / "p.yaml").write_text(TRIED[:at] + put + TRIED[at + cut :], encoding="utf-8")
    validate(tmp_path / "p.yaml", capsys)
