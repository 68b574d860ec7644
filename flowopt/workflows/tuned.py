"""Tuned: measured choices of passes, and the file that keeps them."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from flowopt.analysis.measured_merge import MeasuredMerge
from flowopt.errors import MalformedModel, UserError
from flowopt.formats.bounded_json import parse_json
from flowopt.formats.limits import MEBIBYTE, Limits
from flowopt.formats.whole_file import whole_file
from flowopt.program.program import Program
from flowopt.report.passes import PassRecord
from flowopt.report.to_json import to_json
from flowopt.workflows.tuned_json import MERGE, Document, document, parsed

_LIMITS: Final = Limits(json=16 * MEBIBYTE, depth=8)
_AGAIN: Final = "measure again: flowopt bench --reference MODEL --tune FILE"


@dataclass(frozen=True, slots=True)
class Tuned:
    """Choices that were measured for one model on one target. ``optimize`` follows them instead of its cost models.

    A choice holds for one site and for the sizes that it was measured at. At other sizes the pass refuses the site;
    where the pipeline has no such site, the choice is left out. Both are warnings of the report. A file of a model with
    other stored tensors, or for another target, is an error.

    Attributes:
        model: digest of the names, dtypes and shapes of the model's stored tensors; their values have no part in it.
        target: what was measured for.
        runtime: name of the runtime that was timed.
        version: its version.
        threads: threads that it had within one operator.
        merges: choices of ``merge-parallel-linears``.
    """

    model: str
    target: str
    runtime: str
    version: str
    threads: int
    merges: tuple[MeasuredMerge, ...]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that ``save`` wrote.

        Raises:
            UserError: no such file, or another content; it says what is wrong where.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                raw = file.read(_LIMITS.json + 1)
        except OSError as error:
            raise UserError(f"cannot read measured choices from {path}: {error.strerror}", hint=_AGAIN) from error
        try:
            found = parsed(parse_json(raw, what=path.name, limits=_LIMITS))
        except MalformedModel as error:
            raise UserError(error.message, why=error.why, hint=_AGAIN) from error
        except UserError as error:
            raise UserError(f"{path.name} holds no measured choices: {error.message}", hint=_AGAIN) from error
        return cls(**found)

    def save(self, path: str | Path) -> None:
        """Write the choices as JSON. A reader of the file sees the old content or the new one, whole.

        Raises:
            CannotWrite: the file.
            OSError: the disk is full or fails.
        """
        path = Path(path)
        fields: Document = {name: getattr(self, name) for name in self.__slots__}
        with whole_file(path, "measured choices to") as file:
            file.write(to_json(document(fields)).encode())

    def require_for(self, program: Program, target: str) -> None:
        """Refuse to be used for another model or target.

        Raises:
            UserError: it was measured for another one.
        """
        if self.target != target:
            raise UserError(
                f"the choices were measured for {self.target}, and this build is for {target}",
                hint=f"build with target={self.target}, or {_AGAIN}",
            )
        if self.model != structure_digest(program):
            raise UserError(
                "the choices were measured for another model",
                why="its stored tensors have other names, dtypes or shapes",
                hint=_AGAIN,
            )

    def unused(self, records: Iterable[PassRecord]) -> tuple[str, ...]:
        """Names of sites whose choice no pass followed.

        Args:
            records: of the run that had these choices.
        """
        used: set[str] = set()
        for record in records:
            if record.name.split(":")[0] == MERGE:
                used |= {site.site for site in record.applied}
                used |= {refusal.site for refusal in record.refused if refusal.code == "no-gain"}
        return tuple(choice.site for choice in self.merges if choice.site not in used)


def structure_digest(program: Program) -> str:
    """SHA-256 of the names, dtypes and shapes of a program's stored tensors."""
    lines = sorted(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in program.tensors.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
