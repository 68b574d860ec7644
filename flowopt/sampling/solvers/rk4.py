"""x' = x + h/6 (k1 + 2 k2 + 2 k3 + k4), the classic Runge-Kutta method."""

from flowopt.sampling.problem import Problem
from flowopt.sampling.spec import SamplerSpec


def rk4(problem: Problem) -> SamplerSpec:
    """The Runge-Kutta method of order 4: four evaluations per step.

    A last step whose end has no answer is an Euler step, which is of order 2 there.
    """
    state = problem.state(problem.start, problem.times[0])
    for step in problem.steps:
        first, h = problem.slope(state, step.start), step.size
        middle = problem.between(step, 0.5)
        if middle is None or not problem.can_ask(step.end):
            problem.note_euler_step(step)
            state = state + h * first
            continue
        second = problem.slope(state + 0.5 * h * first, middle)
        third = problem.slope(state + 0.5 * h * second, middle)
        last = problem.slope(state + h * third, step.end)
        state = state + h / 6 * (first + 2 * second + 2 * third + last)
    return problem.finished("rk4", problem.sample(state, problem.times[-1]))
