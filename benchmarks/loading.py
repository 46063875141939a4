"""What loading costs a training step: ResNet-18 at 224 pixels, batches of 32 from the store of decoded photographs.

Batches and steps (forward, backward, SGD; bf16 where training would use it) in alternation. The photographs are drawn
here: smooth, 500x375 pixels, JPEG. `resized_crop` decodes them again for every view, the others read the store.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18

from compressor import Data
from compressor.data.views import View
from compressor.environment import environment
from compressor.storage import files
from compressor.training import autocast

PHOTOGRAPHS, BATCH, CLASSES, ROUNDS = 2500, 32, 10, 6  # so many that they are not kept in memory
AUGMENTED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "crop, flip": {"crop": 16, "flip": True},
    "resized_crop, flip": {"resized_crop": [0.35, 1.0], "flip": True},
    "crop, flip, randaugment, mixup": {"crop": 16, "flip": True, "randaugment": {}, "mixup": 0.2},
    "crop, flip, color, erase, cutmix": {"crop": 16, "flip": True, "color": 0.4, "erase": 0.25, "cutmix": 1.0},
}
RESULT = Path(__file__).parent / "results" / "loading.json"


def draw(root: Path, number: int) -> None:
    generator = np.random.default_rng(number)
    blocks = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize((500, 375), Image.Resampling.BICUBIC)
    image.save(root / f"class {number % CLASSES}" / f"{number:06}.jpg", quality=90)


def main() -> None:
    network = resnet18(num_classes=CLASSES).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    rows: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        root = Path(folder, "photographs")
        for label in range(CLASSES):
            (root / f"class {label}").mkdir(parents=True)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda number: draw(root, number), range(PHOTOGRAPHS)))
        for name, augment in AUGMENTED.items():
            data = Data(
                name="image_folder", root=root, size=(224, 224), resize=256, validation=100, test=100, calibration=10,
                augment=augment, store={"folder": Path(folder, "store")},
            ).load(seed=0)  # fmt: skip
            view = View.draw(data, 0)
            loading, stepping = [], []
            for positions in torch.randperm(len(data.train)).split(BATCH)[: ROUNDS + 1]:
                started = time.perf_counter()
                pixels, labels = view.batch(positions, torch.device("cpu"))
                inputs = data.preprocess.normalise(pixels).contiguous(memory_format=torch.channels_last)
                loaded = time.perf_counter()
                optimizer.zero_grad()
                with autocast(torch.device("cpu"), "auto"):
                    loss = cross_entropy(network(inputs), labels)
                loss.backward()
                optimizer.step()
                stepping.append(time.perf_counter() - loaded)
                loading.append(loaded - started)
            shares = np.array(loading[1:]) / np.array(stepping[1:])  # the first round warms up
            rows[name] = {
                "loading_ms": round(float(np.median(loading[1:])) * 1e3, 1),
                "step_ms": round(float(np.median(stepping[1:])) * 1e3, 1),
                "share": [round(float(each), 4) for each in np.percentile(shares, (50, 0, 100))],
            }
            print(name, rows[name], flush=True)
    files.write_json(RESULT, {"environment": environment().model_dump(mode="json"), "rounds": ROUNDS, "rows": rows})


if __name__ == "__main__":
    main()
