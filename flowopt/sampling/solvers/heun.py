"""x' = x + h/2 (v(x, t) + v(x + h v(x, t), t'))."""

from flowopt.sampling.problem import Problem
from flowopt.sampling.spec import SamplerSpec


def heun(problem: Problem) -> SamplerSpec:
    """Heun's method, of order 2: two evaluations per step.

    A last step whose end has no answer is an Euler step, as in EDM, rfpp and diffusers.
    """
    state = problem.state(problem.start, problem.times[0])
    for step in problem.steps:
        slope = problem.slope(state, step.start)
        if problem.can_ask(step.end):
            slope = 0.5 * (slope + problem.slope(state + step.size * slope, step.end))
        else:
            problem.note_euler_step(step)
        state = state + step.size * slope
    return problem.finished("heun", problem.sample(state, problem.times[-1]))
