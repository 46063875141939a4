"""What each loss brings a student, at the same budget.

    python benchmarks/losses.py data/cifar10-jpeg weights/resnet56-cifar10-jpeg.safetensors

Two students of a ResNet-56: the flagship's, a RepVGG, and a ResNet-20. Same images, same views, same order, same
learning rate; judged on validation images. On a GPU, if there is one. Rows that results/losses.json has are not made
again.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from compressor import Augment, Context, Data, TorchModel
from compressor.environment import environment
from compressor.pipeline import Services
from compressor.storage import files
from stages import Distill, Train

RESULT = Path(__file__).parent / "results" / "losses.json"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KEPT = Path("runs/losses")  # what the teacher says about images
TRAIN, EPOCHS, RATE, SEEDS = 10_000, 10, 0.1, (0, 1)
STUDENTS: dict[str, dict[str, Any]] = {
    "repvgg": {"model": "repvgg", "arguments": {"blocks": [0, 4, 5], "widths": [24, 48, 64]}},
    "resnet20": {"model": "resnet20"},
}
LAYERS = {"student": "layer3", "teacher": "layer3"}  # of losses that compare layers by name
LOSSES: dict[str, dict[str, Any]] = {  # of `distill`; weights and temperatures as their papers have them, but for hints
    "labels alone": {"alpha": 0.0},
    "kl": {},
    "kl, standardised": {"standardise": True, "temperature": 2.0, "losses": [{"loss": "kl", "weight": 9.0}]},
    "mse": {"losses": [{"loss": "mse"}]},
    "dkd": {"losses": [{"loss": "dkd"}]},
    "dist": {"temperature": 1.0, "losses": [{"loss": "dist", "weight": 2.0}]},  # as on ImageNet
    "dist, temperature 4": {"losses": [{"loss": "dist", "weight": 2.0}]},
    "kl and hints": {"features": [{"loss": "hints", "weight": 1.0, **LAYERS}]},
    "kl and attention": {"features": [{"loss": "attention", "weight": 1000.0 / 64, **LAYERS}]},  # of 64 places the mean
    "kl and srd": {"features": [{"loss": "srd", "weight": 1.0}]},
}


def main() -> None:
    images, weights = sys.argv[1:]
    made = json.loads(RESULT.read_text())["rows"] if RESULT.is_file() else []
    for seed in SEEDS:
        data = Data(
            name="image_folder",
            root=images,
            size=(32, 32),
            train=TRAIN,
            validation=5000,
            calibration=512,
            augment=Augment(crop=4, flip=True),
        ).load(seed)
        context = Context(data=data, seed=seed, device=DEVICE, services=Services(soft_labels=KEPT))
        teacher = Train(model="resnet56", weights=weights, epochs=0).run(None, context)
        context = replace(context, teachers={"teacher": teacher})
        for student, network in STUDENTS.items():
            for loss, settings in LOSSES.items():
                row = {"student": student, "loss": loss, "seed": seed}
                if not any(row.items() <= other.items() for other in made):
                    started = time.monotonic()
                    trained = distill(network | settings).run(None, context)
                    row |= {"validation_accuracy": validation_accuracy(trained, context)}
                    made.append({**row, "seconds": round(time.monotonic() - started, 1)})
                    print(made[-1], flush=True)
                    about = {"environment": environment().model_dump(), "images": TRAIN, "epochs": EPOCHS, "rows": made}
                    files.write_text(RESULT, json.dumps(about, indent=1) + "\n")


def distill(settings: dict[str, Any]) -> Distill:
    """The stage; what the teacher says is stored, unless its layers are asked for as well."""
    if not settings.get("features"):
        settings = {**settings, "cache": {"views": EPOCHS}, "cuda_graphs": True}
    return Distill(teacher="teacher", epochs=EPOCHS, learning_rate=RATE, warmup_epochs=1, **settings)


def validation_accuracy(model: TorchModel, context: Context) -> float:
    """In torch."""
    validation = context.data.validation
    logits = model.predict(context.data.preprocess.normalise(validation.images))
    return round(float((logits.argmax(1) == validation.labels).float().mean()), 4)


if __name__ == "__main__":
    main()
