"""The report of a run: the page in a real browser, the card, and sentences that the intervals support."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from PIL import ExifTags, Image
from playwright.sync_api import Browser, sync_playwright
from pydantic import ValidationError

from compressor.evaluation.accuracy import Accuracy, Paired
from compressor.evaluation.doctor.reasons import Finding
from compressor.evaluation.latency import Latency
from compressor.report.page import to_html
from compressor.report.report import Report, Row
from compressor.report.snippets import EXAMPLE
from compressor.report.tables import to_markdown
from compressor.report.tradeoff import far_below, tradeoff
from compressor.report.wording import change, remarks, slowness, verdict
from compressor.report.writing import WRITTEN, write
from tests.conftest import IDS

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        assert "COMPRESSOR_NEEDS_CHROMIUM" not in os.environ, "Chromium is not installed"
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def report(finished: Path) -> Report:
    return Report.load(finished)


@pytest.mark.parametrize(("width", "scheme"), [(1180, "light"), (1180, "dark"), (360, "light")])
def test_the_page_in_a_browser(finished: Path, browser: Browser, width: int, scheme: Any) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    address = (finished / "report.html").as_uri()
    page.goto(address)
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert page.inner_text("h1") == verdict(Report.load(finished))
    assert page.locator(".tiles .figure").count() == 4
    assert page.locator("section").first.locator("tbody tr").count() == len(IDS)
    plots = page.locator("svg[role=img]")
    assert plots.count() == 3 + 1 + 1 + 4  # overview, widths, int8 error, trainings
    assert (
        page.locator("img.shown").evaluate("image => image.naturalWidth") == 8
    )  # digits, whose only view is themselves
    for index in range(plots.count()):
        box = plots.nth(index).bounding_box()
        assert box is not None
        assert box["width"] > 100
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    lightness = [sum(int(part) for part in re.findall(r"\d+", colour)[:3]) for colour in (ink, paper)]
    assert (lightness[0] > lightness[1]) == (scheme == "dark")
    page.close()


@pytest.mark.parametrize(("name", "stages"), [("digits-resnet", 6), ("cifar10-blocks", 7), ("cifar10-jpeg", 4)])
def test_the_table_of_stages_fits_a_laptop(name: str, stages: int, tmp_path: Path, browser: Browser) -> None:
    write(Report.load(RESULTS / name), tmp_path)
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto((tmp_path / "report.html").as_uri())
    scroll = page.locator(".scroll", has=page.locator("table.stages"))
    assert scroll.locator("tbody tr").count() == stages
    assert scroll.evaluate("each => each.scrollWidth <= each.clientWidth")
    page.close()


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ({"teacher": 9000, "pruned": 4350, "recovered": 8900, "shipped": 8950}, {"pruned"}),
        ({"teacher": 9000, "pruned": 8960, "recovered": 8900, "shipped": 8950}, set()),
        ({"teacher": 9000, "pruned": 4350, "recovered": 8900, "shipped": 5200}, set()),
        ({"teacher": 9000, "pruned": 1000, "recovered": 8900, "shipped": 5200}, {"pruned"}),
        ({"teacher": 9000, "shipped": 1000}, set()),
        ({"teacher": 9000, "pruned": 9900, "shipped": 8950}, set()),
    ],
)
def test_which_stages_are_far_below_those_compared(
    report: Report, accuracies: dict[str, int], expected: set[str]
) -> None:
    rows = [
        report.row(name).model_copy(update={"accuracy": Accuracy.of(correct, 10_000, split="test")})
        for name, correct in accuracies.items()
    ]
    assert far_below(rows, {"teacher", "shipped"}) == expected


def test_a_stage_far_below_is_an_arrow_with_its_accuracy(report: Report) -> None:
    assert report.headline_setting is not None
    for correct, expected in ((0, ["3 ↓ 0.0%"]), (report.shipped_row.accuracy.correct, [])):
        accuracy = Accuracy.of(correct, 359, split="test")
        rows = tuple(
            row.model_copy(update={"accuracy": accuracy}) if row.id == "pruned" else row for row in report.rows
        )
        drawn = tradeoff(report.model_copy(update={"rows": rows}), report.headline_setting)
        assert re.findall(r">([^<>]*↓[^<>]*)</text>", drawn) == expected
        ticks = [float(number) for number in re.findall(r">(\d+(?:\.\d+)?)</text>", drawn)]
        assert sum(50 < tick < 101 for tick in ticks) >= 4  # of the accuracy axis


def test_the_page_printed(finished: Path, browser: Browser) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto((finished / "report.html").as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


def test_the_page_is_written_again_from_the_json_alone(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "report.json", tmp_path)
    write(Report.load(tmp_path), tmp_path)
    for name in WRITTEN:
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes(), name


def test_words_from_elsewhere_are_text_and_not_code(report: Report, tmp_path: Path, browser: Browser) -> None:
    labels = ("<script>document.title='owned'</script>", *report.labels[1:])
    write(report.model_copy(update={"labels": labels}), tmp_path)
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert "owned" not in page.title()
    assert labels[0] in page.inner_text("body")
    page.close()


def test_a_run_of_many_classes_and_no_timing_has_a_page(report: Report, tmp_path: Path) -> None:
    regressions = report.regressions
    many = {
        "baseline_classes": regressions.baseline_classes * 10,
        "shipped_classes": regressions.shipped_classes * 10,
        "confusion": (*regressions.confusion, (1, 99, 7)),
    }
    rows = tuple(row.model_copy(update={"latency": ()}) for row in report.rows)
    labels = tuple(f"class {number}" for number in range(100))
    write(
        report.model_copy(update={"labels": labels, "regressions": regressions.model_copy(update=many), "rows": rows}),
        tmp_path,
    )
    page = (tmp_path / "report.html").read_text()
    assert "Most frequent confusions" in page
    assert "not timed in ONNX Runtime" in page


@pytest.mark.parametrize(
    ("lost", "won", "size", "speedup", "expected"),
    [
        (10, 9, 10, (0.48, 0.5, 0.52), "Worth it: 10x smaller, though 2x slower; on 1,000 test images not"),
        (10, 9, 10, (3.9, 4, 4.1), "Worth it: 4x faster and 10x smaller; on 1,000 test images not distinguishable"),
        (90, 20, 10, (3.9, 4, 4.1), "A trade: 4x faster and 10x smaller, for 5 to 9 points of accuracy."),
        (10, 9, 10, (0.9, 4, 7.1), "Worth it: 10x smaller; on"),
        (10, 9, 1, (0.9, 4, 7.1), "Not worth it: neither faster nor smaller than teacher"),
        (9, 40, 1, (3.9, 4, 4.1), "Worth it: 4x faster; on 1,000 test images better by"),
    ],
)
def test_is_it_worth_it(
    report: Report, lost: int, won: int, size: float, speedup: tuple[float, float, float], expected: str
) -> None:
    timed = report.shipped_row.timed[report.settings[-1]]
    low, middle, high = speedup
    update = {
        "versus_baseline": Paired.of(lost, won, 1000),
        "size_bytes": report.baseline_row.size_bytes // size,
        "latency": (timed.model_copy(update={"speedup": middle, "speedup_low": low, "speedup_high": high}),),
    }
    rows = (*report.rows[:-1], report.shipped_row.model_copy(update=update))
    assert verdict(report.model_copy(update={"rows": rows})).startswith(expected)


@pytest.mark.parametrize(
    ("teacher", "shipped", "expected"),
    [
        (
            65,
            90,
            "No verdict: teacher itself is not distinguishable from predicting 'class 1' for every image: 65.00% correct, against",
        ),
        (
            90,
            65,
            "Not worth it: shipped is not distinguishable from predicting 'class 1' for every image: 65.00% correct, against 60.00%.",
        ),
        (
            90,
            20,
            "Not worth it: shipped is worse than predicting 'class 1' for every image: 20.00% correct, against 60.00%.",
        ),
        (90, 90, "A trade: "),
    ],
)
def test_a_network_that_predicts_one_class_is_not_worth_it(
    report: Report, teacher: int, shipped: int, expected: str
) -> None:
    scores = [
        score.model_copy(update={"images": n})
        for score, n in zip(report.regressions.baseline_classes[:3], (20, 60, 20), strict=True)
    ]
    accuracies = {report.baseline: teacher, report.shipped: shipped}
    rows = tuple(
        row.model_copy(update={"accuracy": Accuracy.of(accuracies.get(row.id, 90), 100, split="test")})
        for row in report.rows
    )
    update = {
        "rows": rows,
        "labels": ("class 0", "class 1", "class 2"),
        "regressions": report.regressions.model_copy(update={"baseline_classes": tuple(scores)}),
    }
    assert verdict(report.model_copy(update=update)).startswith(expected)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(1869.7, 103.2, "18.1x smaller"), (100, 100, "the same"), (100, 100.4, "the same"), (100, 150, "1.5x larger")],
)
def test_how_a_size_changed(before: float, after: float, expected: str) -> None:
    assert change(before, after, "smaller", "larger") == expected


def test_latency_that_had_not_settled_is_reported_once_per_setting(report: Report) -> None:
    def timed(row: Row) -> Row:
        steady = row.id not in ("teacher", "recovered")
        latency = [
            entry.model_copy(update={"steady": steady or entry.engine == "torch"})
            for entry in row.latency
            if isinstance(entry, Latency)
        ]
        return row.model_copy(update={"latency": tuple(latency)})

    said = remarks(report.model_copy(update={"rows": tuple(timed(row) for row in report.rows)}))
    assert [remark for remark in said if "settled" in remark] == [
        "ONNX Runtime, 1 thread, batch 1: latency had not settled when it was timed, so trust it less (teacher, recovered)."
    ]


def test_timing_that_was_hardly_ever_quiet_is_reported(report: Report) -> None:
    changes = {"teacher": {"quiet": 0.0}, "int8": {"sessions": (2.0,)}, "shipped": {"quiet": None, "sessions": ()}}
    rows = []
    for row in report.rows:
        latency = [entry for entry in row.latency if isinstance(entry, Latency) and entry.engine == "onnxruntime"]
        quiet = {"quiet": 0.5, "sessions": (2.0, 2.1)} | changes.get(row.id, {})
        rows.append(row.model_copy(update={"latency": tuple(entry.model_copy(update=quiet) for entry in latency)}))
    said = remarks(report.model_copy(update={"rows": tuple(rows)}))
    assert [remark for remark in said if "quiet" in remark] == [
        "ONNX Runtime, 1 thread, batch 1: the machine was hardly ever quiet, so trust it less (teacher, int8)."
    ]


def test_the_doctor_in_a_sentence(report: Report) -> None:
    assert report.doctor is not None
    threads = Finding(what="threads beyond the cores", microseconds=9, share=0.9, measured="", advice="")
    found = report.doctor.model_copy(update={"microseconds": 1234.5, "findings": (threads,)})
    assert slowness(found) == "1,234 µs an image on one thread; nothing in the file that was looked for costs time"
    finding = Finding(what="rounding", microseconds=30, share=0.3, measured="", advice="")
    found = found.model_copy(update={"fixed_batch": 8, "findings": (finding,)})
    assert slowness(found) == "1,234 µs for 8 images on one thread; what costs most is rounding (30%)"


def test_an_earlier_doctors_page_does_not_stay(report: Report, tmp_path: Path) -> None:
    write(report, tmp_path)
    assert (tmp_path / "doctor.html").is_file()
    write(report.model_copy(update={"doctor": None}), tmp_path)
    assert not (tmp_path / "doctor.html").exists()
    assert "doctor.html" not in (tmp_path / "report.html").read_text()


def test_flips_are_counted_image_by_image(report: Report) -> None:
    regressions, shipped = report.regressions, report.shipped_row
    paired = shipped.versus_baseline
    assert paired is not None
    assert (len(regressions.newly_wrong), len(regressions.newly_right)) == (min(paired.lost, 24), min(paired.won, 24))
    assert all(flip.baseline == flip.label != flip.shipped for flip in regressions.newly_wrong)
    assert all(flip.shipped == flip.label != flip.baseline for flip in regressions.newly_right)
    correct = sum(count for label, prediction, count in regressions.confusion if label == prediction)
    assert correct == shipped.accuracy.correct
    assert sum(count for *_, count in regressions.confusion) == shipped.accuracy.total == 359
    assert len(regressions.corrupted) == 8
    assert sum(each.images for each in regressions.shipped_classes) == 359


def test_int8_error_is_reported_for_every_layer(report: Report) -> None:
    ratios = report.row("int8").details["signal_to_noise_db"]
    assert len(ratios) > 8
    assert all(5 < ratio < 100 for ratio in ratios.values())
    assert ratios["input"] == max(ratios.values())  # nothing was rounded before it


def test_what_stays_in_float_is_reported(report: Report) -> None:
    assert not [remark for remark in remarks(report) if "in float" in remark]
    row = report.row("int8")
    partly = row.model_copy(update={"details": {**row.details, "float_layers": {"up (conv_transpose2d)": 0.25}}})
    rows = tuple(partly if row.id == "int8" else row for row in report.rows)
    assert "int8 leaves in float: up (conv_transpose2d) 25.0% of the MACs." in remarks(
        report.model_copy(update={"rows": rows})
    )
    for placement, judged, words in (
        (None, 0, ["was faster on the machine that tried them."]),
        (None, 100, ["that was faster held its accuracy; mode: qat trains what rounding costs."]),
        ("wide", 100, []),
    ):
        details = {"placement": {"placement": placement, "skip": [], "judged": judged}}
        said = remarks(report.model_copy(update={"rows": (row.model_copy(update={"details": details}),)}))
        stays = "int8 stays in float: with integers no placement "
        assert [remark.removeprefix(stays) for remark in said if stays in remark] == words


def test_the_model_card_is_what_a_hub_reads(finished: Path, report: Report) -> None:
    _, front, text = (finished / "README.md").read_text().split("---\n", 2)
    said = yaml.safe_load(front)
    assert said["pipeline_tag"] == "image-classification"
    assert said["license"] == "unknown"
    metric = said["model-index"][0]["results"][0]["metrics"][0]
    assert metric == {"type": "accuracy", "value": pytest.approx(report.shipped_row.accuracy.value, abs=1e-4)}
    assert report.shipped_row.sha256 in text
    assert "not stated" in text


def test_the_model_card_says_int8_of_what_was_quantized(report: Report, tmp_path: Path) -> None:
    floats = [row.model_copy(update={"details": {}}) for row in report.rows]
    for rows, expected in ((report.rows, True), (floats, False)):
        write(report.model_copy(update={"rows": tuple(rows)}), tmp_path)
        front = (tmp_path / "README.md").read_text().split("---\n", 2)[1]
        assert ("int8" in yaml.safe_load(front)["tags"]) == expected


def test_the_licence_is_given_as_it_was_given(report: Report, tmp_path: Path) -> None:
    write(report.model_copy(update={"license": 'cc: "by"'}), tmp_path)
    front = (tmp_path / "README.md").read_text().split("---\n", 2)[1]
    assert yaml.safe_load(front)["license"] == 'cc: "by"'


def test_the_lines_that_are_printed_run(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "model.onnx", tmp_path)
    printed = re.search(r"```python\n(.*?)```", (finished / "README.md").read_text(), re.DOTALL)
    assert printed is not None
    assert len(printed[1].splitlines()) == 5
    assert re.fullmatch(r"\[\d\]\n", output(printed[1], tmp_path))


@pytest.mark.parametrize("how", [{}, {"resize": 12, "interpolation": "bicubic"}])
def test_the_example_says_what_predict_says(finished: Path, tmp_path: Path, how: dict[str, object]) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert EXAMPLE in readme
    model = onnx.load(finished / "model.onnx")
    entry = next(entry for entry in model.metadata_props if entry.key == "compressor.preprocess")
    entry.value = json.dumps({**json.loads(entry.value), **how})
    onnx.save(model, tmp_path / "model.onnx")
    pixels = Image.effect_mandelbrot((19, 23), (-2, -1.5, 1, 1.5), 90).convert("RGB")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    pixels.save(tmp_path / "photo.png", exif=turned)
    label, share = output(EXAMPLE, tmp_path).split()
    command = [sys.executable, "-m", "compressor_command", "predict", "model.onnx", "photo.png", "--top", "1"]
    predicted = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert predicted.stdout == f"photo.png\t{label} {float(share):.4f}\n"


def output(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_report_whose_rows_are_not_there_is_refused(finished: Path, tmp_path: Path) -> None:
    content = json.loads((finished / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**content, "baseline": "nobody"}))
    with pytest.raises(Exception, match="there is no row 'nobody'"):
        Report.load(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps({**content, "doctor": {**content["doctor"], "sha256": "0" * 64}}))
    with pytest.raises(Exception, match="what its doctor looked at is not the file that ships"):
        Report.load(tmp_path)


LADDER = {
    "max_drop": 0.5,
    "images": 200,
    "correct_in_float": 190,
    "kept": "rounded by AdaRound",
    "rungs": [
        {"name": "calibrated", "correct": 150, "seconds": 3.4, "speedup": 2.5},
        {"name": "rounded by AdaRound", "correct": 189, "seconds": 20.0, "speedup": 2.5},
        {"name": "1 layer in float", "correct": 180, "seconds": 1.0, "speedup": None},
    ],
}


def with_ladder(report: Report, **changes: object) -> Report:
    content = report.to_json()
    (row,) = (row for row in content["rows"] if row["id"] == "int8")
    row["details"] |= {"ladder": {**LADDER, **changes}}
    return Report.model_validate(content)


def test_what_was_tried_to_keep_the_accuracy_is_shown(report: Report) -> None:
    tried = with_ladder(report)
    assert (
        "int8: int8 may cost 0.5 points on the 200 validation images; the network that ships (rounded by AdaRound) is "
        "-0.50 points from float." in remarks(tried)
    )
    lines = to_markdown(tried).splitlines()
    at = lines.index("## What int8 tried")
    assert lines[at + 2 : at + 8] == [
        "| int8 | validation accuracy | points from float | took | against the float file |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| in float | 95.00% |  |  | 1.00x |",
        "| calibrated | 75.00% | -20.00 | 3 s | 2.50x |",
        "| rounded by AdaRound, kept | 94.50% | -0.50 | 20 s | 2.50x |",
        "| 1 layer in float | 90.00% | -5.00 | 1 s | — |",
    ]
    page = to_html(tried)
    assert "<h2>What int8 tried</h2>" in page
    assert "rounded by AdaRound, kept" in page
    assert "What int8 tried" not in to_html(report) + to_markdown(report)
    stays = with_ladder(report, kept=None)
    assert any("no network on integers holds that, so it stays in float" in remark for remark in remarks(stays))


@pytest.mark.parametrize("changes", [{"kept": "prayer"}, {"correct_in_float": 201}, {"rungs": []}, {"max_drop": "x"}])
def test_a_ladder_that_contradicts_itself_is_refused(report: Report, changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        with_ladder(report, **changes)
