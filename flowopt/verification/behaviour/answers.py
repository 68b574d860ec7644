"""One call of a candidate, and how its answer compares with another one or with the evidence."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowopt.report.verdict import Finding
from flowopt.verification.behaviour.equal_bits import equal_bits
from flowopt.verification.evidence import CaseEvidence
from flowopt.verification.gates import compare
from flowopt.verification.output_evidence import OutputEvidence, as_real
from flowopt.verification.running import first_line

Runner = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
GATE = "behaviour"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call gave.

    Attributes:
        returned: the tensors themselves, which may be the candidate's own memory.
        values: copies, made before anything else could run.
        problem: why there are none.
    """

    returned: Mapping[str, Tensor]
    values: dict[str, Tensor]
    problem: str = ""


def ask(run: Runner, inputs: Mapping[str, Tensor]) -> Answer:
    """Call a candidate. The inputs are handed over as they lie in memory."""
    try:
        returned = run(inputs)
        return Answer(returned, {name: value.clone() for name, value in returned.items()})
    except Exception as error:  # noqa: BLE001  # whatever a runtime raises is a finding about the candidate
        return Answer({}, {}, f"it does not run: {first_line(error)}")


def fresh(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in memory of their own."""
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in inputs.items()}


def differences(known: CaseEvidence, before: Answer, after: Answer) -> dict[str, str]:
    """Output name to how two answers differ in their bits; empty where they do not."""
    if after.problem:
        return {"the candidate": after.problem}
    named = {n: bit_difference(before.values[n], after.values.get(n)) for n in known.outputs if n in before.values}
    return {name: message for name, message in named.items() if message}


def bit_difference(before: Tensor, after: Tensor | None) -> str:
    """How many values do not have the same bits, and by how much; empty when all have."""
    if after is None:
        return "the output is missing"
    if before.shape != after.shape or before.dtype != after.dtype:
        return f"{after.dtype} {list(after.shape)}, not {before.dtype} {list(before.shape)}"
    different = ~equal_bits(before, after)
    count = int(different.sum())
    if count == 0:
        return ""
    wide = torch.complex128 if before.is_complex() else torch.float64
    distance = (after.to(wide) - before.to(wide)).abs()
    largest = float(torch.where(torch.isnan(distance), torch.inf, distance).max())
    return f"{count} of {different.numel()} values, largest difference {largest:.1e}"


def bit_note(named: Mapping[str, str]) -> str:
    """Differences of several outputs in one sentence."""
    (name, message), *more = named.items()
    return f"{name}: {message}" + (f", and {len(more)} more" if more else "")


def gated(known: CaseEvidence, answer: Answer, what: str, plain: Callable[[], Answer]) -> Iterator[Finding]:
    """The rounding gate for a case that was handed over in another way.

    Where the plain answer itself does not pass, which is a finding of another gate, it is the measure.

    Args:
        known: the evidence of the case.
        answer: of the candidate, to the case in this other way.
        what: the way, as the message begins.
        plain: gives the answer to contiguous inputs in memory of their own; asked only where it is needed.
    """
    if answer.problem:
        yield Finding(GATE, "the candidate", known.case.label, f"{what}: {answer.problem}")
        return
    found = _compared(known, answer)
    if found and _compared(known, usual := plain()):
        found = _compared(around(known, usual), answer)
    for one in found:
        yield replace(one, gate=GATE, message=f"{what}: {one.message}")


def around(known: CaseEvidence, answer: Answer, *, are_its_inputs: bool = True) -> CaseEvidence:
    """Evidence that takes an answer for the truth, because another one must agree with it.

    Both round: the own error is twice the case's, and an ulp. Decisions are left out: nothing says which of them
    rounding may turn.

    Args:
        known: evidence of the case.
        answer: of the candidate.
        are_its_inputs: the answer is to the inputs of this case; else to other ones of the same sizes, whose error may
            be as large as the case's largest.
    """
    outputs: dict[str, OutputEvidence] = {}
    for name, one in known.outputs.items():
        if one.own_error is None or name not in answer.values:
            continue
        value = answer.values[name]
        wide = value.to(torch.complex128 if value.is_complex() else torch.float64)
        ulp = torch.finfo(value.dtype).eps * as_real(wide).nan_to_num(0.0, 0.0, 0.0).abs()
        if are_its_inputs and one.own_error.shape == ulp.shape:
            own = 2 * one.own_error + ulp
        else:
            own = torch.full_like(ulp, 2 * _largest(one.own_error) + _largest(ulp))
        outputs[name] = OutputEvidence(wide, value, own)
    return replace(known, outputs=outputs)


def _compared(known: CaseEvidence, answer: Answer) -> list[Finding]:
    return [
        finding
        for name, evidence in known.outputs.items()
        if name in answer.values
        for finding in compare(name, known.case.label, evidence, answer.values[name], None).findings
    ]


def _largest(value: Tensor) -> float:
    return float(value.max()) if value.numel() else 0.0
