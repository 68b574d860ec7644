"""x' = x + h (v_i + h / (2 h_before) (v_i - v_{i-1})): 3/2 and -1/2 on an even grid."""

from flowopt.sampling.problem import Problem
from flowopt.sampling.spec import SamplerSpec


def ab2(problem: Problem) -> SamplerSpec:
    """The method of Adams and Bashforth of order 2: one evaluation per step; the first step is Euler's.

    Source: Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", section III.5.
    """
    state = problem.state(problem.start, problem.times[0])
    before = None
    for step in problem.steps:
        slope = problem.slope(state, step.start)
        used = slope
        if before is not None:
            size, earlier = before
            used = slope + step.size / (2 * size) * (slope - earlier)
        state = state + step.size * used
        before = step.size, slope
    return problem.finished("ab2", problem.sample(state, problem.times[-1]))
