"""H: x~ = x + h d, d' = v(x~, t'), x' = x + h/2 (d + d'), with d = v(x, t). P: the same with the d' of the step before.

H is Heun's step; P, the pseudo corrector, asks once. The carried d' is the slope at the predicted point x~, not at x'.
"""

import re

from flowopt.errors import UserError
from flowopt.sampling.problem import Problem, Step
from flowopt.sampling.spec import SamplerSpec
from flowopt.sampling.trace import Combination

_PHASES = re.compile(r"(?:H(\d+))?(?:P(\d+))?(?:R(\d+))?")


def flowturbo(problem: Problem, *, phases: str = "H1P5") -> SamplerSpec:
    """FlowTurbo's steps of Heun's method, then of the pseudo corrector; both of order 2. Exact replication.

    2 H + P evaluations, and one more where no H comes first.

    Args:
        phases: such as ``H2P4``; there are as many steps as it says.

    Raises:
        UserError: other text, or a refiner (``R``), which is a second network.

    Source: Zhao et al., "FlowTurbo", and shiml20/FlowTurbo at 361b16ba3704, FlowTurboAssemble.
    """
    heun, _ = _counts(phases)
    return _phased(problem, heun, f"flowturbo {phases}")


def step_count(phases: str = "H1P5") -> int:
    """How many steps the text asks for."""
    return sum(_counts(phases))


def pseudo_corrected(problem: Problem) -> SamplerSpec:
    """P at every step."""
    return _phased(problem, 0, "pseudo-corrector")


def _counts(phases: str) -> tuple[int, int]:
    found = _PHASES.fullmatch(phases)
    heun, pseudo, refined = (int(count or 0) for count in found.groups()) if found else (0, 0, 0)
    if refined:
        raise UserError(
            f"phases={phases!r} asks for FlowTurbo's refiner, which is a second, trained network",
            hint=f"leave R{refined} out, or write P{pseudo + refined}",
        )
    if heun + pseudo == 0:
        raise UserError(
            f"phases={phases!r} makes no step",
            hint="write H and the number of Heun's steps, then P and that of pseudo corrections, such as H2P4",
        )
    return heun, pseudo


def _phased(problem: Problem, heun: int, name: str) -> SamplerSpec:
    state = problem.state(problem.start, problem.times[0])
    carried: Combination | None = None
    for i, step in enumerate(problem.steps):
        slope = carried if i >= heun and carried is not None else problem.slope(state, step.start)
        state, carried = _corrected(problem, state, slope, step)
    return problem.finished(name, problem.sample(state, problem.times[-1]))


def _corrected(
    problem: Problem, state: Combination, slope: Combination, step: Step
) -> tuple[Combination, Combination | None]:
    if not problem.can_ask(step.end):
        problem.note_euler_step(step)
        return state + step.size * slope, None
    ahead = problem.slope(state + step.size * slope, step.end)
    return state + 0.5 * step.size * (slope + ahead), ahead
