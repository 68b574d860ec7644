"""x' = x + h v(x + h/2 v(x, t), t + h/2).

RF-Solver writes x' = x + h v + h^2/2 v1 with v1 = (v_mid - v) / (h/2), v_mid = v(x + h/2 v, t + h/2): since
h^2/2 * 2/h = h, its v cancels, and what is left is the midpoint rule.
"""

from flowopt.sampling.problem import Problem
from flowopt.sampling.spec import SamplerSpec


def midpoint(problem: Problem) -> SamplerSpec:
    """The explicit midpoint rule, of order 2: two evaluations per step. RF-Solver is this method.

    Source: Wang et al., "Taming Rectified Flow for Inversion and Editing", arXiv:2411.04746, equation 9.
    """
    state = problem.state(problem.start, problem.times[0])
    for step in problem.steps:
        slope = problem.slope(state, step.start)
        middle = problem.between(step, 0.5)
        if middle is None:
            problem.note_euler_step(step)
        else:
            slope = problem.slope(state + 0.5 * step.size * slope, middle)
        state = state + step.size * slope
    return problem.finished("midpoint", problem.sample(state, problem.times[-1]))
