"""MACs as reports give them, against those that fvcore counts: one network of every family of torchvision, 224 pixels.

    pip install fvcore
    python benchmarks/macs.py

Of fvcore's operators those that multiply and add count (convolutions, linear layers, matrix products). It does not know
scaled dot product attention, so the two products of 12 layers of ViT-B/16, 2 x 197 x 197 x 768 each, are added by hand.
"""

import logging
from pathlib import Path

import torch
import torchvision
from fvcore.nn import FlopCountAnalysis

from compressor.data.preprocess import Preprocess
from compressor.environment import environment
from compressor.models.artifact import count_macs
from compressor.storage import files

NETWORKS = (
    "alexnet", "vgg11", "squeezenet1_1", "resnet18", "resnext50_32x4d", "wide_resnet50_2", "googlenet", "densenet121",
    "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0", "efficientnet_v2_s",
    "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t", "maxvit_t",
)  # fmt: skip
PRODUCTS = ("conv", "linear", "addmm", "matmul", "bmm", "einsum")
ATTENTION = {"vit_b_16": 12 * 2 * 197 * 197 * 768}
RESULT = Path(__file__).parent / "results" / "macs.json"


def main() -> None:
    logging.disable(logging.WARNING)
    torch.backends.mha.set_fastpath_enabled(False)  # fvcore sees only what is traced
    preprocess = Preprocess(size=(224, 224), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    rows = {}
    for name in NETWORKS:
        plain = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        network = torchvision.models.get_model(name, **plain).eval()
        counted = FlopCountAnalysis(network, torch.zeros(1, 3, 224, 224)).by_operator()
        theirs = int(sum(counted[kind] for kind in PRODUCTS)) + ATTENTION.get(name, 0)
        rows[name] = {"compressor": count_macs(network, preprocess), "fvcore": theirs}
        print(name, rows[name], flush=True)
    files.write_json(RESULT, {"environment": environment().model_dump(mode="json"), "rows": rows})


if __name__ == "__main__":
    main()
