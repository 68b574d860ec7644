"""Whose memory is it that a candidate returns?"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flowopt.report.verdict import Finding
from flowopt.verification.behaviour.answers import GATE, Answer, Runner, ask, bit_difference, differences, fresh
from flowopt.verification.behaviour.equal_bits import same_bits
from flowopt.verification.evidence import CaseEvidence
from flowopt.verification.running import first_line


def check_overwritten(known: CaseEvidence, answer: Answer) -> Iterator[Finding]:
    """A finding when later calls have changed the tensors that an earlier one returned."""
    for name in known.outputs:
        message = bit_difference(answer.values[name], answer.returned[name]) if name in answer.values else ""
        if message:
            what = f"a later call wrote into the tensor that an earlier one had returned: {message}"
            yield Finding(GATE, name, known.case.label, what)
            return


def check_written_to(
    cases: Sequence[CaseEvidence], known: CaseEvidence, answer: Answer, run: Runner
) -> Iterator[Finding | str]:
    """Write into the tensors of an answer, and call again with fresh copies of the inputs.

    A torch model may return a view of its input; that shows only where a later call changes, and none does. It may
    also return a stored tensor, and the candidate may do as the original does: such outputs are left alone. What was
    written is undone, because it may be a weight.

    Args:
        cases: that tell which outputs are stored tensors.
        known: the case of the answer.
        answer: whose returned tensors are written to.
        run: the candidate.
    """
    written = {n: answer.returned[n] for n in known.outputs if n in answer.values and not _is_stored(n, cases)}
    changed: dict[str, Tensor] = {}
    try:
        for name, value in written.items():
            # Undone before it is done: what torch refuses to write to must be known in time.
            _write(value, answer.values[name])
            changed[name] = value
            _overwrite(value)
        after = ask(run, fresh(known.case.inputs))
    except RuntimeError as error:
        yield f"{known.case.label}: whether it returns memory of its own was not checked: {first_line(error)}"
        return
    finally:
        for name, value in changed.items():
            _write(value, answer.values[name])
    for name, message in differences(known, answer, after).items():
        what = f"after the tensors that it had returned were written to, the same inputs give another answer: {message}"
        yield Finding(GATE, name, known.case.label, what)
        return


def _is_stored(name: str, cases: Sequence[CaseEvidence]) -> bool:
    """True when the original returns a stored tensor, or a view of one: equal in all cases, or one memory for two."""
    values = [known.outputs[name].original for known in cases]
    memories = {value.untyped_storage().data_ptr() for value in values if value.numel()}
    filled = sum(value.numel() > 0 for value in values)
    return len(memories) < filled or all(same_bits(value, values[0]) for value in values)


def _overwrite(value: Tensor) -> None:
    if value.is_floating_point() or value.is_complex():
        number = torch.nan
    else:
        number = 0 if bool(value.any()) else 1
    _write(value, torch.full_like(value, number))


def _write(target: Tensor, value: Tensor) -> None:
    # torch does not write through axes with stride 0.
    for axis, stride in enumerate(target.stride()):
        if stride == 0 and target.shape[axis] > 1:
            target, value = target.narrow(axis, 0, 1), value.narrow(axis, 0, 1)
    with torch.no_grad():
        target.copy_(value)
