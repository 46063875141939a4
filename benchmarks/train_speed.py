"""How fast stages train, against a loop as tutorials write it and against torchdistill; and what the runner adds.

    python benchmarks/train_speed.py data/cifar10-jpeg weights/resnet56-cifar10-jpeg.safetensors

- `train`, ResNet-20 on labels, against a loop in float32 with torchvision's transforms, by image, in a DataLoader.
- `distill`, ResNet-56 to ResNet-20, against torchdistill's DistillationBox with the settings of its own CIFAR-10
  configuration (KDLoss, SGD, 128 images at once). Needs `pip install torchdistill`; left out without it.

Same images, epochs, batch size, peak learning rate and schedule. Whole trainings, in alternation; each says what it
scores on the validation images. A stage is given images that were read once, which takes as long as is said; the others
read files in every epoch. On a GPU, if there is one; stages then replay CUDA graphs. Then the digits pipeline is run on
the CPU, and all but its stages, scoring and timing is the runner's own work: the dry run, saving, loading, exporting
every network, the report. It hardly depends on how long the stages take. About half an hour.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from compressor import Context, Data, Pipeline, run
from compressor.data.settings import Augment
from compressor.environment import environment
from compressor.evaluation import Predictions
from compressor.models import Architecture
from compressor.runs import runner
from compressor.storage import files
from stages import Distill, Train

RESULT = Path(__file__).parent / "results" / "train_speed.json"
IMAGES, EPOCHS, REPEATS = 6_000, 4, 3
BATCH, RATE, MOMENTUM, DECAY = 128, 0.1, 0.9, 1e-4
TEMPERATURE, ALPHA = 4.0, 0.9
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WORKERS = os.cpu_count() or 1  # of the DataLoaders
MEASURES = ("timings_of", "regressions_of", "diagnose")  # of the runner, besides scoring


def main() -> None:
    images, weights = Path(sys.argv[1]), Path(sys.argv[2])
    bench = Bench(images, weights)
    pairs: dict[str, dict[str, Callable[[], nn.Module]]] = {
        "on labels": {"compressor": bench.train, "tutorial": bench.tutorial},
        "from a teacher": {"compressor": bench.distill, "compressor, outputs stored": bench.distill_stored},
    }
    if find_spec("torchdistill"):
        pairs["from a teacher"]["torchdistill"] = bench.torchdistill
    about: dict[str, Any] = {
        "environment": environment().model_dump(),
        "images": IMAGES,
        "seconds_to_read_all_images_once": bench.reading_seconds,
        "epochs": EPOCHS,
        "trainings": {},
    }
    for pair, ways in pairs.items():
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        accuracy: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(REPEATS):
            for way, train in ways.items():
                started = time.monotonic()
                network = train()
                seconds[way].append(round(time.monotonic() - started, 1))
                accuracy[way].append(bench.accuracy(network))
                print(pair, way, seconds[way][-1], accuracy[way][-1], flush=True)
            ours = float(np.median(seconds["compressor"]))
            about["trainings"][pair] = {
                way: {
                    "seconds": seconds[way],
                    "median_ratio": round(float(np.median(seconds[way])) / ours, 2),
                    "validation_accuracy": accuracy[way],
                }
                for way in ways
            }
            write(about)  # as far as it came
    write({**about, "runner": runners_own_work()})


def write(about: dict[str, Any]) -> None:
    files.write_text(RESULT, json.dumps(about, indent=1) + "\n")


class Bench:
    """The same images, networks and settings for all."""

    def __init__(self, images: Path, weights: Path) -> None:
        settings = Data(
            name="image_folder",
            root=images,
            size=(32, 32),
            train=IMAGES,
            validation=2000,
            augment=Augment(crop=4, flip=True),
        )
        self.images = images
        started = time.monotonic()
        self.data = settings.load(0)
        self.reading_seconds = round(time.monotonic() - started, 1)
        self.teacher = Train(model="resnet56", weights=weights, epochs=0).run(None, Context(data=self.data))
        self.shared = {
            "epochs": EPOCHS,
            "batch_size": BATCH,
            "learning_rate": RATE,
            "weight_decay": DECAY,
            "cuda_graphs": DEVICE.type == "cuda",
        }

    def train(self) -> nn.Module:
        """The stage."""
        return Train(model="resnet20", **self.shared).run(None, Context(data=self.data, device=DEVICE)).network

    def distill(self) -> nn.Module:
        """The stage, with the teacher beside it."""
        return self._distilled({})

    def distill_stored(self) -> nn.Module:
        """The stage, with the teacher's outputs for half as many views as there are epochs."""
        return self._distilled({"cache": {"views": EPOCHS // 2}})

    def _distilled(self, settings: dict[str, Any]) -> nn.Module:
        context = Context(data=self.data, device=DEVICE, teachers={"teacher": self.teacher})
        stage = Distill(
            teacher="teacher", model="resnet20", temperature=TEMPERATURE, alpha=ALPHA, **self.shared, **settings
        )
        return stage.run(None, context).network

    def tutorial(self) -> nn.Module:
        """A training loop as tutorials write it."""
        network = Architecture(model="resnet20", num_classes=len(self.data.labels), in_channels=3).build().to(DEVICE)
        folder = self._folder()
        loader = DataLoader(
            folder, batch_size=BATCH, shuffle=True, num_workers=WORKERS, pin_memory=DEVICE.type == "cuda"
        )
        optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * len(loader))
        criterion = nn.CrossEntropyLoss()
        network.train()
        for _ in range(EPOCHS):
            for inputs, labels in loader:
                optimizer.zero_grad()
                criterion(network(inputs.to(DEVICE)), labels.to(DEVICE)).backward()
                optimizer.step()
                schedule.step()
        return network.eval().cpu()

    def torchdistill(self) -> nn.Module:
        """Its box, set up as its runner for CIFAR does from a configuration."""
        from torchdistill.core.distillation import DistillationBox

        network = Architecture(model="resnet20", num_classes=len(self.data.labels), in_channels=3).build()
        folder = self._folder()
        steps = EPOCHS * -(-len(folder) // BATCH)
        loader = {"batch_size": BATCH, "num_workers": WORKERS}
        terms = {"student_module_path": ".", "student_module_io": "output"}
        terms |= {"teacher_module_path": ".", "teacher_module_io": "output"}
        kd = {
            "key": "KDLoss",
            "kwargs": {**terms, "temperature": TEMPERATURE, "alpha": ALPHA, "reduction": "batchmean"},
        }
        settings = {
            "num_epochs": EPOCHS,
            "train_data_loader": {
                "dataset_id": "train",
                "sampler": {"class_or_func": RandomSampler},
                "kwargs": loader,
            },
            "teacher": {"sequential": [], "forward_proc": "forward_batch_only", "requires_grad": False},
            "student": {"sequential": [], "forward_proc": "forward_batch_only", "requires_grad": True},
            "optimizer": {"key": "SGD", "kwargs": {"lr": RATE, "momentum": MOMENTUM, "weight_decay": DECAY}},
            "scheduler": {
                "key": "OneCycleLR",
                "kwargs": {"max_lr": RATE, "total_steps": steps + 1},
                "scheduling_step": 1,
            },
            "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}},
        }
        box = DistillationBox(
            self.teacher.copy_network().to(DEVICE),
            network.to(DEVICE),
            {"train": folder},
            settings,
            DEVICE,
            None,
            False,
            1,
        )
        for epoch in range(EPOCHS):
            box.pre_epoch_process(epoch=epoch)
            for sample_batch, targets, supplement in box.train_data_loader:
                box.pre_forward_process()
                loss = box.forward_process(sample_batch.to(DEVICE), targets.to(DEVICE), supplement)
                box.post_forward_process(loss=loss)
        return network.eval().cpu()

    def _folder(self) -> Subset[Any]:
        """As many training images as the stages see, read by torchvision."""
        how = self.data.preprocess
        steps = [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(how.mean, how.std),
        ]
        folder = ImageFolder(str(self.images / "train"), transforms.Compose(steps))
        drawn = torch.randperm(len(folder), generator=torch.Generator().manual_seed(0))[: len(self.data.train)]
        return Subset(folder, drawn.tolist())

    def accuracy(self, network: nn.Module) -> float:
        """Of the validation images."""
        validation = self.data.validation
        with torch.no_grad():
            logits = network(self.data.preprocess.normalise(validation.images))
        return round(float((logits.argmax(1) == validation.labels).float().mean()), 4)


class Clock:
    """Adds up the seconds of what it wraps; what runs inside of that is not counted twice."""

    def __init__(self) -> None:
        self.seconds, self.inside = 0.0, False

    def wrap(self, function: Callable[..., Any], *, counts: bool = True) -> Callable[..., Any]:
        """The function, timed if it `counts`."""

        @wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            if self.inside:
                return function(*given, **named)
            started, self.inside = time.monotonic(), True
            try:
                return function(*given, **named)
            finally:
                self.seconds, self.inside = self.seconds + counts * (time.monotonic() - started), False

        return call


def runners_own_work() -> dict[str, float]:
    """The seconds of a run of the digits pipeline, and those in which nothing was trained, scored or timed."""
    pipeline = Pipeline.load(Path(__file__).parents[1] / "pipelines" / "digits_resnet.yaml")
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patched:
        for kind in {type(stage) for stage in pipeline.stages}:
            patched.enter_context(mock.patch.object(kind, "run", clock.wrap(kind.run)))
        for name in MEASURES:
            patched.enter_context(mock.patch.object(runner, name, clock.wrap(getattr(runner, name))))
        patched.enter_context(mock.patch.object(runner, "try_stages", clock.wrap(runner.try_stages, counts=False)))
        patched.enter_context(mock.patch.object(Predictions, "of", clock.wrap(Predictions.of)))
        started = time.monotonic()
        run(pipeline, Path(folder) / "run", device="cpu")
        seconds = time.monotonic() - started
    own = seconds - clock.seconds
    return {"seconds": round(seconds, 1), "own_seconds": round(own, 2), "own_share": round(own / seconds, 4)}


if __name__ == "__main__":
    main()
