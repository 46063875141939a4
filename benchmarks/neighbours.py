"""What other tools make of the same teacher and the same images: an int8 file, and how long it took.

    python benchmarks/neighbours.py WAY runs/curve-cifar10/10 runs/curve-cifar10/WAY [EPOCHS]

WAY is `onnxruntime` or `nncf`, which quantize the teacher; `torch-pruning`, its recipe for ResNet-56 and then
`quantize_static`; or `fasterai`, whose callbacks prune and distil in one training by fastai. They need `nncf` and
`fasterai` installed. Each tool is used as its documentation shows. The second argument is a run of ours, which has the
images and, as its first stage, the teacher; the last says how long `torch-pruning` and `fasterai` train.
"""

import copy
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import quantize_speed
import torch
import torch_pruning
from numpy.typing import NDArray
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn
from torchvision.io import write_png

from compressor import Context, Dataset, Pipeline, Services, TorchModel, load
from compressor.environment import environment
from compressor.models import Widths
from compressor.report import Report
from compressor.storage import files
from compressor.storage.checkpoints import Checkpoints
from stages import Train

EARLIER = "seconds of interrupted runs"
FEWER_MACS = 2.57  # as Torch-Pruning's table has for this network
PRUNING_RATE = 0.01
FASTERAI_RATE, FASTERAI_BATCH = 0.001, 64
FASTERAI_RATIO = 0.375  # of channels, in every layer: about as many fewer MACs


class Given(NamedTuple):
    """What each way begins with."""

    teacher: TorchModel
    data: Dataset
    epochs: int  # of the ways that train


def main() -> None:
    way, run, out, *epochs = sys.argv[1:]
    if len(epochs) != (way in TRAINED):
        sys.exit(f"{' and '.join(sorted(TRAINED))} need EPOCHS, the other ways take none")
    folder = Path(out)
    if (folder / "made.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pipeline, baseline = Pipeline.load(Path(run) / "pipeline.yaml"), Report.load(Path(run)).baseline_row
    teacher = load(Path(run) / baseline.artifact, factories=pipeline.factories)
    assert isinstance(teacher, TorchModel)
    given = Given(teacher, pipeline.data.load(pipeline.seed), int(epochs[0]) if epochs else 0)
    started = time.monotonic()
    about = {"way": way, "engine": "onnxruntime", **WAYS[way](given, folder / "model.onnx")}
    seconds = time.monotonic() - started + about.pop(EARLIER, 0.0)
    about |= {"seconds": round(seconds), "environment": environment().model_dump()}
    files.write_json(folder / "made.json", about)


def by_onnxruntime(given: Given, target: Path) -> dict[str, Any]:
    """Symmetric weights for each channel, asymmetric activations; min-max on the calibration images."""
    whole = target.with_name("whole.onnx")
    whole.write_bytes(given.teacher.to_onnx("").content)
    quantize_by_onnxruntime(whole, inputs_of(given.data), target)
    return {"onnxruntime": version("onnxruntime")}


def by_nncf(given: Given, target: Path) -> dict[str, Any]:
    """`nncf.quantize` with its defaults, for a CPU."""
    import nncf

    feeds = [{"input": image[None]} for image in inputs_of(given.data)]
    model = onnx.load_from_string(given.teacher.to_onnx("").content)
    onnx.save(nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds)), target)
    return {"nncf": version("nncf"), "engine": "openvino"}


def by_torch_pruning(given: Given, target: Path) -> dict[str, Any]:
    """Global ranking of coupled channels by norm, in steps until MACs are few enough; then fine-tuned on labels."""
    teacher, epochs = given.teacher, given.epochs
    network = copy.deepcopy(teacher.network).requires_grad_(True)
    *_, classifier = (module for module in network.modules() if isinstance(module, nn.Linear))
    example = torch.zeros(teacher.preprocess.input_shape(1))
    pruner = torch_pruning.pruner.BasePruner(
        network,
        example,
        torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        iterative_steps=400,
        pruning_ratio=1.0,
        ignored_layers=[classifier],
    )
    before, _ = torch_pruning.utils.count_ops_and_params(network, example)
    while torch_pruning.utils.count_ops_and_params(network, example)[0] > before / FEWER_MACS:
        pruner.step()
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    pruned = teacher.with_network(network, Widths.between(teacher.network, shapes), details={})
    training = Train(
        epochs=epochs,
        learning_rate=PRUNING_RATE,
        schedule="multi_step",
        milestones=(epochs * 3 // 5, epochs * 4 // 5),
    )
    kept = Checkpoints(target.with_name("checkpoints"), training.model_dump_json())  # what was interrupted goes on
    trained = training.run(pruned, Context(data=given.data, services=Services(checkpoints=kept)))
    whole = target.with_name("whole.onnx")
    whole.write_bytes(trained.to_onnx("").content)
    quantize_by_onnxruntime(whole, inputs_of(given.data), target)
    return {
        "torch_pruning": version("torch-pruning"),
        "epochs": epochs,
        "macs": trained.counts.macs,
        EARLIER: kept.earlier,
    }


def by_fasterai(given: Given, target: Path) -> dict[str, Any]:
    """Pruned while it learns from the teacher, exported and quantized by its own exporter."""
    from fastai.vision import all as fastai
    from fasterai.core.criteria import large_final
    from fasterai.core.schedule import agp
    from fasterai.distill.all import KnowledgeDistillationCallback, SoftTarget
    from fasterai.export.all import export_onnx
    from fasterai.prune.all import PruneCallback

    teacher, how = given.teacher, given.teacher.preprocess
    loaders = fastai.ImageDataLoaders.from_folder(
        written(given.data, target.with_name("images")),
        train="train",
        valid="validation",  # fastai reports the loss on it; the last epoch is kept
        bs=FASTERAI_BATCH,
        img_cls=fastai.PILImage if how.channels == 3 else fastai.PILImageBW,
        device=torch.device("cpu"),
        num_workers=0,
        batch_tfms=[
            *fastai.aug_transforms(do_flip=given.data.augment.flip, max_rotate=0, max_lighting=0, max_warp=0),
            fastai.Normalize.from_stats(how.mean, how.std),
        ],
    )
    network = teacher.copy_network().requires_grad_(True)
    learner = fastai.Learner(
        loaders,
        network,
        loss_func=fastai.CrossEntropyLossFlat(),
        cbs=[
            KnowledgeDistillationCallback(teacher.copy_network().requires_grad_(False), SoftTarget),
            PruneCallback(
                pruning_ratio=FASTERAI_RATIO,
                schedule=agp,
                context="local",
                criteria=large_final,
                example_inputs=torch.zeros(how.input_shape(1)),
            ),
        ],
        path=target.parent,
    )
    learner.fit_one_cycle(given.epochs, FASTERAI_RATE)
    calibration = [torch.from_numpy(image[None]) for image in inputs_of(given.data)]
    exported = export_onnx(
        learner.model.eval(),
        calibration[0],
        target,
        quantize=True,
        quantize_mode="static",
        calibration_data=calibration,
    )
    Path(exported).rename(target)
    return {"fasterai": version("fasterai"), "epochs": given.epochs}


def inputs_of(data: Dataset) -> NDArray[np.float32]:
    """The calibration images, normalised, [N, C, H, W]."""
    return np.concatenate([batch.numpy() for batch in data.calibration_batches()])


def written(data: Dataset, folder: Path) -> Path:
    """The training and validation images as files, for a tool that reads folders."""
    for name, split in (("train", data.train), ("validation", data.validation)):
        for number, (image, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
            path = folder / name / f"{label:03}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(image, str(path))
    return folder


def quantize_by_onnxruntime(whole: Path, inputs: NDArray[np.float32], target: Path) -> None:
    """A float file on integers."""
    ready = whole.with_name("ready.onnx")
    quant_pre_process(whole, ready)
    quantize_speed.by_onnxruntime(ready, torch.from_numpy(inputs), target)


Way = Callable[[Given, Path], dict[str, Any]]
WAYS: dict[str, Way] = {
    "onnxruntime": by_onnxruntime,
    "nncf": by_nncf,
    "torch-pruning": by_torch_pruning,
    "fasterai": by_fasterai,
}
TRAINED = {"torch-pruning", "fasterai"}


if __name__ == "__main__":
    main()
