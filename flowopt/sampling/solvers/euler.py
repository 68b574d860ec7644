"""x' = x + h v(x, t)."""

from flowopt.sampling.problem import Problem
from flowopt.sampling.spec import SamplerSpec


def euler(problem: Problem) -> SamplerSpec:
    """Euler's method, of order 1."""
    state = problem.state(problem.start, problem.times[0])
    for step in problem.steps:
        state = state + step.size * problem.slope(state, step.start)
    return problem.finished("euler", problem.sample(state, problem.times[-1]))
