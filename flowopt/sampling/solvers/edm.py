"""Churn: t^ = (1 + gamma) t, x^ = x + S_noise sqrt(t^**2 - t**2) xi. Then Heun's step from t^ to t'.

gamma = min(churn / N, sqrt(2) - 1) where S_min <= t <= S_max, else 0.
"""

import math

from flowopt.errors import UserError
from flowopt.sampling.problem import Problem
from flowopt.sampling.spec import SamplerSpec


def edm(
    problem: Problem,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = 1e300,
    churn_noise: float = 1.0,
) -> SamplerSpec:
    """The sampler of EDM and PFGM++: Heun's method with an Euler step to sigma = 0. Exact replication.

    Noise is drawn at the steps that churn.

    Raises:
        UserError: a churn below 0.

    Source: Karras et al., arXiv:2206.00364, algorithm 2; NVlabs/edm, generate.py.
    """
    if churn < 0 or churn_noise < 0:
        raise UserError(f"churn={churn:g} with churn_noise={churn_noise:g} is not possible", hint="write 0 or more")
    sample, count = problem.start, len(problem.steps)
    for step in problem.steps:
        t, end = step.start, step.end
        gamma = min(churn / count, math.sqrt(2.0) - 1.0) if churn_min <= t <= churn_max else 0.0
        raised = t + gamma * t
        if gamma:
            sample = sample + math.sqrt(raised**2 - t**2) * churn_noise * problem.draw()
        slope = problem.evaluate(sample, raised).noise
        if problem.can_ask(end):
            slope = 0.5 * (slope + problem.evaluate(sample + (end - raised) * slope, end).noise)
        else:
            problem.note_euler_step(step)
        sample = sample + (end - raised) * slope
    return problem.finished("edm", sample)
