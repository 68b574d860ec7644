"""Publish an artifact that is built already: the file operations alone, without torch.

    python -m tests.lowering.publish SOURCE MODEL FOLDER AT      dies at the AT-th operation, with exit code 9

A process of its own and not a fork: a fork of a process with torch's threads can hang before it does anything.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from flowopt.lowering.staging import Staging

OPERATIONS = ("open", "replace", "fsync", "unlink")
LAST = 200
REPORT = "published.json"


def publish(source: Path, model_name: str, folder: Path) -> None:
    """Write the model of ``source``, the weights beside it and its ``published.json`` into ``folder``."""
    with Staging(folder) as staging:
        for weights in sorted(source.glob("weights.*.data")):
            content = weights.read_bytes()
            assert staging.weights([content[:100], content[100:]]) == (weights.name,)
        model = staging.temporary(Path(model_name).suffix)
        model.write_bytes((source / model_name).read_bytes())
        staging.commit(model, model_name, (source / REPORT).read_text())


def counted(patch: Callable[[str, object], None], at: int, then: Callable[[], None]) -> None:
    """Let the ``at``-th operation of this process do ``then`` first."""
    count = iter(range(LAST))

    def wrapped(name: str) -> Callable[..., object]:
        original = getattr(os, name)

        def operation(*args: object, **kwargs: object) -> object:
            if next(count, None) == at:
                then()
            return original(*args, **kwargs)

        return operation

    for name in OPERATIONS:
        patch(name, wrapped(name))


def main(source: str, model_name: str, folder: str, at: str) -> None:
    """Publish, and die on the way."""
    counted(lambda name, value: setattr(os, name, value), int(at), lambda: os._exit(9))
    publish(Path(source), model_name, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
