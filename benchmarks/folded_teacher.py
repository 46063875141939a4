"""A teacher's pass with BatchNorm folded into convolutions, and as it is, in alternation: bf16, channels last."""

from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import nn

from compressor.distillation.teacher import folded
from compressor.environment import environment
from compressor.evaluation import Setting, Timed, clocked, compare, in_sessions
from compressor.models.resnet import ResNet
from compressor.storage import files

RESULT = Path(__file__).parent / "results" / "folded_teacher.json"
TEACHERS = {  # batch, pixels
    "ResNet-56": (lambda: ResNet([9, 9, 9], [16, 32, 64]), 128, 32),
    "MobileNetV2": (torchvision.models.mobilenet_v2, 8, 224),
    "EfficientNet-B0": (torchvision.models.efficientnet_b0, 8, 224),
    "DenseNet-121": (torchvision.models.densenet121, 4, 224),
}


def run_of(network: nn.Module, images: torch.Tensor) -> Timed:
    @torch.no_grad()
    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            network(images)

    return lambda: clocked(run)


def main() -> None:
    rows = {}
    for name, (make, batch, pixels) in TEACHERS.items():
        teacher = make().eval().requires_grad_(False).to(memory_format=torch.channels_last)
        images = torch.randn(batch, 3, pixels, pixels).contiguous(memory_format=torch.channels_last)
        faster = folded(teacher, images[:2])
        setting = Setting(engine="torch", device="cpu", threads=torch.get_num_threads(), batch=batch)
        (latency,) = in_sessions([partial(compare, run_of(faster, images), run_of(teacher, images), setting)])
        left = sum(isinstance(module, nn.BatchNorm2d) for module in faster.modules())
        rows[name] = {"pixels": pixels, "batch_norms_left": left, **latency.model_dump()}
        print(
            f"{name}: {latency.median_ms:.0f} ms a batch, {latency.speedup:.2f}x "
            f"({latency.speedup_low:.2f} to {latency.speedup_high:.2f})"
        )
    files.write_json(RESULT, {"environment": environment().model_dump(mode="json"), "rows": rows})


if __name__ == "__main__":
    main()
