"""Every classification network of torchvision, and 30 of timm, through prune, recover, PTQ, export and ONNX Runtime.

    python benchmarks/coverage.py            # those that results/coverage.json lacks; then docs/coverage.md is written
    python benchmarks/coverage.py swin_t     # these again

Weights are random, each network runs in a process of its own, and the images are drawn. Networks of more than 50
million parameters take images of 64 pixels (ViT of 56 to 64), the others of 224.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image

from compressor import Context, Dataset, OnnxModel, TorchModel
from compressor.data.preprocess import Preprocess
from compressor.data.split import InMemory, Split
from compressor.environment import environment
from compressor.errors import CompressorError
from compressor.evaluation import timed_against
from compressor.storage import files
from stages import Export, Prune, Quantize, Target, Train

ROOT = Path(__file__).parent
RESULT, PAGE = ROOT / "results" / "coverage.json", ROOT.parent / "docs" / "coverage.md"
CLASSES, IMAGES, HELD_OUT = 10, 16, 32
LARGE = 50_000_000  # parameters
SIZES = {"inception_v3": 299, "vit_b_16": 224, "vit_b_32": 224, "vit_h_14": 56, "vit_l_16": 64, "vit_l_32": 64}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
    "vit_h_14": {"image_size": 56},
    "vit_l_16": {"image_size": 64},
    "vit_l_32": {"image_size": 64},
}
LIMIT_SECONDS = 3600
ENOUGH = 1.1  # a file that is less faster is made again with `placement: measured`
ABOUT = """\
Of torchvision's {known} classification networks {own} have been tried so far, the smallest first, and {whole} of them
go through the whole chain, as do {others} of {timm} of timm: `prune` (at most 0.7 of the MACs, `round_to: 8`), `train`
(one epoch on 16 images), `quantize` (`mode: ptq`) and `export`, with random weights and drawn images. *Float* is the
share of the MACs that stays in float. *Same class* is of 32 images in torch and ONNX Runtime; logits of new weights lie
close together. *Faster* compares the int8 file with the network's float file: one image, one thread, median of three
sessions, other programs running beside it. *Measured* is that of `placement: measured`, tried where `layers` is less
than {enough}x faster; *float* there means that no placement was faster, so the network stays in float. *s* is the time
that all of it takes."""
TIMM = (
    "resnet50d", "resnetv2_50", "resnest14d", "seresnet50", "skresnet18", "res2net50_26w_4s", "ecaresnet26t",
    "repvgg_a0", "cspresnet50", "darknet53", "dla34", "hrnet_w18_small", "dpn68", "vovnet39a", "xception41",
    "efficientnet_lite0", "tf_efficientnetv2_b0", "ghostnet_100", "mobilenetv4_conv_small",
    "mobilenetv4_conv_medium", "fbnetc_100", "rexnet_100", "lcnet_100", "convnext_atto", "convnextv2_atto",
    "vit_tiny_patch16_224", "deit_small_patch16_224", "swin_tiny_patch4_window7_224", "fastvit_t8", "mixer_s32_224",
)  # fmt: skip


def drawn(number: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A smooth picture `[3, size, size]`, the same for the same number; its class tints it."""
    generator, label = np.random.default_rng(number), number % CLASSES
    blocks = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    blocks[..., label % 3] = blocks[..., label % 3] // 4 + 19 * label
    image = Image.fromarray(blocks).resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def images_of(count: int, first: int, size: int) -> Split:
    pixels = np.stack([drawn(first + number, size) for number in range(count)])
    return Split.of(InMemory(torch.from_numpy(pixels), (torch.arange(count) + first) % CLASSES))


def measured(name: str, seconds: dict[str, float]) -> dict[str, Any]:
    """The row of a network; `seconds` are noted as stages end."""
    own, parameters = name.partition(":")[2], parameters_of(name)
    size = SIZES.get(own, 64 if parameters > LARGE else 224)
    preprocess = Preprocess(size=(size, size), channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    train, held_out = images_of(IMAGES, 0, size), images_of(HELD_OUT, IMAGES, size)
    labels = tuple(str(label) for label in range(CLASSES))
    data = Dataset(train, held_out, train, held_out.take(torch.arange(0)), labels, preprocess)
    context = Context(data=data)
    row: dict[str, Any] = {"parameters": parameters, "pixels": size}

    def step(stage: str, action: Any) -> Any:
        started = time.monotonic()
        made = action()
        seconds[stage] = round(time.monotonic() - started, 1)
        print(name, stage, seconds[stage], flush=True)
        return made

    model: TorchModel = step("build", lambda: context.new_model(name, ARGUMENTS.get(own, {})))
    pruned = step("prune", lambda: Prune(target=Target(macs=0.7), round_to=8).run(model, context))
    row |= {"macs_kept": round(pruned.details["kept"]["macs"], 3), "rigid": len(pruned.details["rigid"])}
    recover = Train(epochs=1, batch_size=8, optimizer="adamw", learning_rate=1e-4)
    recovered = step("recover", lambda: recover.run(pruned, context))
    int8 = step("quantize", lambda: Quantize(mode="ptq").run(recovered, context))
    row["float_share"] = round(sum(int8.details["float_layers"].values()), 3)
    shipped: OnnxModel = step("export", lambda: Export(agreement=0.0).run(int8, context))
    row |= {key: shipped.details["agreement"][key] for key in ("top1_agreement", "largest_logit_difference")}
    whole = step("export the float file", lambda: recovered.to_onnx("coverage"))
    row |= {"bytes": len(shipped.content), "float_bytes": len(whole.content)}
    row |= step("time", lambda: timed(shipped.content, whole.content))
    if row["faster"] < ENOUGH:
        placed = step("measure", lambda: Quantize(mode="ptq", placement="measured").run(recovered, context))
        shipped = Export(agreement=0.0).run(placed, context)
        chosen = placed.details["placement"]
        row["measured"] = {
            "placement": chosen["placement"],
            "skip": len(chosen["skip"]),
            "float_share": round(sum(placed.details.get("float_layers", {"": 1.0}).values()), 3),
            "top1_agreement": shipped.details["agreement"]["top1_agreement"],
            **step("time again", lambda: timed(shipped.content, whole.content)),
        }
    return row


def parameters_of(name: str) -> int:
    """As the network is published, for 1,000 classes."""
    kind, _, own = name.partition(":")
    if kind == "torchvision":
        count: int = next(iter(torchvision.models.get_model_weights(own))).meta["num_params"]
        return count
    import timm

    return sum(parameter.numel() for parameter in timm.create_model(own).parameters())


def timed(candidate: bytes, baseline: bytes) -> dict[str, Any]:
    """The first file in alternation with the second in ONNX Runtime: one thread, one image."""
    (latency,) = timed_against(baseline, [candidate])
    return {
        "int8_ms": round(latency.median_ms, 3),
        "faster": round(latency.speedup, 3),
        "sessions": [round(each, 3) for each in latency.sessions],
    }


def in_process(name: str) -> dict[str, Any]:
    """The row of a network from a process of its own, or what it says when it fails."""
    started = time.monotonic()
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
        last = (done.stdout.strip().splitlines() or [""])[-1]
        row = (
            json.loads(last) if last.startswith("{") else {"error": (done.stderr.strip().splitlines() or ["died"])[-1]}
        )
    except subprocess.TimeoutExpired:
        row = {"error": f"not done after {LIMIT_SECONDS} seconds"}
    return {**row, "total_seconds": round(time.monotonic() - started, 1)}


def one(name: str) -> None:
    seconds: dict[str, float] = {}
    try:
        row = measured(name, seconds)
    except CompressorError as error:
        row = {"error": str(error)}
    print(json.dumps({**row, "seconds": seconds}))


def page(rows: dict[str, dict[str, Any]]) -> str:
    """`docs/coverage.md`."""
    lines = ["# Coverage: which networks go through the whole chain", ""]
    versions = environment()
    own = [name for name in rows if name.startswith("torchvision:")]
    whole = [name for name in own if "faster" in rows[name]]
    known = len(torchvision.models.list_models(module=torchvision.models))
    others = sum("faster" in rows[name] for name in rows if name not in own)
    lines += [
        ABOUT.format(
            known=known, own=len(own), whole=len(whole), others=others, timm=len(rows) - len(own), enough=ENOUGH
        ),
        "",
        f"`benchmarks/coverage.py`, {versions.cpu}, {versions.cores} cores, torch {versions.torch},",
        f"ONNX Runtime {versions.onnxruntime}.",
        "",
        "| network | pixels | parameters, M | MACs kept | float | same class | int8, ms | faster | measured | s | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, row in sorted(rows.items(), key=lambda item: (not item[0].startswith("torchvision"), item[0])):
        cells = [name, str(row.get("pixels", "")), f"{row['parameters'] / 1e6:.1f}" if "parameters" in row else ""]
        cells += [f"{row[key]:.2f}" if key in row else "" for key in ("macs_kept", "float_share", "top1_agreement")]
        cells += [
            f"{row['int8_ms']:.2f}" if "int8_ms" in row else "",
            f"{row['faster']:.2f}x" if "faster" in row else "",
            in_words(row.get("measured")),
        ]
        cells += [f"{row['total_seconds']:.0f}", row.get("error", "").replace("|", "\\|")[:200]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def in_words(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return ""
    return "float" if measured["placement"] is None else f"{measured['faster']:.2f}x"


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        return one(sys.argv[2])
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else {}
    known = [f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)]
    known = [*sorted(known, key=parameters_of), *(f"timm:{name}" for name in TIMM)]
    again = [name for name in known if name.partition(":")[2] in sys.argv[1:] or name in sys.argv[1:]]
    for name in again or [name for name in known if name not in rows]:
        rows[name] = in_process(name)
        print(name, rows[name], flush=True)
        about = environment().model_dump()
        files.write_text(RESULT, json.dumps({"environment": about, "rows": rows}, indent=1) + "\n")
        files.write_text(PAGE, page(rows))
    return None


if __name__ == "__main__":
    main()
