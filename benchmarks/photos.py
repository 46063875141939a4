"""A folder of 5,000, 10,000 and 20,000 photographs: time, disk and peak memory of decoding, of reading, and of a run.

Each size in a process of its own: the folder is decoded into the store, read again from it, and a MobileNetV2 at 224
pixels goes through PTQ and export. The photographs are drawn here: smooth, 200 to 500 pixels wide, JPEG.
"""

import json
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from compressor import Data, Measure, Pipeline, run
from compressor.environment import environment
from compressor.storage import files
from stages import Export, Quantize, Train

COUNTS = (5_000, 10_000, 20_000)
IMAGENET = 1_281_167
CLASSES = 10
BATCH = 64
BATCHES_READ = 50
RESULT = Path(__file__).parent / "results" / "photos.json"


def draw(root: Path, number: int) -> None:
    """One photograph, the same for the same number; its class tints it."""
    generator, label = np.random.default_rng(number), number % CLASSES
    blocks = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    blocks[..., label % 3] = blocks[..., label % 3] // 4 + 19 * label
    size = int(generator.integers(200, 500)), int(generator.integers(200, 400))
    image = Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)
    image.save(root / f"class {label}" / f"{number:06}.jpg", quality=85)


def measured(root: Path, work: Path) -> dict[str, Any]:
    """Time, disk and peak memory for the photographs in `root`, in this process."""
    data = Data(
        name="image_folder",
        root=root,
        size=(224, 224),
        resize=256,
        validation=256,
        test=512,
        calibration=256,
        store={"folder": work / "store"},
    )
    seconds = {}
    for name in ("decoding", "reading again"):
        started = time.monotonic()
        loaded = data.load(seed=0)
        seconds[name] = time.monotonic() - started
    order = torch.randperm(len(loaded.train), generator=torch.Generator().manual_seed(0))
    started = time.monotonic()
    for positions in order[: BATCH * BATCHES_READ].split(BATCH):
        loaded.train.batch(positions)
    seconds["a batch of 64, first read"] = (time.monotonic() - started) / BATCHES_READ
    started = time.monotonic()
    for positions in order[: BATCH * BATCHES_READ].split(BATCH):
        loaded.train.batch(positions)
    seconds["a batch of 64"] = (time.monotonic() - started) / BATCHES_READ
    decoded_mb = _peak_mb()
    pipeline = Pipeline(
        name="photos",
        data=data,
        stages=(
            Train(id="teacher", model="torchvision:mobilenet_v2", epochs=0),
            Quantize(id="int8", mode="ptq"),
            Export(id="shipped"),
        ),
        measure=Measure(engines=()),
    )
    started = time.monotonic()
    run(pipeline, work / "run", device="cpu")
    seconds["run"] = time.monotonic() - started
    stored = sum(path.stat().st_size for path in (work / "store").rglob("*"))
    return {"seconds": seconds, "store_gb": stored / 1e9, "peak_mb_decoding": decoded_mb, "peak_mb_run": _peak_mb()}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    rows = {}
    with TemporaryDirectory() as folder:
        root = Path(folder, "photographs")
        for label in range(CLASSES):
            (root / f"class {label}").mkdir(parents=True)
        drawn = 0
        for count in COUNTS:
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda number: draw(root, number), range(drawn, count)))
            drawn = count
            work = Path(folder, str(count))
            work.mkdir()
            done = subprocess.run(
                [sys.executable, __file__, str(root), str(work)], capture_output=True, text=True, check=True
            )
            rows[str(count)] = json.loads(done.stdout.splitlines()[-1])
            print(count, json.dumps(rows[str(count)]), flush=True)
    most = rows[str(COUNTS[-1])]
    share = IMAGENET / COUNTS[-1]
    would = {"decoding_hours": most["seconds"]["decoding"] * share / 3600, "store_gb": most["store_gb"] * share}
    print(f"ImageNet's {IMAGENET:,} would take {would['decoding_hours']:.1f} h and {would['store_gb']:.0f} GB")
    content = {"environment": environment().model_dump(mode="json"), "rows": rows, "imagenet_would_take": would}
    files.write_json(RESULT, content)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(Path(sys.argv[1]), Path(sys.argv[2]))))
    else:
        main()
