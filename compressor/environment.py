"""The machine and the versions that a number was measured with."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

# Instruction sets for int8 and bf16 arithmetic: x86, then Arm, as /proc/cpuinfo spells them.
RELEVANT_ISA = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
)
LIBRARIES = (
    "compressor",
    "torch",
    "torchvision",
    "torchao",
    "onnxruntime",
    "onnx",
    "numpy",
)
VNNI = {"avx_vnni", "avx512_vnni"}
BF16_ISA = {"avx512_bf16", "amx_bf16", "bf16"}


class Environment(BaseModel):
    """Hardware and software of a run, as `report.json` names them."""

    model_config = ConfigDict(frozen=True)

    cpu: str
    isa: tuple[str, ...]
    cores: int
    threads: int | None = None  # that torch uses; missing in older reports
    gpu: str | None
    platform: str
    python: str
    torch: str
    torchvision: str
    torch_pruning: str | None = None  # in older reports
    torchao: str
    onnxruntime: str
    onnx: str
    numpy: str
    compressor: str
    commit: str | None

    @property
    def versions(self) -> dict[str, str]:
        """The versions of Python and the libraries, by name."""
        return {name: getattr(self, name) for name in ("python", *LIBRARIES)}


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else environment().cpu


@cache
def environment() -> Environment:
    """This machine, now."""
    cpu = _cpuinfo()
    return Environment(
        cpu=cpu.get("model name") or platform.processor() or platform.machine(),
        isa=isa(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        platform=platform.platform(),
        python=platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        commit=_commit(),
    )


@cache
def isa() -> tuple[str, ...]:
    """The instruction sets of this processor that int8 and bf16 arithmetic depend on."""
    cpu = _cpuinfo()
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    return tuple(name for name in RELEVANT_ISA if name in flags)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, rather than emulating it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(BF16_ISA & set(isa()))


def saturates_int8() -> bool:
    """Whether sums of two 8-bit products overflow 16 bits here: on x86 without VNNI, or where that cannot be told."""
    return platform.machine().lower() in {"x86_64", "amd64", "i686"} and not VNNI & set(isa())


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _commit() -> str | None:
    """The commit of the project's checkout; None where it is installed without one."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
