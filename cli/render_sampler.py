"""A folded sampler on the screen: the outcome, the loop, how far the file is from the plain loop, how to run it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowopt.cli.render import Screen
from flowopt.cli.render_results import show_artifact, show_findings
from flowopt.cli.summary import counted, sampler_headline, step_line
from flowopt.report.loop import LoopCase, LoopRecord
from flowopt.report.report import Report
from flowopt.report.verdict import Verdict

if TYPE_CHECKING:
    from flowopt.sampling.roles import Roles

_MEANINGS = {
    "noise": "unit normal",
    "draws": "unit normal: what the sampler draws on its way",
    "guidance_scale": "one number",
}
_UNCONDITIONAL = "unconditional_"


def render_sampler(
    report: Report, verdict: Verdict, model: str, roles: "Roles", folder: Path | None, last: str
) -> None:
    """One folded sampler: outcome first, what is left to do last."""
    loop = report.loop
    assert loop is not None, "a sampler has a loop"
    screen = Screen()
    screen.line(sampler_headline(report, verdict, model), style="bold")
    show_findings(screen, verdict.findings)
    screen.line(_loop(loop))
    screen.line(_bytes(loop))
    screen.line(f"network: {_roles(roles)}")
    screen.line(f"step: {step_line(report)}")
    if loop.cases:
        _cases(screen, loop)
    for note in (*loop.notes, *verdict.notes):
        screen.line(f"note: {note}")
    for warning in report.warnings:
        screen.line(f"warning: {warning}", style="yellow")
    if folder is not None:
        _run(screen, report.interface, folder, report.target)
        show_artifact(screen, report, folder)
    if last:
        screen.line(last, style="bold")


def _loop(loop: LoopRecord) -> str:
    parts = [
        f"loop: {loop.sampler}, {counted(loop.evaluations, 'evaluation')} of the network",
        f"{counted(loop.state, 'state tensor')}",
        f"form {loop.form}",
    ]
    if loop.draws:
        parts.insert(2, f"{counted(loop.draws, 'draw')} of noise")
    return ", ".join(parts)


def _bytes(loop: LoopRecord) -> str:
    replaced = f", in place of {loop.removed_bytes:,} bytes of weights" if loop.removed_bytes > 0 else ""
    return f"      what depends on the time alone: {loop.table_bytes:,} bytes of tables{replaced}"


def _roles(roles: "Roles") -> str:
    parts = [f"sample {roles.sample}", *(f"time {name}" for name in roles.times)]
    parts += [f"condition {name}" for name in roles.conditions]
    learned = " (its first half; the rest is a learned variance)" if roles.is_doubled else ""
    return f"{', '.join(parts)}; prediction {roles.prediction}{learned}"


def _cases(screen: Screen, loop: LoopRecord) -> None:
    heads = ["case", "fold", "step", "own", "sample", "own", "allowed", "growth"]
    screen.table(heads, [_row(case) for case in loop.cases], words=1, gap=1)
    screen.line()
    screen.line(
        "errors are relative, against the network in a plain loop in float64; own: that loop in the network's numbers"
    )
    screen.line("fold: in float64; step: the worst, each given the exact state; growth: of a small change of the noise")


def _row(case: LoopCase) -> list[str]:
    own = max(case.step_own_errors, default=0.0)
    errors = (case.fold_error, case.step_error, own, case.error, case.own_error, case.allowed)
    return [case.case, *(f"{error:.1e}" for error in errors), f"{case.amplification:.3g}"]


def _run(screen: Screen, interface: Mapping[str, Any], folder: Path, target: str) -> None:
    inputs, outputs = interface["inputs"], interface["outputs"]
    rows = [["input", *_described(one), _meaning(one["name"])] for one in inputs]
    rows += [["output", *_described(one), ""] for one in outputs]
    screen.table(["", "name", "dtype", "shape", ""], rows, words=5, last_is_words=True)
    trust = ", trust='code'" if target not in ("cpu", "cuda") else ""
    names = ", ".join(f"{one['name']}={one['name']}" for one in inputs)
    screen.line()
    screen.line(f"run it: flowopt.Artifact.open({str(folder)!r}{trust}).run({names})")


def _described(one: Mapping[str, Any]) -> list[str]:
    return [one["name"], one["dtype"], f"[{', '.join(map(str, one['shape']))}]"]


def _meaning(name: str) -> str:
    if name.startswith(_UNCONDITIONAL):
        return f"what stands for no {name.removeprefix(_UNCONDITIONAL)}"
    return _MEANINGS.get(name, "")
