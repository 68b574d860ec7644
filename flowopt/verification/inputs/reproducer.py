"""The reproducer: the inputs of the worst case in a file that replays."""

import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from torch import Tensor

from flowopt.formats.whole_file import whole_file
from flowopt.program.program import Program
from flowopt.report.verdict import Verdict
from flowopt.verification.evidence import Evidence
from flowopt.verification.inputs.case import Case
from flowopt.verification.inputs.lossless import STORED_AS
from flowopt.verification.inputs.user_data import OVERRIDE_PREFIX

# The earliest time that a zip archive can hold: the same case gives the same bytes on every day.
_NO_TIME: Final = (1980, 1, 1, 0, 0, 0)
_UNIX: Final = 3
_MODE: Final = 0o644 << 16


def save_reproducer(path: Path, case: Case, program: Program) -> None:
    """Write a case as one ``.npz`` file that ``flowopt verify REFERENCE CANDIDATE --inputs FILE`` replays.

    ``user_cases`` reads every value back, bit for bit but for the payloads of NaNs. Dtypes that NumPy lacks are stored
    in a wider one (bfloat16 as float32); tensors that take the place of a node are called ``override.<node name>``.
    The same case gives the same bytes. A reader of the file sees the old content or the new one, whole.

    Args:
        path: the file; its folder exists.
        case: of the program.
        program: the reference, whose inputs come first and in order.

    Raises:
        CannotWrite: the file.
        OSError: the disk is full or fails.
    """
    tensors = {i.name: case.inputs[i.name] for i in program.inputs}
    tensors |= {OVERRIDE_PREFIX + name: case.overrides[name] for name in sorted(case.overrides)}
    with whole_file(path, "the reproducer") as file:
        _write(file, tensors)


def worst_case(verdict: Verdict, evidence: Evidence) -> Case | None:
    """The case of the first finding, or, without findings, that of the largest ratio.

    Findings at a site have cases of their own, which stand for no inputs of the model: the next one counts. None where
    no case is left.
    """
    cases = {known.case.label: known.case for known in evidence.cases}
    labels = [finding.case for finding in verdict.findings]
    if not labels:
        ranked = sorted(verdict.figures, key=lambda one: math.inf if math.isnan(one.ratio) else one.ratio)
        labels = [one.case for one in reversed(ranked)]
    return next((cases[label] for label in labels if label in cases), None)


def _write(file: BinaryIO, tensors: dict[str, Tensor]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, tensor in tensors.items():
            entry = zipfile.ZipInfo(f"{name}.npy", _NO_TIME)
            entry.create_system, entry.external_attr = _UNIX, _MODE
            # The size is not known when the entry's header is written: 4 GiB must have room in it.
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _array(tensor), version=(1, 0), allow_pickle=False)


def _array(tensor: Tensor) -> "np.ndarray[Any, np.dtype[Any]]":
    stored = tensor.detach().cpu().to(STORED_AS.get(tensor.dtype, tensor.dtype))
    array: np.ndarray[Any, np.dtype[Any]] = stored.resolve_conj().resolve_neg().contiguous().numpy()
    return array
