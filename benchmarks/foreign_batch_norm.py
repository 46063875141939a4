"""A network whose BatchNorm statistics are not those of its images, with its own, with theirs, and with matched ones.

    python benchmarks/foreign_batch_norm.py weights/resnet56-cifar10-jpeg.safetensors data/cifar10-jpeg

Counts correct predictions among 2,000 training images, drawn by the seed, in torch, in float32.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from compressor import Context, Data
from compressor.environment import environment
from compressor.pruning.batch_norm import batch_statistics, estimate_batch_norm, match_batch_norm
from compressor.storage import files
from compressor.training.loop import evaluate
from stages import Train

IMAGES = 2000
RESULT = Path(__file__).parent / "results" / "foreign_batch_norm.json"


def main() -> None:
    weights, images = map(Path, sys.argv[1:])
    data = Data(name="image_folder", root=images, size=(32, 32), calibration=512).load(seed=0)
    context = Context(data=data)
    teacher = Train(model="resnet56", weights=weights, epochs=0).run(None, context)
    chosen = data.train.take(torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:IMAGES])

    def correct(network: nn.Module) -> int:
        return evaluate(network, chosen, context, "fp32", torch.contiguous_format)

    rows = {"as it is": correct(teacher.copy_network())}
    with torch.no_grad():
        inputs = data.preprocess.normalise(chosen.images)
        network = teacher.copy_network()
        with batch_statistics(network):
            rows["with the statistics of these images"] = int((network(inputs).argmax(1) == chosen.labels).sum())
    estimated = teacher.copy_network()
    estimate_batch_norm(estimated, context.data.calibration_batches())
    rows["with statistics estimated anew on the calibration images"] = correct(estimated)
    matched = teacher.copy_network()
    match_batch_norm(matched, context.data.calibration_batches())
    rows["matched first"] = correct(matched)
    estimate_batch_norm(matched, context.data.calibration_batches())
    rows["matched first, then estimated anew"] = correct(matched)
    for name, count in rows.items():
        print(f"{name}: {count} of {IMAGES} correct")
    files.write_json(RESULT, {"environment": environment().model_dump(mode="json"), "images": IMAGES, "right": rows})


if __name__ == "__main__":
    main()
