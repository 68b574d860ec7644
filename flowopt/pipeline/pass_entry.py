"""What is known of a pass before anything is imported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

OWN_PACKAGE: Final = "flowopt"


@dataclass(frozen=True, slots=True)
class PassEntry:
    """What a pass's source says about it.

    Attributes:
        name: ``fold-batch-norm``.
        family: folder below ``passes``: ``fold``; empty for a pass of another package.
        module: ``flowopt.passes.fold.fold_batch_norm``.
        class_name: ``FoldBatchNorm``.
        exactness: ``exact``; ``unknown`` where there is no source to read.
        summary: first line of the class's docstring.
        documentation: the module's docstring: equation, numerical effect, refusals.
        path: the source file; None where none was found.
        package: the distribution that brings it, with its version for another than flowopt.
        problem: why it cannot be used by this name, such as a second package that brings the name; else empty.
    """

    name: str
    family: str
    module: str
    class_name: str
    exactness: str
    summary: str
    documentation: str
    path: Path | None = None
    package: str = OWN_PACKAGE
    problem: str = ""
