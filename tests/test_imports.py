"""The rules about who may import what, checked on the source."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path for package in ("compressor", "stages") for path in (ROOT / package).rglob("*.py"))
EVERYTHING = sorted([*MODULES, *(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))])
ROOMS = (  # lowest first: a room imports from itself and from those before it
    "config",
    "storage",
    "data",
    "quantization",
    "export",
    "models",
    "evaluation",
    "pipeline",
    "training",
    "distillation",
    "pruning",
    "report",
    "runs",
    "search",
    "commands",
)
NOT_SEEN = {  # rooms that a room does without, though they lie below it
    "pruning": {"distillation"},
    "report": {"training", "distillation", "pruning"},
}
TOP = {
    "__init__",
    "__main__",
    "console",
    "environment",
    "errors",
    "plugins",
    "processes",
    "tracing",
    "tracking",
}  # modules outside the rooms, which all may use


def by_path(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """Every module that a file imports anywhere, with the name that it takes from it, if it takes one."""
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.ImportFrom) or node.level == 0, f"{path}: relative import"
    yield from imports_of(path)


def imports_of(path: Path) -> Iterator[tuple[str, str | None]]:
    """The same of a stub, whose imports are relative."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def full_names(path: Path) -> set[str]:
    """The same as dotted names: `from compressor import files` counts as `compressor.files`."""
    return {module if name is None else f"{module}.{name}" for module, name in imports(path)}


def room_of(name: str) -> str | None:
    """The room that a dotted name lies in."""
    parts = name.split(".")
    return parts[1] if parts[0] == "compressor" and len(parts) > 1 and parts[1] in ROOMS else None


def importers(package: str) -> set[str]:
    return {
        by_path(path)
        for path in MODULES
        if any(name == package or name.startswith(f"{package}.") for name in full_names(path))
    }


def test_every_module_is_in_a_room_that_says_what_it_is() -> None:
    rooms = {path.parent.name for path in (ROOT / "compressor").glob("*/__init__.py")}
    assert rooms == set(ROOMS)
    assert {path.stem for path in (ROOT / "compressor").glob("*.py")} == TOP
    for room in ROOMS:
        assert ast.get_docstring(ast.parse((ROOT / "compressor" / room / "__init__.py").read_text())), room


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(module_of(p))], ids=by_path)
def test_a_room_imports_only_from_those_below_it(path: Path) -> None:
    own = room_of(module_of(path))
    assert own is not None
    seen = {room for name in full_names(path) if (room := room_of(name)) is not None}
    assert seen <= {*ROOMS[: ROOMS.index(own) + 1]} - NOT_SEEN.get(own, set())


@pytest.mark.parametrize("name", sorted(TOP - {"__init__", "__main__"}))
def test_what_all_may_use_knows_no_room(name: str) -> None:
    assert not {room for each in full_names(ROOT / "compressor" / f"{name}.py") if (room := room_of(each))}


def test_the_rule_of_rooms_can_fail(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def late():\n    from compressor.runs import run\n    from compressor import report\n")
    assert {room_of(name) for name in full_names(path)} == {"runs", "report"}


@pytest.mark.parametrize("path", EVERYTHING, ids=by_path)
def test_nobody_imports_a_private_name(path: Path) -> None:
    private = {
        f"{module}.{name}"
        for module, name in imports(path)
        if module.partition(".")[0] in {"compressor", "stages"}
        and any(part.startswith("_") and not part.endswith("__") for part in f"{module}.{name}".split("."))
    }
    assert not private


def exported(package: str) -> set[str]:
    """What the stub of a package lists."""
    stub = ROOT.joinpath(*package.split(".")) / "__init__.pyi"
    return {name for _, name in imports_of(stub) if name} if stub.is_file() else set()


@pytest.mark.parametrize("path", MODULES, ids=by_path)
def test_a_room_exports_what_others_use(path: Path) -> None:
    own = room_of(module_of(path))
    for module, name in imports(path):
        room = room_of(module)
        is_module = name is not None and (ROOT.joinpath(*module.split("."), f"{name}.py")).is_file()
        if room not in (None, own) and name is not None and not is_module:
            assert name in exported(f"compressor.{room}"), module


@pytest.mark.parametrize("room", [*(f"compressor.{room}" for room in ROOMS), "compressor", "stages"])
def test_what_is_exported_is_there(room: str) -> None:
    package = importlib.import_module(room)
    assert all(getattr(package, name) is not None for name in exported(room))


def test_the_framework_never_imports_stages() -> None:
    assert not {name for name in importers("stages") if name.startswith("compressor/")}


def test_stages_never_import_one_another() -> None:
    for path in MODULES:
        if path.parent.name == "stages" and path.name != "__init__.py":
            assert not {name for name in full_names(path) if name.partition(".")[0] == "stages"}, path


@pytest.mark.parametrize(
    ("library", "only"),
    [
        ("torch_pruning", set()),
        ("torchao", {"compressor/quantization/observers.py"}),
        ("onnx", {f"compressor/export/{name}.py" for name in ("onnx_file", "profiling", "reading")}),
        ("onnxruntime", {"compressor/evaluation/costs/layers.py", "compressor/export/onnx_file.py"}),
        ("accelerate", {"compressor/processes.py", "compressor/training/state.py"}),
        ("openvino", {"compressor/evaluation/engines/open_vino.py"}),
        ("mlflow", {"compressor/runs/trackers/ml_flow.py"}),
        (
            "click",
            {
                f"compressor/commands/{name}.py"
                for name in ("about", "files", "main", "options", "runs", "search", "store")
            },
        ),
        ("optuna", {"compressor/search/space.py", "compressor/search/study.py"}),
        ("ray", {"compressor/search/on_ray.py"}),
        ("pickle", set()),
    ],
)
def test_one_module_knows_a_library(library: str, only: set[str]) -> None:
    assert importers(library) == only


@pytest.mark.parametrize("path", MODULES, ids=by_path)
def test_no_code_that_unpickles(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(node)
