"""Find passes by name: flowopt's by their files, others' by entry points. Nothing is imported to list them.

A name that two packages bring is nobody's: it is an error that names both, wherever that name is asked for. All other
names, and commands that do not ask for it, go on as before; the list of passes shows the clash.
"""

import importlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flowopt.errors import InternalError, UserError
from flowopt.nearest import nearest
from flowopt.pipeline.pass_entry import OWN_PACKAGE, PassEntry
from flowopt.pipeline.pass_source import read_pass_source
from flowopt.pipeline.plugins import plugin_class, plugin_entries

__all__ = ["PassEntry", "entries", "pass_class", "pass_entry"]


@cache
def entries() -> Mapping[str, PassEntry]:
    """Every pass that flowopt ships or an installed package brings, by name."""
    spec = find_spec("flowopt.passes")
    if spec is None or not spec.submodule_search_locations:
        raise InternalError("the package flowopt.passes is missing: the installation is broken")
    root = Path(next(iter(spec.submodule_search_locations)))
    own = (_entry(path) for path in sorted(root.glob("*/*.py")) if not path.name.startswith("_"))
    found = {e.name: e for e in own}
    for entry in plugin_entries():
        found[entry.name] = _clashing(found[entry.name], entry) if entry.name in found else entry
    return MappingProxyType(found)


def pass_entry(name: str) -> PassEntry:
    """What is known of a pass by its name; imports nothing.

    Raises:
        UserError: no such pass, and the nearest names; or a name that cannot be used, and why.
    """
    known = entries()
    if name not in known:
        hint = nearest(name, known, otherwise="flowopt passes lists them:")
        raise UserError(f"there is no pass {name!r}", hint=hint)
    if known[name].problem:
        raise UserError(
            f"the pass {name!r} cannot be used: {known[name].problem}",
            hint=f"uninstall the package that should not bring it, or leave the pass out: --skip {name}",
        )
    return known[name]


def pass_class(name: str) -> type[Any]:
    """The class of a pass by its name; imports torch, and the package that brings the pass.

    Raises:
        UserError: as ``pass_entry``, or the package cannot be imported.
    """
    entry = pass_entry(name)
    if entry.package != OWN_PACKAGE:
        return plugin_class(entry)
    return getattr(importlib.import_module(entry.module), entry.class_name)  # type: ignore[no-any-return]


def _clashing(one: PassEntry, other: PassEntry) -> PassEntry:
    if one.package == other.package:
        return replace(one, problem=f"the package {one.package} declares it twice")
    packages = f"{one.package} and {other.package}"
    return replace(one, package=packages, problem=f"two packages bring it, {packages}")


def _entry(path: Path) -> PassEntry:
    class_name = "".join(word.capitalize() for word in path.stem.split("_"))
    source = read_pass_source(path, class_name)
    if source is None:
        raise InternalError(f"{path.name} defines no class {class_name}")
    if not source.exactness:
        raise InternalError(f"{class_name} does not say its exactness")
    return PassEntry(
        name=path.stem.replace("_", "-"),
        family=path.parent.name,
        module=f"flowopt.passes.{path.parent.name}.{path.stem}",
        class_name=class_name,
        exactness=source.exactness,
        summary=source.summary,
        documentation=source.documentation,
        path=path,
    )
