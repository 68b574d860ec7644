"""Apply one pass to one program: visit every site, decide, edit, record."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from flowopt.errors import InternalError
from flowopt.ir.metadata import module_path, source_line
from flowopt.program.program import Program
from flowopt.report.sites import Applied, Refusal
from flowopt.rewrite.base import RewritePass
from flowopt.rewrite.edit import Claim, Edit
from flowopt.rewrite.site import RefusedError, Site
from flowopt.rewrite.transfer import transfer


@dataclass(frozen=True, slots=True)
class Step:
    """One rewrite as it happened: enough to do it again on a copy, and to check it alone.

    Attributes:
        anchor: name of the site's node.
        plan: what ``check`` decided.
        claims: values that were replaced, each to be checked.
        sizes: sizes that were replaced by equal ones.
    """

    anchor: str
    plan: Any
    claims: tuple[Claim, ...]
    sizes: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True)
class Application:
    """What one pass did: every site is either applied or refused."""

    applied: tuple[Applied, ...]
    refused: tuple[Refusal, ...]
    steps: tuple[Step, ...]


def apply(rewrite_pass: RewritePass[Any], program: Program) -> Application:
    """Rewrite ``program`` in place wherever the pass fires.

    Sites are visited in topological order, and refused ones again as long as other sites fire: a rewrite may
    clear the way for an earlier one. Every round but the last fires somewhere, so it ends.

    Raises:
        InternalError: a rewrite that replaced nothing.
        Exception: whatever the pass raises, with the pass and the site noted.
    """
    found = _sites(rewrite_pass, program)
    anchors = list(found)
    applied: dict[str, Applied] = {}
    refused: dict[str, Refusal] = {}
    steps: list[Step] = []
    open_sites = anchors
    while open_sites:
        fired = False
        for name, node in _living(program, open_sites):
            try:
                plan, site = _decide(rewrite_pass, program, node)
            except RefusedError as no:
                refused[name] = no.refusal
                continue
            refused.pop(name, None)
            step, summary = _rewrite(rewrite_pass, program, node, plan)
            applied[name] = site.applied(summary)
            steps.append(step)
            fired = True
        open_sites = [n for n in anchors if n not in applied] if fired else []
    left = {n.name for n in program.graph.nodes}
    for name, (module, source) in found.items():
        # Refused in an earlier round counts no more: a rewrite that fired later took the site with it.
        if name not in applied and (name not in refused or name not in left):
            message = "another rewrite of this pass removed it"
            refused[name] = Refusal(name, module, source, "already-rewritten", message, name)
    return Application(
        tuple(applied[n] for n in anchors if n in applied),
        tuple(refused[n] for n in anchors if n in refused),
        tuple(steps),
    )


def replay(rewrite_pass: RewritePass[Any], steps: tuple[Step, ...], program: Program) -> None:
    """Carry out recorded steps on a copy of the program that they were recorded on (its float64 twin).

    Raises:
        InternalError: the copy developed differently, so the pass depends on more than its plan.
    """
    for step in steps:
        nodes = {n.name: n for n in program.graph.nodes}
        anchor = nodes.get(step.anchor)
        if anchor is None:
            raise InternalError(f"{rewrite_pass.text()}: the copy has no site {step.anchor!r}")
        redone, _ = _rewrite(rewrite_pass, program, anchor, transfer(step.plan, nodes))
        if redone.claims != step.claims:
            raise InternalError(f"{rewrite_pass.text()}: site {step.anchor!r} was rewritten differently on the copy")


def _sites(rewrite_pass: RewritePass[Any], program: Program) -> dict[str, tuple[str, str]]:
    """Name of every anchor, with the module and the source line that it came from."""
    try:
        return {n.name: (module_path(n), source_line(n)) for n in rewrite_pass.sites(program)}
    except Exception as error:
        error.add_note(f"while {rewrite_pass.text()} looked for its sites")
        raise


def _living(program: Program, names: list[str]) -> Iterator[tuple[str, fx.Node]]:
    """The named nodes, skipping those that a rewrite has erased meanwhile."""
    nodes = {n.name: n for n in program.graph.nodes}
    for name in names:
        if name in nodes and not nodes[name]._erased:
            yield name, nodes[name]


def _decide(rewrite_pass: RewritePass[Any], program: Program, node: fx.Node) -> tuple[Any, Site]:
    site = Site(program, node, rewrite_pass.codes)
    try:
        return rewrite_pass.check(site), site
    except RefusedError:
        raise
    except Exception as error:
        error.add_note(f"while {rewrite_pass.text()} checked {node.format_node()}")
        raise


def _rewrite(rewrite_pass: RewritePass[Any], program: Program, node: fx.Node, plan: Any) -> tuple[Step, str]:
    edit = Edit(program, node, rewrite_pass.text())
    name = node.name
    try:
        summary = rewrite_pass.rewrite(edit, plan)
    except Exception as error:
        error.add_note(f"while {rewrite_pass.text()} rewrote {node.format_node()} with {plan}")
        raise
    if not edit.claims and not edit.sizes:
        raise InternalError(f"{rewrite_pass.text()} reports a rewrite of {name} but replaced nothing")
    try:
        program.drop_unused()
    except RuntimeError as error:
        # torch.fx lints the graph first, and prints all of it.
        first = str(error).splitlines()[0]
        raise InternalError(f"after {rewrite_pass.text()} rewrote {name} the graph is not legal: {first}") from error
    return Step(name, plan, tuple(edit.claims), tuple(edit.sizes)), summary
