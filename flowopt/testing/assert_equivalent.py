"""assert_equivalent: two models are the same function."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowopt.verification.levels import require_level

if TYPE_CHECKING:
    from flowopt.program.program import Program
    from flowopt.report.verdict import Verdict
    from flowopt.verification.levels import Level

_SHOWN = 5


def assert_equivalent(
    reference: "Program | str | Path",
    candidate: Any,
    *,
    level: "Level" = "quick",
    reproducer: str | Path | None = None,
    **options: Any,
) -> "Verdict":
    """Assert that two models are the same function, as well as ``flowopt.verify`` can see.

    Args:
        reference: a Program, or anything that ``flowopt.verify`` takes.
        candidate: likewise, or an artifact.
        level: of the verification.
        reproducer: file (``.npz``) for the inputs of the worst case.
        options: further ones of ``flowopt.verify``.

    Returns:
        The verdict, for further assertions.

    Raises:
        AssertionError: the verdict is not ``equivalent`` (or ``approximate`` within its budget); names the gate, the
            output and the input case.
        UserError: there is no such level.
        FlowoptError: whatever ``flowopt.verify`` raises.
    """
    __tracebackhide__ = True
    from flowopt.workflows.verify import verify

    require_level(level)
    earlier = _version(reproducer)
    verdict = verify(reference, candidate, level=level, reproducer=reproducer, **options)
    if not verdict:
        # Without a case that runs nothing is saved, and what lies there is another comparison's.
        saved = reproducer if _version(reproducer) != earlier else None
        raise AssertionError(_message(verdict, level, saved))
    return verdict


def _version(path: str | Path | None) -> tuple[int, int] | None:
    if path is None or not Path(path).exists():
        return None
    found = Path(path).stat()
    return found.st_ino, found.st_mtime_ns


def _message(verdict: "Verdict", level: "Level", saved: str | Path | None) -> str:
    more = len(verdict.findings) - 1
    lines = [f"{verdict.outcome.value}: {verdict.reason}" + (f" and {more} more" if more > 0 else "")]
    lines += [f"  also    {f.gate} gate: {f.where}: {f.message} (case {f.case})" for f in verdict.findings[1:_SHOWN]]
    lines.append(f"  checked with level={level!r}, seed={verdict.seed}")
    if saved is not None:
        lines.append(f"  worst case saved to {saved}; to replay it, pass that file as inputs")
    return "\n".join(lines)
