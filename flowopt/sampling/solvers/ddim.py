"""x' = alpha' data + sqrt(sigma'^2 - eta^2 s^2) noise + eta s xi.

s = sigma'/sigma sqrt(sigma^2 - (alpha/alpha')^2 sigma'^2). On a variance preserving path s is
sigma'/sigma sqrt(1 - alpha^2 / alpha'^2), as the paper writes it.
"""

import math

from flowopt.errors import UserError
from flowopt.sampling.problem import Problem
from flowopt.sampling.spec import SamplerSpec
from flowopt.sampling.trace import Combination


def ddim(problem: Problem, *, eta: float = 0.0) -> SamplerSpec:
    """DDIM on any path, of order 1; with eta = 1 it is ancestral sampling, and draws noise.

    Raises:
        UserError: eta is not between 0 and 1.

    Source: Song et al., arXiv:2010.02502, equations 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta={eta:g} is not possible", hint="write a number from 0 (no noise) to 1 (ancestral)")
    sample = problem.start
    for step in problem.steps:
        sample = jump(problem, sample, step.start, step.end, eta=eta)
    return problem.finished("ddim", sample)


def jump(problem: Problem, sample: Combination, t: float, end: float, *, eta: float = 0.0) -> Combination:
    """One step of DDIM."""
    answer = problem.evaluate(sample, t)
    alpha, sigma = problem.alpha(t), problem.sigma(t)
    alpha_end, sigma_end = problem.alpha(end), problem.sigma(end)
    fresh = 0.0
    if eta and alpha_end and sigma:
        share = sigma_end / sigma * math.sqrt(max(sigma**2 - (alpha / alpha_end * sigma_end) ** 2, 0.0))
        fresh = eta * share
    kept = math.sqrt(max(sigma_end**2 - fresh**2, 0.0))
    # What is left out is left out of the table, too: at the data's end the noise may not be known.
    found = alpha_end * answer.data
    if kept:
        found = found + kept * answer.noise
    return found + fresh * problem.draw() if fresh else found
