"""Four ways to prune a network to the same measured int8 latency, recovered with the same budget.

    python benchmarks/latency_target.py data/cifar10-jpeg resnet56 weights/resnet56-cifar10-jpeg.safetensors
    python benchmarks/latency_target.py data/cifar10-jpeg torchvision:mobilenet_v2
    python benchmarks/latency_target.py data/cifar10-jpeg torchvision:resnet18

The last two are trained first, on images enlarged to 96 pixels; the first such run keeps the teacher.
Ours chooses depth and width by what layers take; `prune_blocks` removes blocks until the file is fast enough; and
Torch-Pruning removes channels, ranked globally or isomorphically, at the least ratio that makes the file fast enough,
if there is one: it removes no blocks, and many narrow layers take their time.
Then each learns from the teacher, is quantized (PTQ), exported, and scored from its ONNX file on the test images. Rows
that results/latency_target.json has are not made again.
"""

import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch_pruning
from torch import nn

from compressor import Context, Data, Dataset, TorchModel, load
from compressor.data.settings import Augment
from compressor.environment import environment
from compressor.evaluation import ROUGH_IMAGES, rough_file, timed_against
from compressor.models import Removed, Size, Widths
from compressor.pipeline import Services
from compressor.pruning import estimate_batch_norm, removable_blocks
from compressor.storage import files
from stages import Distill, Prune, PruneBlocks, Quantize, Share, Target, Train

RESULT = Path(__file__).parent / "results" / "latency_target.json"
KEPT = Path("runs/latency_target")  # teachers, and what they say about images
EPOCHS, LEARNING_RATE = 4, 0.05  # of recovery
HALVINGS = 7  # of the ratio of channels
REACHED = 1.15  # times the share, timed on a machine that may be busy
ROUND_TO = 16  # for Torch-Pruning: at 8 channels int8 takes as long as unpruned

Way = Callable[[TorchModel, Context, float], TorchModel]


class Case(NamedTuple):
    """What a network is tried on: shares of the teacher's int8 latency, seeds, and how the teacher is trained."""

    side: int  # pixels
    shares: tuple[float, ...]
    seeds: tuple[int, ...]
    train_images: int | None = None
    teacher_epochs: int = 0


CASES = {
    "resnet56": Case(32, (0.25, 0.125, 0.5), (0, 1)),
    "torchvision:mobilenet_v2": Case(96, (0.5,), (0,), train_images=8000, teacher_epochs=10),
    "torchvision:resnet18": Case(96, (0.5,), (0,), train_images=8000, teacher_epochs=10),
}


class Clock:
    """Times int8 files against the teacher's."""

    def __init__(self, teacher: TorchModel, context: Context) -> None:
        self.images = next(context.data.calibration_batches(ROUGH_IMAGES, ROUGH_IMAGES))
        self.teacher = rough_file(teacher, self.images, int8=True)

    def share(self, model: TorchModel) -> float:
        """The share of the teacher's int8 latency that a network's takes."""
        return 1 / timed_against(self.teacher, [rough_file(model, self.images, int8=True)])[0].speedup


def main() -> None:
    images, name, *weights = sys.argv[1:]
    case = CASES[name]
    made = json.loads(RESULT.read_text())["rows"] if RESULT.is_file() else []
    for seed in case.seeds:
        data = Data(
            name="image_folder",
            root=images,
            size=(case.side, case.side),
            train=case.train_images,
            validation=2000,
            calibration=512,
            augment=Augment(crop=case.side // 8, flip=True),
        ).load(seed)
        context = Context(data=data, seed=seed, ships_int8=True, services=Services(soft_labels=KEPT))
        teacher = teacher_of(name, Path(weights[0]) if weights else None, context)
        context = replace(context, teachers={"teacher": teacher})
        clock = Clock(teacher, context)
        ways: dict[str, Way] = {
            "latency": lambda model, own, share: Prune(target=Target(latency=share)).run(model, own),
            "blocks": Blocks(clock),
            "torch-pruning, global": Channels(clock, isomorphic=False),
            "torch-pruning, isomorphic": Channels(clock, isomorphic=True),
        }
        inputs, labels = data.preprocess.normalise(data.test.images), data.test.labels.numpy()
        int8 = Quantize(mode="ptq").run(teacher, context).to_onnx("").predict(inputs.numpy())
        print(name, "float", accuracy(teacher.predict(inputs).numpy(), labels), "int8", accuracy(int8, labels))
        for share in case.shares:
            for label, way in ways.items():
                row = {"network": name, "share": share, "seed": seed, "way": label}
                if not any(row.items() <= other.items() for other in made):
                    made.append({**row, **outcome(way, teacher, context, share, clock, data)})
                    print(made[-1], flush=True)
                    about = {"environment": environment().model_dump(), "epochs": EPOCHS, "rows": made}
                    files.write_text(RESULT, json.dumps(about, indent=1) + "\n")


def teacher_of(name: str, weights: Path | None, context: Context) -> TorchModel:
    """The network with these weights; without any, trained here, or by an earlier run."""
    if weights is not None:
        return Train(model=name, weights=weights, epochs=0).run(None, context)
    if not CASES[name].teacher_epochs:
        sys.exit(f"{name} is not trained here; give its weights")
    folder = KEPT / context.data.train.fingerprint[:16] / name.rpartition(":")[2] / str(context.seed)
    if not folder.is_dir():
        training = Train(
            model=name, epochs=CASES[name].teacher_epochs, batch_size=64, optimizer="adamw", learning_rate=0.002
        )
        trained = training.run(None, context)
        folder.mkdir(parents=True)
        trained.save(folder)
    teacher = load(folder)
    assert isinstance(teacher, TorchModel)
    return teacher


def outcome(
    way: Way, teacher: TorchModel, context: Context, share: float, clock: Clock, data: Dataset
) -> dict[str, Any]:
    """What a way of pruning comes to."""
    started = time.monotonic()
    pruned = way(teacher, context, share)
    pruning_seconds = time.monotonic() - started
    if (least := clock.share(pruned)) > REACHED * share:
        return {"least_share": round(least, 4)}
    recovery = Distill(
        teacher="teacher", epochs=EPOCHS, learning_rate=LEARNING_RATE, warmup_epochs=1, cache={"views": EPOCHS}
    )
    recovered = recovery.run(pruned, context)
    int8 = Quantize(mode="ptq").run(recovered, context)
    inputs = data.preprocess.normalise(data.test.images)
    labels = data.test.labels.numpy()
    return {
        "measured_share": round(clock.share(recovered), 4),
        "float_accuracy_before_recovery": accuracy(pruned.predict(inputs).numpy(), labels),
        "float_accuracy": accuracy(recovered.predict(inputs).numpy(), labels),
        "int8_accuracy": accuracy(int8.to_onnx("").predict(inputs.numpy()), labels),
        "macs": pruned.counts.macs,
        "parameters": pruned.counts.parameters,
        "pruning_seconds": round(pruning_seconds, 1),
        "seconds": round(time.monotonic() - started, 1),
    }


def accuracy(logits: Any, labels: Any) -> float:
    return round(float((np.asarray(logits).argmax(1) == labels).mean()), 4)


class Blocks:
    """`prune_blocks` by MACs to the end; of the blocks that went, the fewest that make the file fast enough."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.order: Sequence[str] = ()

    def __call__(self, teacher: TorchModel, context: Context, share: float) -> TorchModel:
        if not self.order:
            self.order = list(self._shortest(teacher, context).details["removed"])
        low, high = 1, len(self.order)
        while low < high:
            middle = (low + high) // 2
            if self.clock.share(self._without(middle, teacher, context)) <= share:
                high = middle
            else:
                low = middle + 1
        return self._without(high, teacher, context)

    def _shortest(self, teacher: TorchModel, context: Context) -> TorchModel:
        network = teacher.copy_network()
        blocks = removable_blocks(network, next(context.data.calibration_batches())[:2])
        Removed(modules=tuple(blocks)).apply(network, teacher.preprocess.input_shape(2))
        least = Size.of(network, teacher.preprocess).macs / teacher.counts.macs
        return PruneBlocks(target=Share(macs=least)).run(teacher, context)

    def _without(self, count: int, teacher: TorchModel, context: Context) -> TorchModel:
        removed = Removed(modules=tuple(self.order[:count]))
        network = removed.apply(teacher.copy_network(), teacher.preprocess.input_shape(2))
        estimate_batch_norm(network, context.data.calibration_batches())
        return teacher.with_network(network, removed, details={})


class Channels:
    """Torch-Pruning by the L2 norm of groups; the least ratio of channels that makes the file fast enough."""

    def __init__(self, clock: Clock, *, isomorphic: bool) -> None:
        self.clock, self.isomorphic = clock, isomorphic

    def __call__(self, teacher: TorchModel, context: Context, share: float) -> TorchModel:
        low, high = 0.0, 1.0
        found = self._pruned(high, teacher, context)
        if self.clock.share(found) > share:
            return found
        for _ in range(HALVINGS):
            ratio = (low + high) / 2
            model = self._pruned(ratio, teacher, context)
            if self.clock.share(model) <= share:
                high, found = ratio, model
            else:
                low = ratio
        return found

    def _pruned(self, ratio: float, teacher: TorchModel, context: Context) -> TorchModel:
        network = copy.deepcopy(teacher.network).requires_grad_(True)
        Pruner(
            network,
            torch.zeros(teacher.preprocess.input_shape(2)),
            torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            isomorphic=self.isomorphic,
            pruning_ratio=ratio,
            round_to=ROUND_TO,
            ignored_layers=[[each for each in network.modules() if isinstance(each, nn.Linear)][-1]],
        ).step()
        estimate_batch_norm(network, context.data.calibration_batches())
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        return teacher.with_network(network, Widths.between(teacher.network, shapes), details={})


class Pruner(torch_pruning.pruner.BasePruner):
    """Torch-Pruning leaves a layer as it is if rounding would leave nothing of it; here it keeps so many channels."""

    def _round_to(self, n_pruned: int, current_channels: int, round_to: int) -> int:
        return current_channels - max((current_channels - n_pruned) // round_to, 1) * round_to


if __name__ == "__main__":
    main()
