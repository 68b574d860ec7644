"""Predictor: the step of DPM-Solver++(2M). Corrector: the step before, again, with the answer at its end.

x'_c = sigma'/sigma x - alpha' B (m_0 + rho_0 (m_1 - m_0) / r + rho_1 (m' - m_0)), B = e^-h - 1, where rho solves
[1 1; r 1] rho = b, r = (lambda_1 - lambda_0) / h, b_1 = phi_1 / B, b_2 = 2 phi_2 / B; for hh = -h phi_1 = B / hh - 1,
phi_2 = phi_1 / hh - 1/2. Where there is no m_1, rho_1 = 1/2.
"""

import math

from flowopt.sampling.problem import Problem, Step
from flowopt.sampling.solvers.dpmpp_2m import exponential_step, extrapolation
from flowopt.sampling.spec import SamplerSpec
from flowopt.sampling.trace import Combination


def unipc(problem: Problem, *, lower_order_final: bool = True) -> SamplerSpec:
    """UniPC of order 2 with B(h) = e^h - 1 (bh2), on predicted data: one evaluation per step.

    The first step is of order 1, and the last, with ``lower_order_final``: as diffusers' UniPCMultistepScheduler.
    Every answer first corrects the state at which the network was asked.

    Source: Zhao et al., arXiv:2302.04867, algorithms 5 and 6.
    """
    sample, steps = problem.start, problem.steps
    answers: list[Combination] = []
    previous = sample
    was_second_order = False
    for i, step in enumerate(steps):
        answers.append(problem.evaluate(sample, step.start).data)
        if i > 0:
            order = 2 if was_second_order else 1
            before = steps[i - 2].start if order == 2 else None
            sample = _corrected(problem, previous, steps[i - 1], before, answers)
        is_last = i == len(steps) - 1
        is_second_order = i > 0 and not (is_last and (lower_order_final or problem.sigma(step.end) == 0))
        previous, used = sample, answers[-1]
        if is_second_order:
            used = used + 0.5 * extrapolation(problem, step, steps[i - 1].start, answers[-1], answers[-2])
        sample = exponential_step(problem, sample, step, used)
        was_second_order = is_second_order
    return problem.finished("unipc", sample)


def _corrected(
    problem: Problem, sample: Combination, step: Step, before: float | None, answers: list[Combination]
) -> Combination:
    """The end of ``step`` from its start, given the answer at the end, which is the last; ``before`` for order 2."""
    data, at_end = answers[-2], answers[-1]
    if before is None:
        return exponential_step(problem, sample, step, data + 0.5 * (at_end - data))
    start = problem.half_log_snr(step.start)
    size = problem.half_log_snr(step.end) - start
    hh, growth = -size, math.expm1(-size)
    phi = growth / hh - 1.0
    wanted = phi / growth, 2.0 * (phi / hh - 0.5) / growth
    ratio = (problem.half_log_snr(before) - start) / size
    # From pure noise no slope by lambda is known: its share tends to 0.
    own = 0.0 if math.isinf(ratio) else (wanted[0] - wanted[1]) / (1.0 - ratio)
    slope = own / ratio if own else 0.0
    used = data + slope * (answers[-3] - data) + (wanted[0] - own) * (at_end - data)
    return exponential_step(problem, sample, step, used)
