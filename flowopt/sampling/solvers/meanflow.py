"""z_r = z_t - (t - r) u(z_t, t, r), with u the average velocity from r to t."""

from flowopt.sampling.problem import Problem
from flowopt.sampling.spec import SamplerSpec


def meanflow(problem: Problem) -> SamplerSpec:
    """The step of an average velocity: exact for any length where the network is.

    Source: Geng et al., "Mean Flows for One-step Generative Modeling", equation 12; MP1 and SplitMeanFlow step alike.
    """
    sample = problem.start
    for step in problem.steps:
        sample = sample + step.size * problem.evaluate(sample, step.start, end=step.end).output
    return problem.finished("meanflow", sample)
