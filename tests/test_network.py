"""Nothing talks to the network unasked: a whole run is watched, system call by system call."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """\
import sys
import compressor_command
from compressor.evaluation import latency, recording
from compressor.runs import runner
recording.MIN_SECONDS, recording.MAX_WARMUP_SECONDS, latency.PAUSES_SECONDS = 0.02, 0.2, ()
runner.try_stages = lambda *_, **__: None
sys.exit(compressor_command.main(["run", "p.yaml", "--device", "cpu"]))
"""
TALK = re.compile(r"(connect|sendto|sendmsg|sendmmsg)\(.*(AF_INET|msg_iov)")
PIPELINE = """
name: watched
data: {name: digits}
stages:
  - {stage: train, id: teacher, model: resnet, arguments: {blocks: [1], widths: [4]}, epochs: 1}
  - {stage: quantize, id: int8, mode: ptq}
  - {stage: export, id: shipped}
measure: {engines: [onnxruntime, openvino]}
tracking: [tensorboard, mlflow]
"""


def watched(program: str, folder: Path) -> list[str]:
    """What a Python process and all that it starts send to other machines, its home being `folder`."""
    log = folder / "system_calls"
    strace = ["strace", "-f", "--seccomp-bpf", "-e", "trace=network", "-o", str(log)]
    private = {name for name in os.environ if name.startswith(("ORT_", "MLFLOW_", "HF_", "CI", "TF_BUILD", "JENKINS"))}
    environment = {name: value for name, value in os.environ.items() if name not in private}
    done = subprocess.run(
        [*strace, sys.executable, "-c", program],
        cwd=folder,
        env={**environment, "HOME": str(folder), "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in log.read_text().splitlines() if TALK.search(line)]


@pytest.fixture(scope="module", autouse=True)
def needs_strace() -> None:
    works = shutil.which("strace") and subprocess.run(["strace", "-o", os.devnull, "true"], check=False).returncode == 0
    if not works and "COMPRESSOR_NEEDS_STRACE" not in os.environ:
        pytest.skip("strace cannot be used here")
    assert works


def test_a_run_sends_nothing_and_keeps_no_record_of_use(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PIPELINE)
    assert watched(RUN, tmp_path) == []
    assert {path.name for path in tmp_path.rglob("report.html")} == {"report.html"}
    recorded = {path.name for path in tmp_path.iterdir()} - {"p.yaml", "runs", "system_calls", ".cache", ".config"}
    assert recorded == set()
    assert {path.name for path in (tmp_path / ".cache").iterdir()} <= {"matplotlib", "torch"}


def test_a_data_set_of_hugging_faces_on_disk_is_read_in_silence(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\n"
        "from compressor import Data\n"
        "from tests.test_hugging_face import rows\n"
        "rows(30).to_parquet('data/train.parquet')\n"
        "Data(name='hugging_face', size=(6, 8), root=Path('data')).load(0)\n"
    )
    (tmp_path / "data").mkdir()
    assert watched(program, tmp_path) == []


def test_it_would_be_seen(tmp_path: Path) -> None:
    knock = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
    assert len(watched(knock, tmp_path)) == 1
    watched("import onnxruntime", tmp_path)
    assert (tmp_path / ".cache" / "Microsoft").exists()  # what it records, and sends where there is a network
