"""Where integers pay: float, the two placements and the measured one, in ONNX Runtime, 1 thread, batch 1, 224 pixels.

Untrained networks on drawn images, BatchNorm statistics set to those of the images. The figures are those by which
`placement: measured` chooses: every file in alternation with the float file, in three sessions. Other programs run on
the machine meanwhile. Rows of earlier calls are kept, so networks can be measured one by one, by name.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from compressor import Preprocess, TorchModel
from compressor.environment import environment
from compressor.evaluation import Latency, fastest_placement
from compressor.models.architectures import Architecture
from compressor.storage import files

NETWORKS = (
    "torchvision:mobilenet_v3_small",
    "torchvision:mobilenet_v3_large",
    "torchvision:efficientnet_b0",
    "torchvision:mobilenet_v2",
    "timm:convnext_atto",
    "timm:vit_tiny_patch16_224",
    "torchvision:densenet121",
)
PREPROCESS = Preprocess(size=(224, 224), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
LABELS = tuple(str(index) for index in range(1000))
RESULT = Path(__file__).parent / "results" / "placement.json"


def main(names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    images = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    rows: dict[str, Any] = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else {}
    for name in names:
        architecture = Architecture(model=name, num_classes=1000, in_channels=3)
        model = TorchModel(network_of(name, images), architecture, PREPROCESS, LABELS)
        started = time.monotonic()
        fastest = fastest_placement(model, images)
        rows[name] = {"seconds_to_choose": time.monotonic() - started, **fastest.details(fastest.chosen, {})}
        (layers, wide), chosen = fastest.tried[:2], fastest.chosen
        speeds = ", ".join(f"{kind} {shown(each.latency)}" for kind, each in (("layers", layers), ("wide", wide)))
        print(f"{name}: {speeds}, measured {shown(chosen.latency)} ({chosen.in_words()})")
        header = {"environment": environment().model_dump(mode="json"), "method": __doc__}
        files.write_json(RESULT, {**header, "rows": rows})


def network_of(name: str, images: Tensor) -> nn.Module:
    """An untrained network that normalises `images` as a trained one does."""
    source, _, own = name.partition(":")
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(own) if source == "timm" else torchvision.models.get_model(own)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(images)
    return network.eval()


def shown(latency: Latency) -> str:
    return f"{latency.speedup:.2f}x ({latency.speedup_low:.2f} to {latency.speedup_high:.2f})"


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or NETWORKS)
