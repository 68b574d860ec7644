"""Passes of other packages: entry points of the group ``flowopt.passes``.

    [project.entry-points."flowopt.passes"]
    my-pass = "my_package.my_module:MyPass"

They are listed out of the packages' metadata and sources; a package is imported when one of its passes is used.
"""

import importlib
import re
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flowopt.errors import UserError
from flowopt.pipeline.pass_entry import PassEntry
from flowopt.pipeline.pass_source import PassSource, read_pass_source
from flowopt.pipeline.presets import PRESETS

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP: Final = "flowopt.passes"

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_VALUE: Final = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<attribute>[A-Za-z_]\w*)")
_UNREAD: Final = PassSource("", "its source is not here to be read; it is known when it is used", "")


def plugin_entries() -> Iterator[PassEntry]:
    """What installed packages declare, in the order of names; one that cannot be used says so in ``problem``.

    Raises:
        UserError: the metadata of some installed package cannot be read; names the package.
    """
    # It takes as long to import as all of --help, which lists no passes.
    from importlib.metadata import entry_points

    try:
        points = tuple(entry_points(group=GROUP))
    # A file of metadata that is damaged or misspelled; its readers raise whatever comes.
    except Exception as error:
        raise UserError(
            f"the entry points of the installed package {_damaged_package()} cannot be read",
            why=f"{type(error).__name__}: {error}",
            hint="install that package again, or uninstall it",
        ) from error
    yield from sorted((_entry(point) for point in points), key=lambda entry: (entry.name, entry.package))


def plugin_class(entry: PassEntry) -> type[Any]:
    """The class of a pass of another package; imports the package, and torch.

    Raises:
        UserError: the package cannot be imported, has no such class, or the class is no pass of this name.
    """
    package = entry.package
    try:
        found = getattr(importlib.import_module(entry.module), entry.class_name)
    # Whatever a package does while it is imported, it is the package's failure and not ours.
    except (Exception, SystemExit) as error:
        raise UserError(
            f"the pass {entry.name!r} of the package {package} cannot be imported",
            why=f"{type(error).__name__}: {error}",
            hint=f"repair or uninstall the package, or leave the pass out: --skip {entry.name}",
        ) from error
    from flowopt.rewrite.base import RewritePass

    if not isinstance(found, type) or not issubclass(found, RewritePass):
        raise UserError(
            f"the pass {entry.name!r} of the package {package} is no pass",
            why=f"{entry.module}:{entry.class_name} is no subclass of flowopt.RewritePass",
            hint="ask whoever made the package to name a class that is one",
        )
    if found.pass_name() != entry.name:
        raise UserError(
            f"the pass {entry.name!r} of the package {package} is called {found.pass_name()!r}",
            why="a report names a pass by its class, and that name has to be found again",
            hint=f'its entry point has to be: {found.pass_name()} = "{entry.module}:{entry.class_name}"',
        )
    return found


def _damaged_package() -> str:
    from importlib.metadata import distributions

    for distribution in distributions():
        try:
            tuple(distribution.entry_points)
        except Exception:  # noqa: BLE001  # the one that was looked for
            return str(distribution.name or "unknown")
    return "unknown"


def _entry(point: "EntryPoint") -> PassEntry:
    distribution = point.dist
    package = f"{distribution.name or 'unknown'} {distribution.version or ''}".strip() if distribution else "unknown"
    value = _VALUE.fullmatch(point.value)
    module, class_name = (value["module"], value["attribute"]) if value else ("", "")
    problem = ""
    if value is None:
        problem = f"the package {package} gives {point.value!r} for it, which is not module:Class"
    elif not _NAME.fullmatch(point.name) or point.name in PRESETS:
        what = "the name of a preset" if point.name in PRESETS else "no name in lower case with dashes"
        problem = f"the package {package} calls a pass {point.name!r}, which is {what}"
    path = _source_file(module) if value else None
    source = _source(path, class_name)
    return PassEntry(
        name=point.name,
        family="",
        module=module,
        class_name=class_name,
        exactness=source.exactness or "unknown",
        summary=source.summary,
        documentation=source.documentation or source.summary,
        path=None if source is _UNREAD else path,
        package=package,
        problem=problem,
    )


def _source(path: Path | None, class_name: str) -> PassSource:
    if path is None:
        return _UNREAD
    try:
        return read_pass_source(path, class_name) or _UNREAD
    except (OSError, ValueError, SyntaxError, RecursionError):
        return _UNREAD


def _source_file(module: str) -> Path | None:
    """Where a module's source lies. Its packages are looked up and not imported, which ``find_spec`` alone would do."""
    first, *rest = module.split(".")
    try:
        spec: ModuleSpec | None = find_spec(first)
        for part in rest:
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = PathFinder.find_spec(f"{spec.name}.{part}", list(spec.submodule_search_locations))
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)
