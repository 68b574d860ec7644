"""x' = alpha' data + sigma' noise from the upper edge of each phase to the next."""

from flowopt.errors import UserError
from flowopt.sampling.problem import Problem
from flowopt.sampling.solvers.ddim import jump
from flowopt.sampling.spec import SamplerSpec


def phased(problem: Problem, *, grid: int = 40) -> SamplerSpec:
    """Jumps of DDIM between the edges of phases, as a network that was distilled per phase is used. Exact replication.

    Training cuts ``grid`` DDIM steps into as many groups as there are phases; the upper edge of each is where the
    network is asked: 999, 749, 499, 249 for 4 phases of 40 steps over 1000 training steps.

    Raises:
        UserError: the times are not such edges.

    Source: Wang et al., "Rectified Diffusion", arXiv:2410.07303, and its train and inference scripts.
    """
    phases, total = len(problem.times) - 1, problem.convention.train_steps
    if grid < 1 or grid % phases or total % grid:
        raise UserError(
            f"{phases} phases do not divide a grid of {grid} steps over {total} training steps",
            hint="write a number of steps that divides the grid, such as steps=4 for grid=40",
        )
    edges = [float((phase + 1) * (grid // phases) * (total // grid) - 1) for phase in reversed(range(phases))]
    if list(problem.times[:-1]) != edges:
        raise UserError(
            f"the times are not the edges of {phases} phases",
            hint=f"write schedule=trailing, or the edges: {','.join(f'{edge:g}' for edge in edges)}",
        )
    sample = problem.start
    for step in problem.steps:
        sample = jump(problem, sample, step.start, step.end)
    return problem.finished("phased", sample)
