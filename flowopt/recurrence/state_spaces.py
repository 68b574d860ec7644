"""Find diagonal state spaces that a graph computes as convolutions with a kernel."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from flowopt.analysis.exponential_kernel import diagonal_system
from flowopt.ir.float64 import raised_tensor
from flowopt.ops.ssm.diagonal_system import DiagonalSystem
from flowopt.passes.fold.fold_ssm_kernel import FoldSsmKernel
from flowopt.program.program import Program
from flowopt.rewrite.site import RefusedError, Site


@dataclass(frozen=True, slots=True)
class StateSpace:
    """y_t = Re sum_n gains[n] s_t[n] + skip u_t with s_t = poles s_{t-1} + u_t.

    Attributes:
        source: u, of rank 3.
        axis: of tokens, 1 or 2; channels are on the other one.
        system: poles and gains.
        skip: (H,), float64; None: nothing is added.
    """

    source: fx.Node
    axis: int
    system: DiagonalSystem
    skip: Tensor | None


def state_spaces(program: Program) -> tuple[Mapping[fx.Node, StateSpace], Mapping[fx.Node, str]]:
    """Every state space, by the node whose value is its output; and why other convolutions are none, by inverse.

    Those alone whose kernel is a sum of powers for any length: what ``fold-ssm-kernel`` runs in chunks. Neither taps
    nor tables are stored, so that a sequence needs no longest.
    """
    rewrite = FoldSsmKernel()
    found: dict[fx.Node, StateSpace] = {}
    others: dict[fx.Node, str] = {}
    for node in rewrite.sites(program):
        try:
            convolution, powers = rewrite.state_space(Site(program, node))
        except RefusedError as error:
            others[node] = f"it is no state space that fold-ssm-kernel knows: {error.refusal.message}"
            continue
        system = diagonal_system(powers, lambda name: raised_tensor(program.tensors[name]))
        if system is None:
            continue
        skip = None
        if convolution.skip is not None:
            skip = program.constant(convolution.skip).reshape(-1).expand(len(system.poles))
        found[convolution.result] = StateSpace(convolution.x, convolution.axis, system, skip)
    return found, others
