"""The code that a result depends on, as digests: if the code changes, the result is made again.

In this package, a whole room counts as soon as something in it is imported; in other code, only the modules that are
imported, of the same package or, unless it is installed, from the folder that holds it. Imports are read from the
source, so that nothing has to run; imports for type checkers do not count.

A file that is edited after it was imported counts as it was, since that is what the process runs, until it is imported
again.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from compressor.errors import UserError
from compressor.storage import files

OURS = __name__.partition(".")[0]
INSTALLED = ("site-packages", "dist-packages")

_imported: dict[Path, tuple[object, bytes]] = {}  # what a file held, and which import brought it in


def code_digests(*modules: str) -> dict[str, str]:
    """SHA-256 of every room and module that `modules` reach through imports, including this one, by name.

    Raises:
        UserError: a module cannot be found.
    """
    found: dict[str, list[Path]] = {}
    waiting = [__name__, *modules]
    while waiting:
        module = waiting.pop()
        unit = _unit(module)
        if unit in found:
            continue
        found[unit] = list(_files(unit))
        if not found[unit] and module in modules:
            raise UserError(
                f"{module} is not a Python file or package that can be imported; it is looked for beside the pipeline "
                "file, in the current directory, and among installed packages"
            )
        for path in found[unit]:
            waiting += _reached(unit, path)
    return {
        unit.replace(".", "/"): files.digest_json([files.digest(_source(path, unit)) for path in paths])
        for unit, paths in found.items()
        if paths
    }


def code_digest(*modules: str) -> str:
    """`code_digests` as one digest."""
    return files.digest_json(code_digests(*modules))


def note_imported(module: str) -> None:
    """Remember what the files hold that `module` was imported from just now: what they become later does not run."""
    with suppress(UserError):  # it came from no file
        code_digests(module)


def _unit(module: str) -> str:
    """The unit of digesting: the room of a module in this package, else the module."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == OURS else module


def _files(unit: str) -> Iterator[Path]:
    path = _path(unit)
    if path is not None and path.name == "__init__.py" and unit.startswith(f"{OURS}."):
        yield from sorted(path.parent.rglob("*.py"))
    elif path is not None:
        yield path


def _path(module: str) -> Path | None:
    """The file of a module; None if there is none."""
    top, *rest = module.split(".")
    roots = _roots(top)
    for root in roots:
        if not rest:
            return root if root.is_file() else None
        if root.name == "__init__.py":
            whole = root.parent.joinpath(*rest)
            for path in (whole / "__init__.py", whole.with_suffix(".py")):
                if path.is_file():
                    return path
    return None


@cache
def _roots(top: str) -> tuple[Path, ...]:
    """The files that a top-level name is imported from."""
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return ()
    if spec is None:
        return ()
    if spec.submodule_search_locations is not None:
        return tuple(Path(folder, "__init__.py") for folder in spec.submodule_search_locations)
    return (Path(str(spec.origin)),) if spec.has_location else ()


def _reached(unit: str, path: Path) -> Iterator[str]:
    """The modules that a file imports and the packages that hold them, if they have the same owner."""
    top = unit.partition(".")[0]
    module = _module_of(path, unit)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    yield from (".".join(unit.split(".")[:length]) for length in range(1, unit.count(".") + 1) if top != OURS)
    for name, alias in _imports(path, package, unit):
        first = name.partition(".")[0]
        if first not in (OURS, top) and not _beside(top, first):
            continue
        if alias is not None and (inside := _exported(name, alias)) is not None:
            yield inside
        elif name != OURS:
            yield name


def _module_of(path: Path, unit: str) -> str:
    """The module that a file of a unit is, which may be a whole room."""
    if not unit.startswith(f"{OURS}."):
        return unit
    inside = path.relative_to(_roots(OURS)[0].parent).with_suffix("")
    return ".".join((OURS, *inside.parts)).removesuffix(".__init__")


def _beside(top: str, name: str) -> bool:
    """Whether `name` is imported from the folder that holds `top`, where somebody else's code is not installed."""
    return top != OURS and any(folder.name not in INSTALLED for folder in _folders(top) & _folders(name))


def _folders(top: str) -> set[Path]:
    """The folders that hold a top-level module or package."""
    return {(root.parent if root.name == "__init__.py" else root).parent for root in _roots(top)}


def _exported(package: str, name: str) -> str | None:
    """The module that `from package import name` loads: `name` itself, or the one that the package's stub names."""
    if _path(f"{package}.{name}") is not None:
        return f"{package}.{name}"
    path = _path(package)
    stub = path.with_suffix(".pyi") if path is not None else None
    if stub is not None and stub.is_file():
        return next((module for module, alias in _imports(stub, package, package) if alias == name), None)
    return None


def _imports(path: Path, package: str, unit: str) -> tuple[tuple[str, str | None], ...]:
    """Every module that a file imports, with the name that it imports from it, if any."""
    return _imports_in(_source(path, unit), package)


def _source(path: Path, unit: str) -> bytes:
    """What a file of a unit holds; of one that is imported, what it held when that was first noticed."""
    imported = getattr(sys.modules.get(_module_of(path, unit)), "__spec__", None)  # another one after a reload
    if imported is None:
        return path.read_bytes()
    if path not in _imported or _imported[path][0] is not imported:
        _imported[path] = imported, path.read_bytes()
    return _imported[path][1]


@cache
def _imports_in(source: bytes, package: str) -> tuple[tuple[str, str | None], ...]:
    """`_imports` of a file with this content: a run asks for the same files once per stage and row."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ()  # importing it reports what is wrong
    found: list[tuple[str, str | None]] = []
    for node in _running(tree.body):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found += [(module, alias.name) for alias in node.names]
    return tuple(found)


def _running(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes except those for type checkers only."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _running(node.orelse)
        else:
            yield node
            yield from _running(ast.iter_child_nodes(node))
