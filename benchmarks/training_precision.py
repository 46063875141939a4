"""One training step of ResNet-20 at batch 128, bf16 autocast with channels_last and plain float32 in alternation."""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from compressor.environment import environment
from compressor.evaluation import Setting, Timed, clocked, compare, in_sessions
from compressor.models.resnet import ResNet
from compressor.storage import files

BATCH = 128
RESULT = Path(__file__).parent / "results" / "training_precision.json"


def step(memory_format: torch.memory_format, *, bf16: bool) -> Timed:
    network = ResNet([3, 3, 3], [16, 32, 64]).train().to(memory_format=memory_format)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    inputs = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=memory_format)
    labels = torch.arange(BATCH) % 10

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(inputs), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda: clocked(run)


def main() -> None:
    torch.manual_seed(0)
    setting = Setting(engine="torch", device="cpu", threads=torch.get_num_threads(), batch=BATCH)
    plain = step(torch.contiguous_format, bf16=False)
    candidates = {
        "fp32 channels_last": step(torch.channels_last, bf16=False),
        "bf16": step(torch.contiguous_format, bf16=True),
        "bf16 channels_last": step(torch.channels_last, bf16=True),
    }
    times = in_sessions([partial(compare, candidate, plain, setting) for candidate in candidates.values()])
    rows = {}
    for name, latency in zip(candidates, times, strict=True):
        rows[name] = latency.model_dump()
        print(f"{name}: {latency.median_ms:.0f} ms a step, {latency.speedup:.2f}x faster than float32")
    RESULT.parent.mkdir(exist_ok=True)
    files.write_json(RESULT, {"environment": environment().model_dump(mode="json"), "rows": rows})


if __name__ == "__main__":
    main()
