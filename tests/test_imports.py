"""The rules of the house about who may import what, read off the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted([*(ROOT / "compressor").rglob("*.py"), *(ROOT / "stages").rglob("*.py")])


def imported(path: Path) -> set[str]:
    """Full names of the modules a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def importers(package: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in MODULES
        if any(name == package or name.startswith(f"{package}.") for name in imported(path))
    }


def test_the_framework_never_imports_stages() -> None:
    assert not {name for name in importers("stages") if name.startswith("compressor/")}


def test_stages_never_import_one_another() -> None:
    stages = {f"stages.{path.stem}" for path in MODULES if path.parent.name == "stages"}
    for path in MODULES:
        if path.name != "__init__.py":
            assert not imported(path) & {"stages", *stages}, path


@pytest.mark.parametrize(
    ("library", "only"),
    [
        ("torch_pruning", {"stages/prune.py"}),
        ("torchao", {"compressor/quantization/observers.py"}),
        ("onnx", {"compressor/export/onnx_file.py"}),
        ("onnxruntime", {"compressor/export/onnx_file.py"}),
        ("accelerate", {"compressor/training/settings.py"}),
        ("pickle", set()),
    ],
)
def test_one_module_knows_a_library(library: str, only: set[str]) -> None:
    assert importers(library) == only


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_that_unpickles(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(node)
