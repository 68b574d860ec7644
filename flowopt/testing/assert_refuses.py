"""assert_refuses: a pass stays away from a model, and says why."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowopt.pipeline.runner import PipelineRun
    from flowopt.rewrite.base import RewritePass
    from flowopt.testing.captured import Inputs, Model


def assert_refuses(
    rewrite_pass: "RewritePass[Any]",
    model: "Model",
    inputs: "Inputs" = (),
    *,
    code: str,
    dynamic: Mapping[str, Any] | None = None,
    dims: Mapping[str, tuple[int, int | None]] | None = None,
) -> "PipelineRun":
    """Assert that a pass refuses every site with ``code``, explains it, and changes nothing.

    Other arguments as for ``assert_rewrites``.

    Returns:
        The run, for further assertions.

    Raises:
        AssertionError: it fires, has no site, refuses with another code, breaks a promise that the runner checks, or
            changes the caller's model.
        Exception: whatever the pass raises, with the place noted.
    """
    __tracebackhide__ = True
    from flowopt.testing.captured import captured
    from flowopt.testing.digest import changed, digest
    from flowopt.testing.run_alone import run_alone

    program = captured(model, inputs, dynamic, dims)
    untouched = digest(model, inputs)
    run = run_alone(rewrite_pass, program)
    (record,) = run.records
    name = rewrite_pass.text()
    touched = changed(untouched, digest(model, inputs))
    if touched:
        raise AssertionError(f"{name} changed the caller's model: {', '.join(touched)}")
    if record.applied:
        raise AssertionError(f"{name} fired at {record.applied[0].site}: {record.applied[0].summary}")
    if not record.refused:
        raise AssertionError(f"{name} found no site: the model has none of its operators")
    codes = sorted({r.code for r in record.refused})
    if codes != [code]:
        other = next(r for r in record.refused if r.code != code)
        raise AssertionError(f"{name} refused with {codes}, not {code!r}: {other.message} (site {other.site})")
    silent = [r.site for r in record.refused if not r.message]
    if silent:
        raise AssertionError(f"{name} refuses {silent[0]} without a message: say which guard failed, with its values")
    return run
