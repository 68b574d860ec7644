"""x' = x + (v + w score) h + sqrt(2 w h) xi, with w a function of the time alone.

    constant                 norm
    sbdm                     norm (alpha_rate / alpha sigma^2 - sigma sigma_rate)
    sigma                    norm sigma
    linear                   norm (1 - t)
    decreasing               (norm cos(pi t) + 1)^2 / 4
    increasing-decreasing    norm sin(pi t)^2

t runs from 0 at noise to 1 at data, as in SiT, whatever the convention's own time does.
"""

import math
from typing import Literal, get_args

from flowopt.errors import UserError
from flowopt.nearest import nearest
from flowopt.sampling.problem import Problem
from flowopt.sampling.spec import SamplerSpec

Form = Literal["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"]
LastStep = Literal["mean", "tweedie", "euler", "none"]


def sde(
    problem: Problem,
    *,
    form: Form = "sigma",
    norm: float = 1.0,
    last_step: LastStep = "mean",
    last_step_size: float = 0.04,
) -> SamplerSpec:
    """SiT's SDE by Euler and Maruyama. Exact replication, with the convention ``sit`` and the schedule ``uniform``.

    The grid is squeezed into what the last step leaves, which draws no noise: ``mean`` follows drift and score,
    ``euler`` the drift, ``tweedie`` jumps to x / alpha + sigma^2 / alpha score; ``none`` stops at the grid's end,
    and squeezes nothing.

    Raises:
        UserError: a form that is unknown or infinite where the grid starts (sbdm at pure noise), numbers below 0.

    Source: Ma et al., arXiv:2401.08740; willisma/SiT at 947f95bd3a51, transport/.
    """
    _require_word("form", form, get_args(Form))
    _require_word("last_step", last_step, get_args(LastStep))
    span = abs(problem.times[-1] - problem.times[0])
    left = 0.0 if last_step == "none" else last_step_size
    if norm < 0 or not 0 <= left < span:
        raise UserError(
            f"norm={norm:g} with last_step_size={last_step_size:g} is not possible",
            hint=f"write a norm of 0 or more, and a last step shorter than the path ({span:g})",
        )
    direction = math.copysign(1.0, problem.times[-1] - problem.times[0])
    first, share = problem.times[0], (span - left) / span
    sample = problem.start
    for step in problem.steps:
        t = first + (step.start - first) * share
        h = abs(step.size) * share
        answer, w = problem.evaluate(sample, t), _strength(problem, form, norm, t, direction)
        sample = sample + direction * h * answer.velocity
        if w:
            sample = sample + w * h * answer.score + math.sqrt(2.0 * w * h) * problem.draw()
    end = first + (problem.times[-1] - first) * share
    if left:
        answer, w = problem.evaluate(sample, end), _strength(problem, form, norm, end, direction)
        if last_step == "tweedie":
            alpha, sigma = problem.alpha(end), problem.sigma(end)
            sample = sample / alpha + sigma**2 / alpha * answer.score
        else:
            sample = sample + direction * left * answer.velocity
            if last_step == "mean" and w:
                sample = sample + w * left * answer.score
    return problem.finished(f"sde {form}", sample)


def _require_word(option: str, word: str, words: tuple[str, ...]) -> None:
    if word not in words:
        raise UserError(f"{option}={word!r} is not known", hint=nearest(word, words, otherwise=f"{option} is one of"))


def _strength(problem: Problem, form: Form, norm: float, t: float, direction: float) -> float:
    """w at a time of the convention."""
    own = problem.convention
    if form == "constant":
        return norm
    alpha, sigma = problem.alpha(t), problem.sigma(t)
    if form == "sigma":
        return norm * sigma
    if form == "sbdm":
        if alpha == 0:
            raise UserError(
                f"the form sbdm is infinite at t={t:g}, where a sample holds no data",
                hint=f"write first_time a little off {t:g}, or form=sigma",
            )
        alpha_rate, sigma_rate = (direction * rate for rate in problem.path.rates(t))
        return norm * (alpha_rate / alpha * sigma**2 - sigma * sigma_rate)
    from_noise = (t - own.noise_time) / (own.data_time - own.noise_time)
    if form == "linear":
        return norm * (1.0 - from_noise)
    if form == "decreasing":
        return 0.25 * (norm * math.cos(math.pi * from_noise) + 1.0) ** 2
    return norm * math.sin(math.pi * from_noise) ** 2
