"""How much speed-ups move on a busy machine: two comparisons, 20 times each, spread over two hours.

    python benchmarks/busy_machine.py "what else the machine does meanwhile"

A ResNet-20 in int8 is timed against itself, and against a ResNet-56 in float, its teacher. `every_run` is what the same
sessions come to if every run counts, quiet or not.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measurement_aa import networks

from compressor.environment import environment
from compressor.evaluation import SESSIONS, Pair, Recording, Setting, Subject, in_sessions
from compressor.storage import files

TRIES, MINUTES = 20, 6.0
WITHIN = 0.05
SETTING = Setting(engine="onnxruntime", device="cpu", threads=1, batch=1)
RESULT = Path(__file__).parent / "results" / "busy_machine.json"


def main() -> None:
    load = sys.argv[1]
    rows: dict[str, list[dict[str, Any]]] = {"itself": [], "teacher": []}
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, model in networks().items():
            paths[name] = Path(folder, f"{name}.onnx")
            files.write_bytes(paths[name], model.to_onnx("benchmark").content)
        student = paths["resnet20-int8"]
        began = time.monotonic()
        for index in range(TRIES):
            time.sleep(max(began + index * MINUTES * 60 - time.monotonic(), 0))
            for name, baseline in (("itself", student), ("teacher", paths["resnet56-float"])):
                rows[name].append({"minute": round((time.monotonic() - began) / 60, 1), **one_try(student, baseline)})
                print(name, rows[name][-1], flush=True)
            summaries = {name: summary(entries) for name, entries in rows.items()}
            about = {"environment": environment().model_dump(mode="json"), "load": load, "tries": index + 1}
            files.write_json(RESULT, {**about, "summaries": summaries, "rows": rows})


def one_try(candidate: Path, baseline: Path) -> dict[str, Any]:
    """One comparison, as a run makes it."""
    pair = Pair(Subject(candidate), Subject(baseline), SETTING)
    recordings: list[Recording] = []

    def session() -> Recording:
        recordings.append(pair())
        return recordings[-1]

    (latency,) = in_sessions([session])
    return {
        "speedup": latency.speedup,
        "low": latency.speedup_low,
        "high": latency.speedup_high,
        "quiet": latency.quiet,
        "other_load": latency.other_load,
        "sessions": len(recordings),
        "every_run": float(np.median([every_run(each) for each in recordings[:SESSIONS]])),
    }


def every_run(recording: Recording) -> float:
    """The ratio of the medians of all runs."""
    candidate, baseline = np.median(recording.seconds.swapaxes(0, 1).reshape(2, -1), axis=1)
    return float(baseline / candidate)


def summary(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """How far single tries are from the median of all."""
    result = {}
    for method in ("speedup", "every_run"):
        ratios = np.array([entry[method] for entry in entries])
        middle = float(np.median(ratios))
        within = int((np.abs(ratios / middle - 1) <= WITHIN).sum())
        result[method] = {
            "median": middle,
            "lowest": float(ratios.min()),
            "highest": float(ratios.max()),
            "within_5_percent": within,
        }
    return result


if __name__ == "__main__":
    main()
