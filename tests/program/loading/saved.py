"""Models as people save them: a file in the current folder, and the module's code beside it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu())
"""


def forget(name: str) -> None:
    sys.modules.pop(name, None)
    invalidate_caches()


@contextmanager
def code_of(folder: Path, name: str, code: str = CODE) -> Iterator[Any]:
    """A module of the user's, imported while something is saved, and forgotten again."""
    (folder / f"{name}.py").write_text(code)
    forget(name)
    sys.path.insert(0, str(folder))
    try:
        yield import_module(name)
    finally:
        sys.path.remove(str(folder))
        forget(name)
