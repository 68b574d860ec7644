"""x' = sigma'/sigma x - alpha' (e^-h - 1) (m_0 + (m_0 - m_1) / (2 r)), m the predicted data, h = lambda' - lambda.

r = (lambda_0 - lambda_1) / h, lambda = ln(alpha / sigma).
"""

import math

from flowopt.errors import UserError
from flowopt.sampling.problem import Problem, Step
from flowopt.sampling.spec import SamplerSpec
from flowopt.sampling.trace import Combination

_FEW_STEPS = 15


def dpmpp_2m(problem: Problem, *, lower_order_final: bool = True) -> SamplerSpec:
    """DPM-Solver++(2M), of order 2: one evaluation per step.

    The first step is of order 1; so is the last where it ends without noise or, with ``lower_order_final``, where
    there are fewer than 15 steps. These rules are those of diffusers' DPMSolverMultistepScheduler.

    Source: Lu et al., arXiv:2211.01095, algorithm 2.
    """
    sample, earlier = problem.start, None
    steps = problem.steps
    for i, step in enumerate(steps):
        data = problem.evaluate(sample, step.start).data
        is_last = i == len(steps) - 1
        is_first_order = is_last and (problem.sigma(step.end) == 0 or (lower_order_final and len(steps) < _FEW_STEPS))
        used = data
        if earlier is not None and not is_first_order:
            used = data + 0.5 * extrapolation(problem, step, earlier[1], data, earlier[0])
        sample = exponential_step(problem, sample, step, used)
        earlier = data, step.start
    return problem.finished("dpmpp-2m", sample)


def exponential_step(problem: Problem, sample: Combination, step: Step, data: Combination) -> Combination:
    """sigma'/sigma x - alpha' (e^-h - 1) data: exact where the predicted data does not change."""
    # e^-h as a quotient, since h is infinite at the ends of a path.
    alpha, sigma = problem.alpha(step.start), problem.sigma(step.start)
    alpha_end, sigma_end = problem.alpha(step.end), problem.sigma(step.end)
    if sigma == 0:
        raise UserError(
            f"a step in lambda = ln(alpha / sigma) cannot start at t={step.start:g}, where a sample holds no noise",
            hint="write solver=ddim, or last_time a little off it",
        )
    return sigma_end / sigma * sample + (alpha_end - sigma_end * alpha / sigma) * data


def extrapolation(problem: Problem, step: Step, before: float, data: Combination, earlier: Combination) -> Combination:
    """(m_0 - m_1) / r: how much the predicted data changes over the step if it goes on as before."""
    behind = problem.half_log_snr(step.start) - problem.half_log_snr(before)
    ahead = problem.half_log_snr(step.end) - problem.half_log_snr(step.start)
    # From pure noise no slope by lambda is known.
    return (data - earlier) * (0.0 if math.isinf(behind) else ahead / behind)
