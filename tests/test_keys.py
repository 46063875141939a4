"""What decides a result decides the key; each rule is tested both ways."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor import Context, Data, Measure, Pipeline, run
from compressor.console import Console
from compressor.errors import UserError
from compressor.runs.keys import changes, code_of, made_from
from compressor.storage.code import code_digest, code_digests
from stages import Export, Prune, Target, Train
from tests.test_runner import SHORT, stage_runs

ROOT = Path(__file__).parent.parent
DIGESTS = """
import json, sys
from compressor.storage.code import code_digests
print(json.dumps({module: code_digests(module) for module in sys.argv[1:]}))
"""
EVERY = {"train", "distill", "prune", "quantize", "export"}
STAGES = ("stages.train", "stages.distill", "stages.prune", "stages.quantize", "stages.export")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the project, to be edited."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("compressor", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def digests(folder: Path) -> dict[str, dict[str, str]]:
    command = [sys.executable, "-c", DIGESTS, *STAGES]
    shown = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=True
    )
    found: dict[str, dict[str, str]] = json.loads(shown.stdout)
    return found


@pytest.mark.parametrize(
    ("edited", "decides"),
    [
        ("compressor/report/wording.py", set()),
        ("compressor/commands/main.py", set()),
        ("compressor/runs/runner.py", set()),
        ("compressor/evaluation/latency.py", {"prune", "quantize", "export"}),
        ("compressor/pruning/knapsack.py", {"prune"}),
        ("compressor/training/loop.py", {"train", "distill", "prune", "quantize"}),
        ("compressor/distillation/losses/hints.py", {"distill", "quantize"}),
        ("compressor/pruning/batch_norm.py", {"prune"}),
        ("compressor/quantization/observers.py", EVERY),
        ("compressor/data/views.py", EVERY),
        ("compressor/errors.py", EVERY),
        ("stages/prune.py", {"prune"}),
        ("stages/train.py", {"train"}),
    ],
)
def test_a_stage_is_made_again_if_code_that_it_can_reach_changed(copied: Path, edited: str, decides: set[str]) -> None:
    before = digests(copied)
    path = copied / edited
    text = path.read_text()
    path.write_text(text + "\n# another sentence\n")
    try:
        after = digests(copied)
    finally:
        path.write_text(text)
    changed = {module.partition(".")[2] for module in STAGES if before[module] != after[module]}
    assert changed == decides


def test_what_only_type_checkers_read_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "hinted_nets"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "typed.py").write_text("x = 1\n")
    (package / "used.py").write_text("y = 1\n")
    (package / "model.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hinted_nets.typed import x\n"
        "else:\n    from hinted_nets.used import y\n"
    )
    assert {"hinted_nets/model", "hinted_nets/used", "hinted_nets"} <= set(code_digests("hinted_nets.model"))
    assert "hinted_nets/typed" not in code_digests("hinted_nets.model")


def test_of_a_users_package_only_what_is_imported_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "their_nets"
    (package / "parts").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "parts" / "__init__.py").write_text("from .acts import act\n")
    (package / "parts" / "acts.py").write_text("act = 1\n")
    (package / "model.py").write_text("from . import parts\ndef Net():\n    from their_nets.late import later\n")
    (package / "late.py").write_text("later = 1\n")
    pipeline = SHORT.model_copy(update={"stages": (Train(model="their_nets.model:Net", epochs=0),)})
    before = code_of(pipeline.stages[0], pipeline)
    (package / "unrelated.py").write_text("another experiment\n")  # it is not even Python
    (tmp_path / "beside.py").write_text("")
    assert code_of(pipeline.stages[0], pipeline) == before
    for path in (package / "parts" / "acts.py", package / "late.py", package / "__init__.py"):
        path.write_text(path.read_text() + "more = 2\n")
        after = code_of(pipeline.stages[0], pipeline)
        unit = ".".join(path.relative_to(tmp_path).with_suffix("").parts).removesuffix(".__init__")
        assert changes(before, after) == [unit.replace(".", "/")]
        before = after


def test_a_file_beside_a_factorys_file_counts_if_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_net.py").write_text("from their_blocks import act\nimport torch.nn as nn\n")
    (tmp_path / "their_blocks.py").write_text("import their_net\nact = 1\n")
    (tmp_path / "their_notes.py").write_text("")
    before = code_digest("their_net")
    (tmp_path / "their_notes.py").write_text("unrelated = 1\n")
    assert code_digest("their_net") == before
    (tmp_path / "their_blocks.py").write_text("act = 2\n")
    assert code_digest("their_net") != before


def test_a_package_beside_a_factorys_module_or_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for folder in ("plain_nets", "plain_layers"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    blocks = tmp_path / "plain_layers" / "blocks.py"
    for factory in ("plain_net", "plain_nets.net"):
        tmp_path.joinpath(*factory.split(".")).with_suffix(".py").write_text("from plain_layers.blocks import act\n")
        blocks.write_text("act = 1\n")
        before = code_digests(factory)
        assert {"plain_layers/blocks", "plain_layers"} <= set(before)
        blocks.write_text("act = 2\n")
        assert changes(before, code_digests(factory)) == ["plain_layers/blocks"]


def test_a_folder_with_the_name_of_installed_code_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "torch").mkdir()
    (tmp_path / "lone_net.py").write_text("import torch\n")
    assert not [name for name in code_digests("lone_net") if name.startswith("torch")]


def test_installed_code_beside_a_factory_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site-packages"
    installed.mkdir()
    monkeypatch.syspath_prepend(installed)
    (installed / "sold_net.py").write_text("import sold_layers\n")
    (installed / "sold_layers.py").write_text("")
    assert "sold_layers" not in code_digests("sold_net")


def test_a_file_that_changes_after_it_was_imported_counts_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "edited_net.py"
    path.write_text("act = 1\n")
    module = importlib.import_module("edited_net")
    before = code_digest("edited_net")
    path.write_text("act = 22\n")
    assert code_digest("edited_net") == before
    importlib.reload(module)
    assert module.act == 22
    assert code_digest("edited_net") != before
    del sys.modules["edited_net"]


@pytest.mark.parametrize("factory", ["sys:exit", "nowhere:Net"])
def test_a_factory_without_a_file_has_no_source(factory: str) -> None:
    pipeline = SHORT.model_copy(update={"stages": (Train(model=factory, epochs=0),)})
    with pytest.raises(UserError, match="is not a Python file or package"):
        code_of(pipeline.stages[0], pipeline)


def test_what_changed_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    untimed = SHORT.model_copy(update={"measure": Measure(engines=())})
    run(untimed, tmp_path, device="cpu")
    ran = stage_runs(monkeypatch)
    run(untimed.model_copy(update={"seed": 1}), tmp_path, device="cpu", console=Console.terminal())
    said = " ".join(capsys.readouterr().out.split())
    assert "teacher will be made again, since this has changed: the data, the seed" in said
    assert ran == ["teacher", "shipped"]


def test_paths_and_names_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    untimed = SHORT.model_copy(update={"measure": Measure(engines=())})
    run(untimed, tmp_path / "one", device="cpu")
    ran = stage_runs(monkeypatch)
    shutil.move(tmp_path / "one", tmp_path / "other")
    run(untimed.model_copy(update={"name": "renamed", "license": "MIT"}), tmp_path / "other", device="cpu")
    assert ran == []


def test_a_pipeline_of_ones_own_names_its_parts() -> None:
    assert isinstance(SHORT, Pipeline)
    parts = code_digests("stages.train")
    assert {"stages/train", "compressor/training", "compressor/models", "compressor/errors"} <= set(parts)
    assert not {"compressor/report", "compressor/runs", "compressor/evaluation", "stages/prune"} & set(parts)


def test_what_a_gpu_made_is_used_elsewhere() -> None:
    stage, data = Train(model="resnet8", epochs=1), Data(name="digits").load(0)
    on_cpu, on_gpu = (
        made_from(stage, None, Context(data=data, device=torch.device(name)), {}) for name in ("cpu", "cuda")
    )
    assert on_cpu == on_gpu
    assert made_from(stage, None, Context(data=data, seed=1), {}) != on_cpu


def test_where_a_table_lies_decides_nothing_but_what_it_says_does(tmp_path: Path) -> None:
    context = Context(data=Data(name="digits").load(0))
    tables = [tmp_path / name for name in ("one.json", "two.json", "other.json")]
    for path, text in zip(tables, ("{}", "{}", "{ }"), strict=True):
        path.write_text(text)
    stages = [Prune(target=Target(latency=0.5, table=path)) for path in tables]
    one, two, other = (made_from(stage, None, context, {}) for stage in stages)
    assert one == two
    assert changes(one, other) == ["what its settings refer to"]
    pipelines = [SHORT.model_copy(update={"stages": (*SHORT.stages[:1], stage)}) for stage in stages]
    assert len({pipeline.digest for pipeline in pipelines}) == 1


@pytest.mark.dry_run
def test_an_edit_while_images_are_read_is_not_what_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    code = """from compressor.models.resnet import ResNet
def Net(num_classes, in_channels):
    return ResNet([1], [4], num_classes=num_classes, in_channels=in_channels)
"""
    path = tmp_path / "moving_net.py"
    path.write_text(code)
    original = Data.load

    def edited(self: Data, *given: Any) -> Any:
        path.write_text(code + "# and something else\n")
        return original(self, *given)

    stages = (Train(id="teacher", model="moving_net:Net", epochs=0), Export(id="shipped"))
    pipeline = SHORT.model_copy(update={"stages": stages, "measure": Measure(engines=())})
    with monkeypatch.context() as patched:
        patched.setattr(Data, "load", edited)
        row, *_ = run(pipeline, tmp_path / "run", device="cpu").rows
    recorded = row.made_from["moving_net"]
    assert recorded == code_digests("moving_net")["moving_net"]  # what was imported
    importlib.reload(sys.modules["moving_net"])
    assert recorded != code_digests("moving_net")["moving_net"]
    path.write_text(code)
    importlib.reload(sys.modules["moving_net"])
    assert recorded == code_digests("moving_net")["moving_net"]


def test_where_images_without_classes_lie_decides_nothing(tmp_path: Path) -> None:
    def digest(unlabeled: Path | None) -> str:
        data = Data(name="image_folder", root=tmp_path, size=(8, 8), unlabeled=unlabeled)
        return SHORT.model_copy(update={"data": data}).digest

    assert digest(tmp_path / "one") == digest(tmp_path / "two") != digest(None)
