"""x' = x + h m_i, m_i = v(x + h/2 m_{i-1}, t + h/2): the midpoint rule with the slope of the step before."""

from flowopt.sampling.problem import Problem
from flowopt.sampling.spec import SamplerSpec


def fireflow(problem: Problem) -> SamplerSpec:
    """The midpoint rule for one evaluation per step and one more; of order 2.

    Source: Deng et al., "FireFlow: Fast Inversion of Rectified Flow for Image Semantic Editing".
    """
    state = problem.state(problem.start, problem.times[0])
    before = None
    for step in problem.steps:
        slope = before if before is not None else problem.slope(state, step.start)
        middle = problem.between(step, 0.5)
        if middle is None:
            problem.note_euler_step(step)
            slope = problem.slope(state, step.start) if before is not None else slope
        else:
            slope = problem.slope(state + 0.5 * step.size * slope, middle)
        state = state + step.size * slope
        before = slope
    return problem.finished("fireflow", problem.sample(state, problem.times[-1]))
