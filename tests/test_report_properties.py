"""Whatever its figures and names, a report is written, or refused in one sentence."""

import copy
import html
import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt  # rich depends on it

from compressor import Context, Data, Measure, Pipeline, TorchModel, run
from compressor.data.preprocess import Preprocess
from compressor.environment import environment
from compressor.errors import ArtifactError, StageError
from compressor.evaluation.accuracy import Accuracy, ClassScore, Paired, Predictions
from compressor.evaluation.latency import Latency, NotMeasured, Setting, latency_of
from compressor.evaluation.recording import compare
from compressor.evaluation.regressions import Corrupted, Flip, Regressions
from compressor.pipeline.stage import discover
from compressor.report.report import DataFacts, OverSeeds, Report, Row, Spread
from compressor.report.tables import to_markdown, to_table
from compressor.report.wording import headline, remarks, verdict
from compressor.report.writing import to_card, write
from stages import Train

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
SETTING = Setting(engine="onnxruntime", device="cpu", threads=1, batch=1)
TORCH = Setting(engine="torch", device="cpu", threads=1, batch=1)
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
HOSTILE = "<img src=x onerror=alert(1)> | `a` [b](c) *d*\n# \x1b[31m\u202e $\\e$"
SHOWN = r"<img src=x onerror=alert(1)> | `a` [b](c) *d*\n# \x1b[31m\u202e $\e$"
ABSENT = "absent"
ODD = (ABSENT, -1, 10**400, math.nan)
ODDER = (*ODD, None, 0, 1, 1e300, 1e-300, -1e300, 5e-324, math.inf, -math.inf)


def timed(setting: Setting, speedup: float) -> Latency:
    return Latency(
        **setting.model_dump(),
        median_ms=2 / speedup,
        p95_ms=3 / speedup,
        runs=120,
        speedup=speedup,
        speedup_low=0.9 * speedup,
        speedup_high=1.1 * speedup,
        warmup_runs=20,
        steady=False,
        other_load=0.1,
        on_cpu=("Conv x 3",),
        moments=(speedup, speedup, 1.05 * speedup),
    )


def row(name: str, correct: int, size: int, speedup: float, details: dict[str, Any], **more: Any) -> Row:
    return Row(
        id=name,
        stage="train",
        artifact=f"stages/{name}",
        seconds=12.5,
        accuracy=Accuracy.of(correct, 100, split="test"),
        calibration_error=0.1,
        parameters=50 * size,
        nonzero_parameters=40 * size,
        macs=1000 * size,
        size_bytes=200 * size,
        sha256="ab" * 32,
        details=details,
        key="k",
        scored_on="t",
        latency=(timed(SETTING, speedup), NotMeasured(**TORCH.model_dump(), reason="no")),
        versus_baseline=Paired.of(90 - correct, 0, 100),
        **more,
    )


def small() -> Report:
    """A report with everything that one can hold, made by hand."""
    curve = [{"epoch": n, "loss": 1 / n, "validation_accuracy": n / 4, "learning_rate": 0.1} for n in (1, 2)]
    scores = tuple(ClassScore(images=n, precision=0.9, recall=0.8, f1=0.85) for n in (30, 70))
    flips = [Flip(image=n, label=0, baseline=n, shipped=1 - n, confidence=0.7, png=PIXEL) for n in (0, 1)]
    accuracy = Accuracy.of(5, 10, split="test, corrupted")
    agreement = {"images": 50, "same_top1": 49, "mean_logit_difference": 0.1, "largest_logit_difference": 1.0}
    return Report(
        shown=PIXEL,
        pipeline="small",
        license="",
        spec="name: small\n",
        seed=0,
        seeds=(0, 1),
        digest="cd" * 32,
        baseline="teacher",
        shipped="int8",
        labels=("zero", "one"),
        preprocess=Preprocess(size=(8, 8), channels=1, mean=(0.5,), std=(0.25,)),
        data=DataFacts(name="digits", train=100, validation=50, test=100, fingerprint="ef" * 32),
        environment=environment(),
        rows=(
            row("teacher", 90, 40, 1.0, {"curve": curve, "kept_epoch": 2, "teacher_weights": [0.5, 0.5]}),
            row("pruned", 20, 20, 2.0, {"widths": {"conv1": [16, 8], "fc": [10, 10]}, "zeros": {"fc.weight": 0.5}}),
            row(
                "int8",
                88,
                10,
                4.0,
                {"signal_to_noise_db": {"input": 40.0, "relu": None}, "agreement": agreement},
                versus_float=(timed(SETTING, 0.5),),
            ),
        ),
        over_seeds=(
            OverSeeds(
                id="int8",
                accuracy=Spread(values=(0.8, 0.9), mean=0.85, deviation=0.07),
                size_bytes=Spread(values=(2000, 2000), mean=2000, deviation=0),
                speedup=Spread(values=(4, 5), mean=4.5, deviation=0.7),
            ),
        ),
        regressions=Regressions(
            baseline_classes=scores,
            shipped_classes=scores,
            confusion=((0, 0, 25), (0, 1, 5), (1, 1, 70)),
            newly_wrong=(flips[0],),
            newly_right=(flips[1],),
            corrupted=(Corrupted(corruption="blur", strength="mild", baseline=accuracy, shipped=accuracy),),
            key="k",
        ),
    )


CONTENT = small().to_json()


def numbers(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The place of every number."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(inner, (*at, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield at


PLACES = list(numbers(CONTENT))


def edited(changes: dict[tuple[str | int, ...], Any]) -> str:
    """The report as JSON with other numbers in some places."""
    content = copy.deepcopy(CONTENT)
    for place in sorted(changes, key=PLACES.index, reverse=True):  # of a list the last first, so that places stay
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        if changes[place] is ABSENT:
            del inner[place[-1]]
        else:
            inner[place[-1]] = changes[place]
    return json.dumps(content)


def loaded(text: str, folder: Path) -> Report | None:
    """The report, or None if it is refused in one sentence."""
    (folder / "report.json").write_text(text)
    try:
        return Report.load(folder)
    except ArtifactError as error:
        refusal = str(error)
    assert "\n" not in refusal
    return None


def said(report: Report) -> str:
    """All of it that is fast to write."""
    to_table(report)
    return "\n".join([to_markdown(report), to_card(report), headline(report), verdict(report), *remarks(report)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


def test_the_small_report_is_whole(folder: Path) -> None:
    report = loaded(edited({}), folder)
    assert report == small()
    write(report, folder)
    assert (folder / "report.html").read_text().count("<svg") == 6


def test_what_is_code_keeps_its_lines_in_the_page(folder: Path) -> None:
    spec = "name: small\n# <b>\x1b[31m\n"
    write(small().model_copy(update={"spec": spec}), folder)
    page = (folder / "report.html").read_text()
    assert '<pre class="long">name: small\n# &lt;b&gt;\\x1b[31m\n</pre>' in page
    assert page.partition("<pre>")[2].startswith("import numpy, onnxruntime\nsession = ")


def test_any_one_number_may_be_odd(folder: Path) -> None:
    outcomes = {True: 0, False: 0}
    for place, value in itertools.product(PLACES, ODD):
        report = loaded(edited({place: value}), folder)
        outcomes[report is not None] += 1
        if report is not None:
            assert said(report)
            json.dumps(report.to_json(), allow_nan=False)
    assert min(outcomes.values()) > 80  # the test would be empty if all were refused, or all taken


@settings(deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.dictionaries(st.sampled_from(PLACES), st.sampled_from(ODDER), min_size=1, max_size=3))
def test_any_few_numbers_may_be_odd(folder: Path, changes: dict[tuple[str | int, ...], Any]) -> None:
    report = loaded(edited(changes), folder)
    if report is not None:
        write(report, folder)


@pytest.mark.parametrize("value", [None, 0, 1, 1e12, 2**62])
def test_plots_of_odd_numbers(folder: Path, value: float | None) -> None:
    """The same wherever it is allowed: all rows are equal, or nothing is known."""
    changes: dict[tuple[str | int, ...], Any] = {}
    for place in PLACES:
        if loaded(edited({**changes, place: value}), folder) is not None:
            changes[place] = value
    report = loaded(edited(changes), folder)
    assert report is not None
    write(report, folder)


def test_lists_may_be_empty(folder: Path) -> None:
    content = copy.deepcopy(CONTENT)
    for each in content["rows"]:
        each["details"] = {
            key: type(value)() for key, value in each["details"].items() if isinstance(value, dict | list)
        }
        each["details"].pop("agreement", None)
        each["latency"] = each["versus_float"] = []
    content["seeds"] = content["over_seeds"] = []
    content["harm"] |= {"confusion": [], "newly_wrong": [], "newly_right": [], "corrupted": []}
    report = loaded(json.dumps(content), folder)
    assert report is not None
    write(report, folder)
    assert said(report)


def test_details_keep_what_no_report_reads_and_lose_what_is_not_finite() -> None:
    made = row(
        "other", 90, 10, 1.0, {"note": ["mine", math.inf], "curve": [{"epoch": 1, "loss": math.nan, "rate": 0.5}]}
    )
    assert made.details == {"note": ["mine", None], "curve": [{"epoch": 1, "loss": None, "rate": 0.5}]}


@pytest.mark.parametrize(
    "path", sorted(RESULTS.rglob("report.json")), ids=lambda path: str(path.parent.relative_to(RESULTS))
)
def test_committed_results_are_loaded_and_written(path: Path, tmp_path: Path) -> None:
    write(Report.load(path.parent), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["rows"]


def named(report: Report, name: str) -> Report:
    """The report with another name wherever one comes from elsewhere; ids are plain, or refused."""
    points = {"signal_to_noise_db": {name: 20.0}}
    rows = tuple(
        each.model_copy(
            update={"stage": name, "sha256": name, "details": {**each.details, "widths": {name: [2, 1]}, **points}}
        )
        for each in report.rows
    )
    corrupted = tuple(
        each.model_copy(update={"corruption": name, "strength": name}) for each in report.regressions.corrupted
    )
    update = {
        "license": name,
        "labels": (name, name),
        "data": report.data.model_copy(update={"name": name}),
        "environment": report.environment.model_copy(update={"cpu": name, "gpu": name, "commit": name}),
        "rows": rows,
        "regressions": report.regressions.model_copy(update={"corrupted": corrupted}),
    }
    return report.model_copy(update=update)


def test_names_from_elsewhere_are_text_in_markdown(tmp_path: Path) -> None:
    plain, hostile = tmp_path / "plain", tmp_path / "hostile"
    for folder, name in ((plain, "name"), (hostile, HOSTILE)):
        folder.mkdir()
        write(named(small(), name), folder)
    for file in ("report.md", "README.md"):
        text = (hostile / file).read_text().rpartition("\n---\n")[2]
        expected = (plain / file).read_text().rpartition("\n---\n")[2]
        assert "onerror" in text
        assert "<" not in text
        assert len(text.splitlines()) == len(expected.splitlines())
        bars = [[len(re.findall(r"(?<!\\)\|", line)) for line in each.splitlines()] for each in (text, expected)]
        assert bars[0] == bars[1]
        assert len(re.findall(r"(?<!\\)[`*\[]", text)) == len(re.findall(r"(?<!\\)[`*\[]", expected))


def test_names_from_elsewhere_are_text_as_rendered(tmp_path: Path) -> None:
    write(named(small(), HOSTILE), tmp_path)
    pages = [(tmp_path / "report.html").read_text()]
    for file in ("report.md", "README.md"):
        text = (tmp_path / file).read_text()
        pages.append(MarkdownIt("gfm-like", {"linkify": False}).render(text.rpartition("\n---\n")[2]))
    for page in pages:
        assert "<img src=x" not in page
        assert html.escape(SHOWN, quote=False) in page
        assert page.replace("\n", "").isprintable()


@pytest.mark.parametrize("place", [("pipeline",), ("rows", 0, "id"), ("over_seeds", 0, "id")])
@pytest.mark.parametrize("name", [HOSTILE, "a" * 65, "Teacher", ""])
def test_an_id_is_plain(folder: Path, place: tuple[str | int, ...], name: str) -> None:
    content = copy.deepcopy(CONTENT)
    inner: Any = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = name
    assert loaded(json.dumps(content), folder) is None


def clipped(details: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """A run whose last stage, of a third party, says this of its result."""

    def stage_run(self: Any, model: TorchModel, context: Context) -> TorchModel:
        return model.with_network(model.copy_network(), details=details)

    kind = discover()["clip"]
    monkeypatch.setattr(kind, "run", stage_run)
    teacher = Train(id="teacher", model="resnet", arguments={"blocks": [1], "widths": [4]}, epochs=0)
    stages = (teacher, kind(id="last", limit=1.0))
    pipeline = Pipeline(name="p", data=Data(name="digits"), stages=stages, measure=Measure(engines=()))
    return run(pipeline, out, device="cpu")


def test_figures_of_a_stage_that_are_not_finite_do_not_end_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = clipped(
        {
            "curve": [{"epoch": 1, "loss": math.inf, "validation_accuracy": math.nan}],
            "kept_epoch": 1,
            "signal_to_noise_db": {"input": math.inf},
            "teacher_weights": [math.nan, 1.0],
            "agreement": {"images": 5, "same_top1": 5, "mean_logit_difference": math.nan},
        },
        tmp_path,
        monkeypatch,
    )
    assert "last: the teachers' weights in the loss are ?, 1.000, in the order of the pipeline." in remarks(report)
    assert Report.load(tmp_path) == report
    assert "Training of last" in (tmp_path / "report.html").read_text()


def test_details_that_no_report_can_show_are_refused_at_their_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "stage 'last': a report cannot show what it says of its result: details.widths.fc: "
    with pytest.raises(StageError, match=message):
        clipped({"widths": {"fc": 10}}, tmp_path, monkeypatch)


def test_a_run_too_short_for_the_clock_has_a_finite_speed() -> None:
    candidate, baseline = (itertools.cycle([0.0] * 9 + [0.2]) for _ in range(2))
    entry = latency_of([compare(lambda: next(candidate), lambda: next(baseline), SETTING)])
    assert entry.speedup == 1
    assert entry.median_ms == pytest.approx(1e-6)


def test_logits_that_are_not_finite_are_refused_where_they_are_scored() -> None:
    predictions = Predictions(np.array([0, 1, 1]), np.array([0.5, np.nan, np.nan], np.float32), np.array([0, 1, 0]))
    with pytest.raises(StageError, match="no finite logits on 2 of 3 images"):
        predictions.calibration_error()
