"""x~ = x + h d, d' = v(x~, t'), x' = x + h/2 (d + d'), where d is the d' of the step before."""

from flowopt.sampling.problem import Problem
from flowopt.sampling.solvers.flowturbo import pseudo_corrected
from flowopt.sampling.spec import SamplerSpec


def pseudo_corrector(problem: Problem) -> SamplerSpec:
    """FlowTurbo's pseudo corrector at every step, of order 2: one evaluation per step and one more at the start.

    Source: Zhao et al., "FlowTurbo", section 3.2.
    """
    return pseudo_corrected(problem)
