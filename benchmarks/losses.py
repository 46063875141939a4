"""What each loss brings a student, at the same budget.

    python benchmarks/losses.py data/cifar10-jpeg weights/resnet56-cifar10-jpeg.safetensors

Two students of a ResNet-56: the flagship's, which is made of the teacher's own blocks, and a ResNet-20 that begins with
random weights. Same images, same views, same order, same learning rate for a student; judged on validation images. Rows
that results/losses.json has are not made again.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from compressor import Context, Data, TorchModel
from compressor.data.settings import Augment
from compressor.environment import environment
from compressor.pipeline import Services
from compressor.storage import files
from stages import Distill, PruneBlocks, Share, Train

RESULT = Path(__file__).parent / "results" / "losses.json"
KEPT = Path("runs/losses")  # what the teacher says about images
EPOCHS, SEEDS = 12, (0, 1)
LOSSES: dict[str, dict[str, Any]] = {  # of `distill`; weights and temperatures as their papers have them
    "labels alone": {"alpha": 0.0},
    "kl": {},
    "kl, standardised": {"standardise": True, "temperature": 2.0, "losses": [{"loss": "kl", "weight": 9.0}]},
    "mse": {"losses": [{"loss": "mse"}]},
    "dkd": {"losses": [{"loss": "dkd"}]},
    "dist": {"temperature": 1.0, "losses": [{"loss": "dist", "weight": 2.0}]},
    "kl and hints": {"features": [{"loss": "hints", "weight": 1.0}]},
    "kl and attention": {"features": [{"loss": "attention", "weight": 1000.0}]},
    "kl and srd": {"features": [{"loss": "srd", "weight": 1.0}]},
}
NAMED, SHARED_NAME = {"hints", "attention"}, "layer3"  # for a student that shares no blocks with its teacher


def main() -> None:
    images, weights = sys.argv[1:]
    made = json.loads(RESULT.read_text())["rows"] if RESULT.is_file() else []
    for seed in SEEDS:
        data = Data(
            name="image_folder",
            root=images,
            size=(32, 32),
            validation=5000,
            calibration=512,
            augment=Augment(crop=4, flip=True),
        ).load(seed)
        context = Context(data=data, seed=seed, services=Services(soft_labels=KEPT))
        teacher = Train(model="resnet56", weights=weights, epochs=0).run(None, context)
        context = replace(context, teachers={"teacher": teacher})
        blocks = PruneBlocks(target=Share(macs=0.3)).run(teacher, context)
        for student, rate in (("the teacher's blocks", 0.05), ("resnet20", 0.1)):
            start = blocks if student != "resnet20" else None
            for loss, settings in LOSSES.items():
                row = {"student": student, "loss": loss, "seed": seed}
                if not any(row.items() <= other.items() for other in made):
                    started = time.monotonic()
                    trained = distill(settings, rate, start).run(start, context)
                    row |= {"validation_accuracy": validation_accuracy(trained, context)}
                    made.append({**row, "seconds": round(time.monotonic() - started, 1)})
                    print(made[-1], flush=True)
                    about = {"environment": environment().model_dump(), "epochs": EPOCHS, "rows": made}
                    files.write_text(RESULT, json.dumps(about, indent=1) + "\n")


def distill(settings: dict[str, Any], rate: float, start: TorchModel | None) -> Distill:
    """The stage; layers are named where the student shares none with its teacher."""
    features = settings.get("features", [])
    if start is None:
        settings = {**settings, "model": "resnet20"}
        if features and features[0]["loss"] in NAMED:
            settings |= {"features": [{**features[0], "student": SHARED_NAME, "teacher": SHARED_NAME}]}
    if not features:
        settings = {**settings, "cache": {"views": EPOCHS}}
    return Distill(teacher="teacher", epochs=EPOCHS, learning_rate=rate, warmup_epochs=1, **settings)


def validation_accuracy(model: TorchModel, context: Context) -> float:
    """In torch."""
    validation = context.data.validation
    logits = model.predict(context.data.preprocess.normalise(validation.images))
    return round(float((logits.argmax(1) == validation.labels).float().mean()), 4)


if __name__ == "__main__":
    main()
