"""A search on a Ray cluster of two nodes, one of which is killed in the middle."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.search.found import Found
from compressor.search.outcome import front
from compressor_command import main
from tests.test_search import FRONT, ROOT

SEARCH = """
import os
import sys
import threading
import time
from pathlib import Path

from ray.cluster_utils import Cluster

import tests.conftest  # which makes timing short
from compressor_command import main

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
second = cluster.add_node(**NODE)


def kill() -> None:
    while len([*Path("out/trials").glob("*/.lock")]) < 2:  # both nodes work
        time.sleep(0.1)
    cluster.remove_node(second, allow_graceful=False)


threading.Thread(target=kill, daemon=True).start()
os.environ["RAY_ADDRESS"] = cluster.address
code = main("search search.yaml --out out --store store --device cpu --on ray".split())
cluster.shutdown()
sys.exit(code)
"""


TWO_BY_TWO = (  # trials wait for each other's students
    FRONT.replace("trials: 3", "trials: 4")
    .replace("[[4], [8], [12], [16]]", "[[4], [8]]")
    .replace("id: shipped", "id: shipped, opset: {choose: [18, 20]}")
)


def test_nothing_is_lost_and_nothing_made_twice_where_a_node_dies(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(TWO_BY_TWO)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", SEARCH], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "its process or node died; it is tried again" in ended.stdout
    result = Found.model_validate_json((tmp_path / "out" / "search.json").read_text())
    assert [(each.number, each.state) for each in result.outcomes] == [(number, "complete") for number in range(4)]
    assert len({str(each.values) for each in result.outcomes}) == 4
    assert {each.number for each in result.best} <= {each.number for each in front(result.outcomes)}
    made = [path for path in (tmp_path / "store" / "stages").iterdir() if not path.name.startswith(".")]
    assert len(made) == 1 + 2 + 4  # the teacher, the students, and what each trial ships


def test_a_cluster_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("search.yaml").write_text(FRONT)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["search", "search.yaml", "--on", "ray"]) == 2
    assert "--on ray needs Ray; pip install 'compressor[ray]'" in capsys.readouterr().err
