"""The code that a result depends on, as a digest: what was made by other code is made again."""

import ast
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from compressor.errors import UserError
from compressor.storage import files


def code_digest(modules: Iterable[str]) -> str:
    """SHA-256 over the Python files of the top-level packages that hold `modules`, and of this one.

    Raises:
        UserError: a module cannot be found.
    """
    sources = {path for module in {__name__, *modules} for path in _sources(module)}
    return files.digest_json(sorted([name, files.digest(path.read_bytes())] for name, path in sources))


def _sources(module: str) -> Iterator[tuple[str, Path]]:
    """The Python files of the top-level package that holds `module`, by their names in it.

    A module that is one file is taken with those beside it that it imports.
    """
    package = module.partition(".")[0]
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        raise UserError(
            f"{module} is no Python file or package that can be imported; it is looked for beside the pipeline that "
            "`compress run` is given, where you are, and among what is installed"
        )
    if spec.submodule_search_locations is None:
        yield from _with_neighbours(Path(str(spec.origin)), {})
        return
    for folder in spec.submodule_search_locations:
        for path in Path(folder).rglob("*.py"):
            yield f"{package}/{path.relative_to(folder).as_posix()}", path


def _with_neighbours(path: Path, known: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    """A file, and those of its folder that it imports, and so on; each by its name, once."""
    if path.stem in known or not path.is_file():
        return
    known[path.stem] = path
    yield path.stem, path
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return  # importing it says what is wrong
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in names:
            yield from _with_neighbours(path.with_name(f"{name.partition('.')[0]}.py"), known)
