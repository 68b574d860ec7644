"""Linear attentions as operators, in the form that what comes next can take."""

from collections.abc import Mapping, Sequence

from torch import nn

from flowopt.analysis.attention_sites import AttentionSite
from flowopt.errors import InternalError
from flowopt.ops.attention import InPlaceOfSoftmax
from flowopt.passes.linearize.linearize_attention import LinearizeAttention
from flowopt.pipeline.runner import run_passes
from flowopt.program.program import Program
from flowopt.report.passes import PassRecord
from flowopt.workflows.optimize import Form
from flowopt.workflows.recurrent import recurrent


def frozen_attention(
    program: Program, leaves: Mapping[str, nn.Module], chosen: Sequence[AttentionSite], to: str, form: Form
) -> tuple[Program, PassRecord]:
    """The program with the chosen attentions replaced, and the record of the pass that did it.

    Args:
        program: with the weights to keep; never changed.
        leaves: what takes the place of each, by the name of the site.
        chosen: attentions to replace.
        to: name of what replaces them.
        form: ``recurrent`` writes causal sums out over all pairs, which a step is made of.
    """
    placed = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, InPlaceOfSoftmax)}
    before = {name: leaf.linear.form for name, leaf in placed.items()}
    only = "+".join(site.name for site in chosen)
    try:
        for leaf in placed.values():
            leaf.linear.form = "parallel" if form == "recurrent" else leaf.linear.form
        run = run_passes(program, [LinearizeAttention(to=to, leaves=placed, only=only)])
    finally:
        for name, leaf in placed.items():
            leaf.linear.form = before[name]
    (record,) = run.records
    if len(record.applied) != len(chosen):
        first = next((r for r in record.refused if r.code != "not-chosen"), None)
        raise InternalError(f"{len(record.applied)} of {len(chosen)} attentions were replaced: {first}")
    return run.program, record


def require_step(program: Program, leaves: Mapping[str, nn.Module], chosen: Sequence[AttentionSite], to: str) -> None:
    """Find out before anything is trained whether the adapted model could go token by token.

    Raises:
        UserError: it could not; what stands in the way is named.
    """
    recurrent(frozen_attention(program, leaves, chosen, to, "recurrent")[0], verify=False)
