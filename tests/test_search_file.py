"""A search file: which pipelines it stands for, and what is said of one that is wrong."""

import math
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from compressor.errors import SpecError
from compressor.search.settings import Search
from compressor.search.space import Space, load
from stages import Distill

SEARCH = "search: {goal: {maximize: accuracy}, budget: {trials: 4}}"
REST = """
name: small
data: {name: digits}
stages:
  - {stage: train, id: teacher, model: resnet8, epochs: 1}
"""


def written(folder: Path, stages: str, search: str = SEARCH, rest: str = REST) -> Path:
    path = folder / "search.yaml"
    path.write_text(f"{search}{rest}{stages}\n")
    return path


def loaded(folder: Path, stages: str, *overrides: str) -> tuple[Search, Space]:
    return load(written(folder, stages), overrides)


STUDENT = """  - stage: distill
    model: resnet8
    teacher: teacher
    epochs: {choose: [1, 2, 3]}
    learning_rate: {low: 0.01, high: 0.1, log: true}
    batch_size: {low: 16, high: 64}
    cache: {choose: [{views: 1}, null]}
"""


def test_ranges_stand_in_place_of_values(tmp_path: Path) -> None:
    _, space = loaded(tmp_path, STUDENT)
    assert [each.name for each in space.ranges] == [
        "stages.distill.epochs",
        "stages.distill.learning_rate",
        "stages.distill.batch_size",
        "stages.distill.cache",
    ]
    epochs, rate, batch, cache = (each.distribution for each in space.ranges)
    assert epochs == CategoricalDistribution(["1", "2", "3"])
    assert rate == FloatDistribution(0.01, 0.1, log=True)
    assert batch == IntDistribution(16, 64)
    assert cache == CategoricalDistribution(['{"views": 1}', "null"])
    assert space.size == math.inf
    values = dict(zip([each.name for each in space.ranges], [2, 0.05, 32, {"views": 1}], strict=True))
    student = space.pipeline(values).stages[1]
    assert isinstance(student, Distill)
    assert (student.epochs, student.learning_rate, student.batch_size) == (2, 0.05, 32)
    assert student.cache is not None
    assert student.cache.views == 1
    assert space.pipeline({**values, "stages.distill.cache": None}).stages[1].cache is None  # type: ignore[attr-defined]


def test_what_is_set_does_not_vary(tmp_path: Path) -> None:
    fixed = ("stages.distill.learning_rate=0.05", "stages.distill.cache=null")
    _, space = loaded(tmp_path, STUDENT, *fixed, "search.budget.trials=9")
    assert [each.name for each in space.ranges] == ["stages.distill.epochs", "stages.distill.batch_size"]
    assert space.size == 3 * 49


def test_a_sample_and_its_value(tmp_path: Path) -> None:
    _, space = loaded(tmp_path, STUDENT)
    epochs, rate, batch, cache = space.ranges
    assert (epochs.value_of("2"), rate.value_of(0.02), batch.value_of(20), cache.value_of("null")) == (
        2,
        0.02,
        20,
        None,
    )
    assert [
        each.sample_of(each.value_of(s)) for each, s in zip((epochs, rate, cache), ("3", 0.1, "null"), strict=True)
    ] == [
        "3",
        0.1,
        "null",
    ]


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        ("  - {stage: distill, model: resnet8, teacher: teacher, epochs: 1}", "nothing may vary"),
        ("  - {stage: prune, target: {macs: {low: 0.9, high: 0.5}}}", ":6:36: stages.prune.target.macs: low is 0.9 and high is 0.5"),
        ("  - {stage: prune, target: {macs: {low: 0, high: 0.5, log: true}}}", "with log it has to be above 0"),
        ("  - {stage: prune, target: {macs: {low: a, high: 0.5}}}", 'got "a"; expected a number'),
        ("  - {stage: prune, target: {macs: {low: true, high: 2}}}", "got true; expected a number"),
        ("  - {stage: prune, target: {macs: {low: 0.1, high: 0.5, log: 1}}}", "got 1; expected true or false"),
        ("  - {stage: prune, target: {macs: {low: 0.1, high: 0.5, step: 1}}}", ":6:57: stages.prune.target.macs: a range has `low`, `high` and `log`, and no `step`"),
        ("  - {stage: prune, target: {macs: {choose: [0.5], log: true}}}", "a range has `choose`, and no `log`"),
        ("  - {stage: prune, target: {macs: {choose: 0.5}}}", "expected a list of values"),
        ("  - {stage: prune, target: {macs: {choose: []}}}", "expected a list of values"),
        ("  - {stage: prune, target: {macs: {choose: [0.5, 0.5]}}}", "a value is listed twice"),
        ("  - {stage: prune, target: {macs: {choose: [0.5, -1]}}}", ":6:50: stages.1.target.macs: got -1"),
        ("  - {stage: prune, target: {macs: {low: 0.5, high: 2.5}}}", ":6:46: stages.1.target.macs: got 2.5"),
        ("  - {stage: prune, targets: {choose: [1]}}", "did you mean `target`?"),
        ("seed: {choose: [0, 1]}", "seed: may not vary"),
        ("license: {choose: [a, b]}", "license: may not vary"),
        ("  - {stage: train, id: b, epochs: {choose: [1, 2]}}\nseeds: [0, 1]", "every trial runs once"),
        ("  - {stage: prune, target: {macs: {low: 0.1, high: 1e308}}}", "expected a number between"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, stages: str, problem: str) -> None:
    with pytest.raises(SpecError) as error:
        loaded(tmp_path, stages)
    assert problem in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("search", "problem"),
    [
        ("", "has no `search:`"),
        ("search: {budget: {trials: 1}}", "search.goal: is missing"),
        ("search: {goal: {maximize: accuracy}}", "search.budget: is missing"),
        ("search: {goal: {maximize: accuracy}, budget: {}}", "a budget needs trials, hours or both"),
        ("search: {goal: {maximize: accuracy}, budget: {trials: 0}}", ":1:47: search.budget.trials: got 0"),
        ("search: {goal: {minimize: latency}, budget: {trials: 1}}", "a goal has either"),
        ("search: {goal: {maximize: accuracy, max_drop: 1}, budget: {trials: 1}}", "a goal has either"),
        (
            "search: {goal: {maximize: accuracy, confidence: 0.9}, budget: {trials: 1}}",
            "confidence belongs to max_drop",
        ),
        ("search: {goal: {max_drop: 1, confidence: 1}, budget: {trials: 1}}", "expected a number below 1"),
        ("search: {goal: {maximize: accuracy}, budget: {trials: 1}, sampler: tpee}", "did you mean `tpe`?"),
        ("search: 3", "expected a mapping of settings"),
    ],
)
def test_what_is_wrong_with_the_goal_is_said(tmp_path: Path, search: str, problem: str) -> None:
    with pytest.raises(SpecError) as error:
        load(written(tmp_path, STUDENT, search))
    assert problem in str(error.value)


def test_a_contract_needs_a_baseline_before_what_ships(tmp_path: Path) -> None:
    rest = "\nname: small\ndata: {name: digits}\nstages:\n"
    stage = "  - {stage: train, model: resnet8, epochs: {choose: [1, 2]}}"
    with pytest.raises(SpecError, match="compares what ships with the baseline"):
        load(written(tmp_path, stage, "search: {goal: {max_drop: 1}, budget: {trials: 1}}", rest))
    load(written(tmp_path, stage, SEARCH, rest))


def test_what_a_baseline_depends_on_may_not_vary_in_a_contract(tmp_path: Path) -> None:
    contract = SEARCH.replace("maximize: accuracy", "max_drop: 1")
    load(written(tmp_path, STUDENT, contract))
    for rest in (
        REST.replace("epochs: 1", "epochs: {choose: [1, 2]}"),
        REST.replace("name: digits", "name: digits, size: {choose: [[8, 8], [16, 16]]}"),
    ):
        load(written(tmp_path, STUDENT, SEARCH, rest))
        with pytest.raises(SpecError, match="may not vary in a contract, since the baseline depends on it"):
            load(written(tmp_path, STUDENT, contract, rest))
    with pytest.raises(SpecError, match=r"data\.validation: may not vary"):
        load(written(tmp_path, STUDENT, SEARCH, REST.replace("digits}", "digits, validation: {low: 100, high: 200}}")))


def test_settings_that_go_together_may_vary_together(tmp_path: Path) -> None:
    stage = """  - stage: train
    id: more
    epochs: 30
    schedule: {choose: [multi_step, cosine]}
    milestones: {choose: [[], [10]]}
"""
    assert loaded(tmp_path, stage)[1].example.stages[1].milestones == (10,)  # type: ignore[attr-defined]


def test_a_value_that_fails_with_others_only_is_no_error_of_the_file(tmp_path: Path) -> None:
    """Values are checked one by one; what does not go together is a trial that fails."""
    stage = "  - {stage: train, id: more, epochs: 1, schedule: {choose: [cosine, one_cycle]}, warmup_epochs: {choose: [0, 1]}}"
    _, space = loaded(tmp_path, stage)
    values: dict[str, Any] = {"stages.more.schedule": "one_cycle", "stages.more.warmup_epochs": 1}
    with pytest.raises(SpecError, match="one_cycle has its own warm-up"):
        space.pipeline(values)
