"""A small package that brings a pass: its sources, and the same as an installer leaves it."""

from collections.abc import Mapping
from pathlib import Path

CLAMP_RELU = '''
"""relu(x) = max(x, floor), by another package.

Numerical effect: none where the floor is zero. With another floor the pass is wrong, which verification has to see.
"""

from typing import Any, ClassVar

import torch
from torch import fx

from flowopt import Edit, Exactness, RewritePass, Site

aten = torch.ops.aten


class ClampRelu(RewritePass[fx.Node]):
    """Write a relu as a clamp."""

    exactness: ClassVar[Exactness] = Exactness.EXACT
    anchors: ClassVar[tuple[Any, ...]] = (aten.relu.default,)
    floor: float = 0.0
    """What is taken for zero."""

    def check(self, site: Site) -> fx.Node:
        return site.node.args[0]

    def rewrite(self, edit: Edit, plan: fx.Node) -> str:
        edit.replace(edit.anchor, edit.call(aten.clamp_min.default, plan, self.floor))
        return "is a clamp"
'''
POINTS = {"clamp-relu": "clamping_passes.relu.clamp_relu:ClampRelu"}
# A package above the pass is not to be imported by a list of passes.
LOUD_INIT = "import sys\nsys.stderr.write('clamping_passes is imported\\n')\n"
MODULES = {
    "clamping_passes.__init__": LOUD_INIT,
    "clamping_passes.relu.__init__": "",
    "clamping_passes.relu.clamp_relu": CLAMP_RELU,
}


def write_sources(folder: Path) -> None:
    """A project that pip builds."""
    _write_modules(folder, MODULES)
    (folder / "pyproject.toml").write_text(
        f"""
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "clamping-passes"
version = "1.2"

[project.entry-points."flowopt.passes"]
clamp-relu = "{POINTS["clamp-relu"]}"

[tool.setuptools]
packages = ["clamping_passes", "clamping_passes.relu"]
"""
    )


def install_by_hand(folder: Path, package: str, points: Mapping[str, str], modules: Mapping[str, str]) -> None:
    """Modules by dotted name, and the metadata of a package that is called so."""
    info = folder / f"{package.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = "\n".join(f"{name} = {value}" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[flowopt.passes]\n{lines}\n")
    _write_modules(folder, modules)


def _write_modules(folder: Path, modules: Mapping[str, str]) -> None:
    for dotted, content in modules.items():
        path = folder / Path(*dotted.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
