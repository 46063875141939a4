"""What each stage costs, against the number of images and the size of the network.

    python benchmarks/stage_costs.py data/cifar10-jpeg

One epoch of whatever trains. Twice the images, or a network twice as large, should take twice as long, and no more. A
few minutes.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import torch

from compressor import Context, Data, Dataset, Stage
from compressor.data.settings import Augment
from compressor.environment import environment
from compressor.storage import files
from stages import Distill, Export, Prune, Quantize, Target, Train

matplotlib.use("agg")

RESULT = Path(__file__).parent / "results" / "stage_costs"
IMAGES, USUAL_IMAGES = (2000, 4000, 8000), 4000
NETWORKS, USUAL_NETWORK = ("resnet20", "resnet38", "resnet74"), "resnet20"  # about twice as many layers each
VALIDATION = 1000
SECONDS = (1, 2, 5, 10, 20, 50)  # on the axis


def main() -> None:
    data = Data(
        name="image_folder",
        root=Path(sys.argv[1]),
        size=(32, 32),
        validation=VALIDATION,
        calibration=512,
        augment=Augment(crop=4, flip=True),
    ).load(0)
    costs(USUAL_NETWORK, data, 500)  # imports, and what is built once
    rows = [
        {"network": network, "images": images, **costs(network, data, images)}
        for network, images in dict.fromkeys(
            [*((USUAL_NETWORK, images) for images in IMAGES), *((network, USUAL_IMAGES) for network in NETWORKS)]
        )
    ]
    about = {"environment": environment().model_dump(), "validation_images": VALIDATION, "rows": rows}
    files.write_text(RESULT.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
    draw(rows, RESULT.with_suffix(".svg"))


def costs(network: str, data: Dataset, images: int) -> dict[str, Any]:
    """The MACs of a network and the seconds of every stage, one after the other, on so many training images."""
    own = replace(data, train=data.train.take(torch.arange(images)))
    context = Context(data=own)
    settings = model_of(network)
    teacher = Train(**settings, epochs=0).run(None, context)
    context = replace(context, teachers={"teacher": teacher})
    stages: dict[str, Stage] = {
        "train": Train(epochs=1),
        "distill": Distill(teacher="teacher", epochs=1),
        "prune": Prune(target=Target(macs=0.7)),
        "quantize, ptq": Quantize(mode="ptq"),
        "quantize, qat": Quantize(mode="qat", epochs=1),
        "export": Export(agreement=0.0),
    }
    seconds: dict[str, float] = {}
    made: Any = teacher
    for name, stage in stages.items():
        started = time.monotonic()
        made = stage.run(made if name == "export" else teacher, context)
        seconds[name] = round(time.monotonic() - started, 2)
    print(network, images, seconds, flush=True)
    return {"mmacs": round(teacher.counts.macs / 1e6, 1), "seconds": seconds}


def model_of(network: str) -> dict[str, Any]:
    """A ResNet for small images of so many layers, whether or not it has a name."""
    blocks = (int(network.removeprefix("resnet")) - 2) // 6
    return {"model": "resnet", "arguments": {"blocks": [blocks] * 3, "widths": [16, 32, 64]}}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds of each stage over images, and over MACs; both logarithmic, so slope one is in proportion."""
    from matplotlib import pyplot

    figure, (by_images, by_size) = pyplot.subplots(1, 2, sharey=True, figsize=(9, 4), layout="constrained")
    for name in rows[0]["seconds"]:
        for axes, kept, key in (
            (by_images, [row for row in rows if row["network"] == USUAL_NETWORK], "images"),
            (by_size, [row for row in rows if row["images"] == USUAL_IMAGES], "mmacs"),
        ):
            axes.plot([row[key] for row in kept], [row["seconds"][name] for row in kept], marker="o", label=name)
    by_images.set_xlabel(f"training images ({USUAL_NETWORK})")
    by_size.set_xlabel(f"MMACs of the network ({USUAL_IMAGES:,} images)")
    by_images.set_ylabel("seconds")
    for axes, key in ((by_images, "images"), (by_size, "mmacs")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = sorted({row[key] for row in rows})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_yticks(SECONDS, [f"{tick}" for tick in SECONDS])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    by_size.legend(frameon=False, fontsize=9)
    options: dict[str, Any] = {"metadata": {"Date": None}, "facecolor": "white"}
    with matplotlib.rc_context({"svg.hashsalt": "stage_costs"}):
        figure.savefig(path, **options)


if __name__ == "__main__":
    main()
