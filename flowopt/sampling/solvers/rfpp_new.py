"""x' = alpha' data + sigma' z, with z the initial noise at every step."""

from flowopt.sampling.problem import Problem
from flowopt.sampling.spec import SamplerSpec


def rfpp_new(problem: Problem) -> SamplerSpec:
    """The rule "new" of improved rectified flows: re-noise the predicted data with the noise of the start.

    Exact replication with the convention ``rfpp``, whose z is the scaled noise.

    Source: Lee et al., arXiv:2405.20320; sangyun884/rfpp at f7b10a5d71c6, generate.py.
    """
    sample = noise = problem.start
    for step in problem.steps:
        data = problem.evaluate(sample, step.start).data
        sample = problem.alpha(step.end) * data + problem.sigma(step.end) * noise
    return problem.finished("rfpp-new", sample)
