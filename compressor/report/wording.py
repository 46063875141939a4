"""The sentences of a report: what was gained and lost, as far as the intervals support it."""

from collections.abc import Iterator, Mapping
from typing import Any

from compressor.data.preprocess import Preprocess
from compressor.environment import Environment
from compressor.evaluation.accuracy import Accuracy, Paired
from compressor.evaluation.doctor.diagnosis import Diagnosis
from compressor.evaluation.doctor.reasons import THREADS
from compressor.evaluation.engines.base import title_of
from compressor.evaluation.latency import Latency
from compressor.evaluation.setting import Setting
from compressor.quantization.float_layers import in_float
from compressor.report.report import OverSeeds, Report, Row

MIN_CHANGE = 1.005  # a smaller factor counts as the same
MIN_GAIN = 1.05  # times smaller
ONE_SIZE = 1.1  # the largest class over the smallest, at most, where both accuracies say the same
UNKNOWN = "?"


def verdict(report: Report) -> str:
    """Whether the shipped network is worth it, in one sentence."""
    base, shipped = report.baseline_row, report.shipped_row
    if base.id == shipped.id:
        return f"Nothing to compare: {base.id} is both the baseline and the shipped stage."
    if guessing := _guessing(report, base):
        return f"No verdict: {base.id} itself {guessing}."
    if guessing := _guessing(report, shipped):
        return f"Not worth it: {shipped.id} {guessing}."
    gains = [gain for gain in (_faster(report), _smaller(base, shipped)) if gain]
    paired = shipped.versus_baseline
    assert paired is not None
    compared = f"on {paired.total:,} test images {difference(paired, base.id)}"
    if not gains:
        return f"Not worth it: neither faster nor smaller than {base.id}; {compared}."
    gained = " and ".join(gains)
    if slower := _slower(report):
        gained += f", though {slower}"
    if paired.high < 0:
        return f"A trade: {gained}, for {_points(-paired.high)} to {_points(-paired.low)} points of accuracy."
    return f"Worth it: {gained}; {compared}."


def headline(report: Report) -> str:
    """What was gained and lost, in figures."""
    base, shipped = report.baseline_row, report.shipped_row
    words = [
        f"{shipped.id} against {base.id}: accuracy {percent(base.accuracy)} -> {percent(shipped.accuracy)} "
        f"({100 * (shipped.accuracy.value - base.accuracy.value):+.2f} points on {shipped.accuracy.total} test images)",
        f"{base.size_bytes / 1e3:.1f} kB -> {shipped.size_bytes / 1e3:.1f} kB "
        f"({change(base.size_bytes, shipped.size_bytes, 'smaller', 'larger')})",
    ]
    if (entry := _shipped_latency(report)) is not None:
        words.append(f"speed {speedup(entry)} in {setting_name(entry)}")
    if repeated := over_seeds(report):
        return f"{', '.join(words)}; mean accuracy {repeated}."
    return ", ".join(words) + "."


def over_seeds(report: Report) -> str:
    """The accuracy of what ships over all seeds; empty for one seed."""
    for each in report.over_seeds:
        if each.id == report.shipped:
            return f"over {len(each.accuracy.values)} seeds {accuracy_spread(each)}"
    return ""


def accuracy_spread(row: OverSeeds) -> str:
    """Mean ± standard deviation of a stage's accuracy over the seeds."""
    return f"{100 * row.accuracy.mean:.2f}% ± {100 * row.accuracy.deviation:.2f}"


def difference(paired: Paired, baseline: str) -> str:
    """How a network's accuracy differs from the baseline's on the same images."""
    if not paired.lost + paired.won:
        return f"correct on the same images as {baseline}"
    if paired.high < 0:
        return f"worse by {_points(-paired.high)} to {_points(-paired.low)} points"
    if paired.low > 0:
        return f"better by {_points(paired.low)} to {_points(paired.high)} points"
    return f"not distinguishable from {baseline} ({_points(-paired.low)} points worse to {_points(paired.high)} better)"


def in_short(paired: Paired) -> str:
    """`difference` in a word or two."""
    if not paired.lost + paired.won:
        return "no flips"
    return "worse" if paired.high < 0 else "better" if paired.low > 0 else "not distinguishable"


def speed(entry: Latency) -> str:
    """How a network's speed differs from the baseline's: `faster` only if the whole interval is above 1."""
    if entry.speedup_low > 1:
        return f"{times(entry.speedup)} faster ({entry.speedup_low:.2f} to {entry.speedup_high:.2f})"
    if entry.speedup_high < 1:
        return f"{times(1 / entry.speedup)} slower ({1 / entry.speedup_high:.2f} to {1 / entry.speedup_low:.2f})"
    return f"neither faster nor slower ({entry.speedup_low:.2f}x to {entry.speedup_high:.2f}x)"


def remarks(report: Report) -> list[str]:
    """What a reader should know about the rows."""
    previous = (None, *report.rows)
    of_rows = [remark for row, before in zip(report.rows, previous, strict=False) for remark in _remarks(row, before)]
    return [*of_rows, *_untimed(report), *_unsettled(report), *_disturbed(report)]


def _untimed(report: Report) -> Iterator[str]:
    """Engines that were asked for, and in which no file was timed on any device."""
    entries = [entry for row in report.rows for entry in row.latency]
    timed = {entry.engine for entry in entries if isinstance(entry, Latency)}
    reasons: dict[str, dict[str, None]] = {}
    for entry in entries:
        if not isinstance(entry, Latency) and entry.engine not in timed:
            reasons.setdefault(entry.engine, {})[entry.reason] = None
    yield from (f"Not timed in {title_of(engine)}: {'; '.join(each)}." for engine, each in reasons.items())


def _remarks(row: Row, before: Row | None) -> Iterator[str]:
    for entry in row.versus_float:
        where = f"{threads(entry)}, batch {entry.batch}"
        interval = f"{entry.speedup:.2f}x, {entry.speedup_low:.2f} to {entry.speedup_high:.2f}"
        faster = "is faster" if entry.speedup_low > 1 else "is not faster"
        yield f"Int8 {faster} than the same network's float ONNX on this machine ({row.id}, {where}: {interval})."
    if before is not None and any(entry.speedup_high < 1 for entry in row.versus_float):
        yield f"Where speed counts more than size, {before.artifact}/model.onnx is the file to take."
    ladder = row.details.get("ladder")
    if row.details.get("curve") and row.details.get("kept_epoch") == 0 and not ladder:
        yield f"{row.id}: no epoch of training beat the initial network on validation, so that was kept."
    if len(weights := row.details.get("teacher_weights", [])) > 1:
        shares = ", ".join(UNKNOWN if weight is None else f"{weight:.3f}" for weight in weights)
        yield f"{row.id}: the teachers' weights in the loss are {shares}, in the order of the pipeline."
    if words := in_float(row.details.get("float_layers", {}), row.details.get("float_batch_norms", 0)):
        yield f"{row.id} leaves in float: {words}."
    if target := row.details.get("latency_target"):
        yield f"{row.id}: {_latency_reached(target)}."
    if ladder:
        yield f"{row.id}: {_accuracy_held(ladder)}."
    placed = row.details.get("placement")
    if isinstance(placed, Mapping) and placed.get("placement", "") is None:
        why = "was faster on the machine that tried them"
        if placed.get("judged"):
            why = "that was faster held its accuracy; mode: qat trains what rounding costs"
        yield f"{row.id} stays in float: with integers no placement {why}."
    if row.details.get("zeros"):
        yield (
            f"{row.id}: {row.parameters - row.nonzero_parameters:,} parameters are zero; zeros alone make nothing "
            "faster, because engines multiply by them as by any other number."
        )
    for name, found in row.details.get("agreement_in", {}).items():
        lacking = f" in ONNX Runtime, for lack of {title_of(name)}," if found["engine"] != name else ""
        yield (
            f"{row.id}: the file for {title_of(name)}{lacking} and torch agree on {found['same_top1']:,} of "
            f"{found['images']:,} validation images; logits differ by {_figure(found.get('mean_logit_difference'))} on "
            f"average, {_figure(found.get('largest_logit_difference'))} at most."
        )
    if agreement := row.details.get("agreement"):
        yield (
            f"{row.id}: ONNX Runtime and torch agree on {agreement['same_top1']:,} of {agreement['images']:,} "
            f"validation images; logits differ by {_figure(agreement.get('mean_logit_difference'))} on average, "
            f"{_figure(agreement.get('largest_logit_difference'))} at most."
        )
    for entry in row.timed.values():
        if entry.on_cpu:
            engine = title_of(entry.engine)
            yield f"{row.id}: {engine} on the GPU leaves to others: {', '.join(entry.on_cpu)}."


def _unsettled(report: Report) -> Iterator[str]:
    """A remark for each setting in which rows were timed before their latency had settled."""
    for setting in report.settings:
        names = [row.id for row in report.rows if (entry := row.timed.get(setting)) and not entry.steady]
        if names:
            where = setting_name(setting)
            yield f"{where}: latency had not settled when it was timed, so trust it less ({', '.join(names)})."


def _disturbed(report: Report) -> Iterator[str]:
    """A remark for each setting in which rows were timed while the machine was hardly ever quiet."""
    for setting in report.settings:
        names = [row.id for row in report.rows if (entry := row.timed.get(setting)) and not _was_quiet(entry)]
        if names:
            where = setting_name(setting)
            yield f"{where}: the machine was hardly ever quiet, so trust it less ({', '.join(names)})."


def _was_quiet(entry: Latency) -> bool:
    """Whether more than one session was quiet, as far as is known."""
    return entry.quiet is None or (entry.quiet > 0 and len(entry.sessions) > 1)


def load(report: Report) -> str:
    """How busy other programs kept the machine while networks were timed."""
    entries = [entry for row in report.rows for entry in row.timed.values()]
    if not entries:
        return "nothing was timed"
    loads = f"other programs kept at most {max(entry.other_load for entry in entries):.1f}"
    shares = [entry.quiet for entry in entries if entry.quiet is not None]
    quiet = f", at least {min(shares):.0%} of which was quiet" if shares else ""
    return f"{loads} of {report.environment.cores} cores busy during timing{quiet}"


def measured_on(report: Report) -> str:
    """The machine, the versions, the seed."""
    return (
        f"{machine(report.environment)}; seed {report.seed}; commit {report.environment.commit or 'unknown'}; "
        f"pipeline {report.digest[:12]}; {load(report)}"
    )


def machine(environment: Environment) -> str:
    """The hardware and the versions."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    return (
        f"{environment.cpu} ({environment.cores} cores; {', '.join(environment.isa) or 'no extensions'}), "
        f"{environment.gpu or 'no GPU'}, {environment.platform}; {versions}"
    )


def slowness(found: Diagnosis) -> str:
    """How long an image takes, and what costs most."""
    whole = f"{found.microseconds:,.0f} µs {found.timed_for} on one thread"
    worst = next((finding for finding in found.findings if finding.what != THREADS), None)
    if worst is None:
        return f"{whole}; nothing in the file that was looked for costs time"
    return f"{whole}; what costs most is {worst.what} ({worst.share:.0%})"


def percent(accuracy: Accuracy) -> str:
    """The share of correct predictions."""
    return f"{100 * accuracy.value:.2f}%"


def balanced(report: Report, row: Row) -> str:
    """The mean recall of the classes, to be put after `percent`; nothing where classes are of about one size."""
    images = [score.images for score in report.regressions.baseline_classes if score.images]
    if row.balanced_accuracy is None or max(images) <= ONE_SIZE * min(images):
        return ""
    return f"balanced {100 * row.balanced_accuracy:.2f}%"


def speedup(entry: Latency) -> str:
    """A speed-up with its interval."""
    return f"{entry.speedup:.2f}x ({entry.speedup_low:.2f} to {entry.speedup_high:.2f})"


def times(factor: float) -> str:
    """A factor, to three figures."""
    return f"{factor:.3g}x" if factor < 1000 else f"{factor:,.0f}x"


def change(before: float, after: float, less: str, more: str) -> str:
    """How many times smaller or larger `after` is, as `18.1x smaller`."""
    if not (before and after):
        return "the same" if before == after else f"none {'now' if before else 'before'}"
    if max(before, after) < MIN_CHANGE * min(before, after):
        return "the same"
    return f"{times(before / after)} {less}" if after < before else f"{times(after / before)} {more}"


def threads(setting: Setting) -> str:
    """How many threads an engine uses."""
    return f"{setting.threads} thread{'s' if setting.threads > 1 else ''}"


def setting_name(setting: Setting) -> str:
    """What a network was timed with."""
    where = "GPU" if setting.device == "cuda" else threads(setting)
    return f"{title_of(setting.engine)}, {where}, batch {setting.batch}"


def _guessing(report: Report, row: Row) -> str | None:
    """What is wrong with a network that is no better than predicting the most frequent class; None if it is better."""
    images = [score.images for score in report.regressions.baseline_classes]
    share = max(images) / row.accuracy.total
    if row.accuracy.low > share:
        return None
    how = "is worse than" if row.accuracy.high < share else "is not distinguishable from"
    label = report.labels[images.index(max(images))]
    return f"{how} predicting {label!r} for every image: {percent(row.accuracy)} correct, against {100 * share:.2f}%"


def _faster(report: Report) -> str | None:
    entry = _shipped_latency(report)
    return f"{times(entry.speedup)} faster" if entry is not None and entry.speedup_low > 1 else None


def _slower(report: Report) -> str | None:
    entry = _shipped_latency(report)
    return f"{times(1 / entry.speedup)} slower" if entry is not None and entry.speedup_high < 1 else None


def _shipped_latency(report: Report) -> Latency | None:
    setting = report.headline_setting
    return None if setting is None else report.shipped_row.timed[setting]


def _smaller(base: Row, shipped: Row) -> str | None:
    factor = base.size_bytes / shipped.size_bytes
    return f"{times(factor)} smaller" if factor >= MIN_GAIN else None


def _points(share: float) -> str:
    """A share as percentage points, to two figures."""
    points = 100 * share + 0.0  # not "-0"
    return f"{points:.2g}" if abs(points) < 10 else f"{points:.0f}"


def _latency_reached(target: Mapping[str, Any]) -> str:
    """How a target of latency was met: asked for, predicted, measured."""
    asked = f"{100 * target['goal']:.3g}% of the incoming latency was asked for"
    if (taken := target.get("taken")) is None:
        return f"{asked}; it is within that as it came"
    kept = target["tried"][taken]
    measured = kept.get("measured")
    timed = "not timed, since another machine ships" if measured is None else f"measured {100 * measured:.3g}%"
    blocks = kept["removed_blocks"]
    return (
        f"{asked}, the layers' times add up to {100 * kept['predicted']:.3g}%, {timed}; "
        f"{blocks} block{'' if blocks == 1 else 's'} removed, best of {len(target['tried'])} candidates"
    )


def _accuracy_held(ladder: Mapping[str, Any]) -> str:
    """Whether int8 kept its accuracy on the validation images, and by what means."""
    points = f"{ladder['max_drop']:g} point{'' if ladder['max_drop'] == 1 else 's'}"
    asked = f"int8 may cost {points} on the {ladder['images']:,} validation images"
    kept = next((rung for rung in ladder["rungs"] if rung["name"] == ladder["kept"]), None)
    if kept is None:
        return f"{asked}; no network on integers holds that, so it stays in float"
    change = 100 * (kept["correct"] - ladder["correct_in_float"]) / ladder["images"]
    return f"{asked}; the network that ships ({kept['name']}) is {change:+.2f} points from float"


def rungs(ladder: Mapping[str, Any]) -> Iterator[list[str]]:
    """A table of what was tried to keep the accuracy: name, validation accuracy, points from float, time, speed-up."""
    images, in_float = ladder["images"], ladder["correct_in_float"]
    yield ["in float", f"{100 * in_float / images:.2f}%", "", "", "1.00x"]
    for rung in ladder["rungs"]:
        correct, speed = rung["correct"], rung.get("speedup")
        yield [
            f"{rung['name']}, kept" if rung["name"] == ladder["kept"] else rung["name"],
            f"{100 * correct / images:.2f}%",
            f"{100 * (correct - in_float) / images:+.2f}",
            f"{rung['seconds']:,.0f} s",
            "—" if speed is None else f"{speed:.2f}x",
        ]


RUNGS = ("int8", "validation accuracy", "points from float", "took", "against the float file")  # the header of `rungs`


def _figure(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2g}"


def resizing(preprocess: Preprocess) -> str:
    """How an image of another size is made to fit."""
    how = f"(Pillow, {preprocess.interpolation})"
    if preprocess.resize is None:
        return f"Images of another size are resized without cropping {how}."
    return f"The shorter side is resized to {preprocess.resize} pixels {how}, and the centre cut out."
