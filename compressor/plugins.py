"""Plug-ins that installed packages, ours included, offer through entry points: stages, engines, trackers."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from compressor.errors import UserError, first_line

STAGES, ENGINES, TRACKERS = "compressor.stages", "compressor.engines", "compressor.trackers"


def offered(group: str, what: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name; nothing is imported.

    Raises:
        UserError: two packages offer one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: (entry.name, package_of(entry))):
        if entry.name in found:
            packages = f"{package_of(found[entry.name])} and {package_of(entry)}"
            raise UserError(f"the {what} {entry.name!r} is offered by two packages, {packages}; uninstall one of them")
        found[entry.name] = entry
    return found


def load(entry: EntryPoint, what: str, kind: type) -> Any:
    """The class that an entry point names.

    Raises:
        UserError: it cannot be imported, or is not a subclass of `kind`.
    """
    whose = f"the {what} {entry.name!r} of the package {package_of(entry)}"
    try:
        loaded = entry.load()
    except (Exception, SystemExit) as error:  # importing runs the package's code
        raise UserError(f"{whose} cannot be imported: {first_line(error)}; repair or uninstall it") from error
    if not (isinstance(loaded, type) and issubclass(loaded, kind)):
        raise UserError(f"{whose} is not a subclass of compressor.{kind.__name__}; repair or uninstall it")
    return loaded


def package_of(entry: EntryPoint) -> str:
    """The name of the package that offers an entry point."""
    return entry.dist.name if entry.dist is not None else entry.module
