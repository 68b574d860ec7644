"""Assertions for tests of passes and of models.

Give models randomised weights: default gains of one, biases of zero and statistics of (0, 1) make wrong folds
look right.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowopt.pipeline.runner import PipelineRun
    from flowopt.program.program import Program
    from flowopt.report.verdict import Verdict
    from flowopt.rewrite.base import RewritePass

# Our own passes agree with the oracle to this part of a row's scale; users' pipelines get 1e-9.
UNIT_TEST_TWIN_TOLERANCE = 1e-10


def assert_rewrites(
    rewrite_pass: "RewritePass[Any]",
    model: "nn.Module | Program",
    inputs: "tuple[Any, ...] | Mapping[str, Any]" = (),
    *,
    before: Mapping[str, int],
    after: Mapping[str, int],
    dynamic: Mapping[str, Any] | None = None,
    dims: Mapping[str, tuple[int, int | None]] | None = None,
    seed: int = 0,
) -> "PipelineRun":
    """Assert that a pass fires and is right.

    Checks operator counts before and after, the float64 twin to 1e-10, rounding, specials and every site on its
    own, that a second run changes nothing, and that the caller's model is untouched.

    Args:
        rewrite_pass: the pass, alone; run ``canonicalize-aten`` first where it needs canonical spellings.
        model: a module in eval mode with randomised weights, or a captured Program.
        inputs: example inputs for a module, by position or by name.
        before: operator (``aten.conv2d``) to its number of calls in the captured graph.
        after: the same after the pass.
        dynamic: free dimensions, as for ``flowopt.capture``.
        dims: their ranges.
        seed: of the verification's inputs.

    Returns:
        The run, for further assertions.

    Raises:
        AssertionError: says which of these does not hold.
    """
    from flowopt.ir.text import operator_census
    from flowopt.pipeline.runner import run_passes
    from flowopt.verification.verify_passes import VerifyPasses

    program = _captured(model, inputs, dynamic, dims)
    digest = _digest(model)
    _assert_counts("before", operator_census(program.graph), before)
    run = run_passes(program, [rewrite_pass], [VerifyPasses(seed=seed)])
    (record,) = run.records
    name = rewrite_pass.text()
    assert record.applied, f"{name} refused every site: {record.refusal_counts}; {_first_message(record.refused)}"
    assert record.outcome == "kept", f"{name} was reverted: {record.reason}"
    _assert_counts("after", operator_census(run.program.graph), after)
    assert record.verdict is not None
    worst = max((f.twin_error or 0.0 for f in record.verdict.figures), default=0.0)
    assert worst <= UNIT_TEST_TWIN_TOLERANCE, f"{name}: the float64 twin differs by {worst:.2e} of a row's scale"
    again = run_passes(run.program, [rewrite_pass])
    assert not again.records[0].applied, (
        f"{name} is not idempotent: it fires again at {again.records[0].applied[0].site}"
    )
    assert _digest(model) == digest, f"{name} changed the caller's model"
    return run


def assert_refuses(
    rewrite_pass: "RewritePass[Any]",
    model: "nn.Module | Program",
    inputs: "tuple[Any, ...] | Mapping[str, Any]" = (),
    *,
    code: str,
    dynamic: Mapping[str, Any] | None = None,
    dims: Mapping[str, tuple[int, int | None]] | None = None,
) -> "PipelineRun":
    """Assert that a pass refuses every site with ``code``, explains it, and changes nothing.

    Arguments as for ``assert_rewrites``.

    Raises:
        AssertionError: it fires, has no site, or refuses with another code.
    """
    from flowopt.ir.text import graph_text
    from flowopt.pipeline.runner import run_passes

    program = _captured(model, inputs, dynamic, dims)
    digest, text = _digest(model), graph_text(program.graph)
    run = run_passes(program, [rewrite_pass])
    (record,) = run.records
    name = rewrite_pass.text()
    assert not record.applied, f"{name} fired at {record.applied[0].site}: {record.applied[0].summary}"
    assert record.refused, f"{name} found no site"
    codes = {r.code for r in record.refused}
    assert codes == {code}, f"{name} refused with {sorted(codes)}, not {code!r}: {_first_message(record.refused)}"
    assert all(r.message for r in record.refused), f"{name} refuses without a message"
    assert graph_text(run.program.graph) == text, f"{name} refused but changed the graph"
    assert _digest(model) == digest, f"{name} changed the caller's model"
    return run


def assert_equivalent(reference: "Program | str | Path", candidate: Any, **options: Any) -> "Verdict":
    """Assert that two models are the same function, as well as ``flowopt.verify`` can see.

    Args:
        reference: a Program, or anything that ``flowopt.verify`` takes.
        candidate: likewise, or an artifact.
        options: of ``flowopt.verify``.

    Raises:
        AssertionError: the verdict is not ``equivalent`` (or ``approximate`` within its budget); names the gate, the
            output and the input case.
    """
    from flowopt.workflows.verify import verify

    verdict = verify(reference, candidate, **options)
    more = len(verdict.findings) - 1
    assert verdict, f"{verdict.outcome.value}: {verdict.reason}" + (f" and {more} more" if more > 0 else "")
    return verdict


def _captured(
    model: "nn.Module | Program",
    inputs: "tuple[Any, ...] | Mapping[str, Any]",
    dynamic: Mapping[str, Any] | None,
    dims: Mapping[str, tuple[int, int | None]] | None,
) -> "Program":
    from flowopt.program.capture import capture
    from flowopt.program.program import Program

    if isinstance(model, Program):
        return model
    args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (inputs, {})
    return capture(model, args, kwargs, dynamic=dynamic, dims=dims)


def _digest(model: "nn.Module | Program") -> str:
    """Content of every tensor, and the graph of a program."""
    from flowopt.ir.text import graph_text
    from flowopt.program.program import Program

    tensors = model.tensors if isinstance(model, Program) else model.state_dict()
    digest = hashlib.sha256(graph_text(model.graph).encode() if isinstance(model, Program) else b"")
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: "Tensor") -> bytes:
    import torch

    return bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _assert_counts(when: str, census: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    found = {operator: census.get(operator, 0) for operator in wanted}
    assert found == dict(wanted), f"operators {when}: {found}, expected {dict(wanted)}; all: {dict(census)}"


def _first_message(refused: Any) -> str:
    return refused[0].message if refused else "no site"
