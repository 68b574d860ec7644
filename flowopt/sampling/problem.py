"""What a solver solves: a path from noise to data, a grid of times, and a network to be asked on the way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from flowopt.errors import UserError
from flowopt.sampling.answer import Answer, wrapper
from flowopt.sampling.convention import Convention
from flowopt.sampling.spec import SamplerSpec
from flowopt.sampling.trace import Combination, Trace


@final
@dataclass(frozen=True, slots=True)
class Step:
    """From one time of the grid to the next; ``size`` is how far the ODE's clock moves, sign included."""

    start: float
    end: float
    size: float


@final
class Problem:
    """Asked by one solver, once; the solver returns ``finished(...)``.

    Attributes:
        convention: of the network.
        times: the grid in the convention's t, from noise to data, or from data to noise for an inversion.
        path: alpha(t), sigma(t).
    """

    def __init__(self, convention: Convention, times: Sequence[float], *, notes: Sequence[str] = ()) -> None:
        self.convention = convention
        self.times = tuple(times)
        self.path = convention.make_path()
        self._trace = Trace()
        self._notes = list(notes)

    @property
    def start(self) -> Combination:
        """The sample before the first step."""
        if self.convention.start == "scaled-noise" and self.times[0] == self.convention.first_time:
            return self._trace.start * self.sigma(self.times[0])
        return self._trace.start

    @property
    def steps(self) -> tuple[Step, ...]:
        """One per interval of the grid."""
        own, stretch = self.convention, 1.0
        if own.steps_cover_path:
            stretch = (own.data_time - own.noise_time) / (own.last_time - own.first_time)
        pairs = zip(self.times, self.times[1:], strict=False)
        return tuple(Step(s, e, (self.path.clock(e) - self.path.clock(s)) * stretch) for s, e in pairs)

    def alpha(self, t: float) -> float:
        """How much of the data a sample holds."""
        return self.path.alpha(t)

    def sigma(self, t: float) -> float:
        """How much of the noise a sample holds."""
        return self.path.sigma(t)

    def half_log_snr(self, t: float) -> float:
        """lambda = ln(alpha / sigma); infinite at the ends of a path."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        if alpha == 0 or sigma == 0:
            return math.inf if alpha else -math.inf
        return math.log(alpha / sigma)

    def can_ask(self, t: float) -> bool:
        """Whether the network knows an answer at this time."""
        return self.convention.asks_at_end or t != self.convention.data_time

    def between(self, step: Step, share: float) -> float | None:
        """The time at this share of a step by the clock; None where the network cannot be asked there."""
        start, end = self.path.clock(step.start), self.path.clock(step.end)
        return self.path.time_of(start + share * (end - start))

    def evaluate(self, sample: Combination, t: float, *, end: float | None = None) -> Answer:
        """Ask the network.

        Args:
            sample: x.
            t: in the convention's time.
            end: r, of an average velocity from r to t.
        """
        own = self.convention
        alpha = self.alpha(t)
        has_wrapper = own.prediction == "preconditioned" or own.time_rule == "quarter-log-ratio"
        if has_wrapper and 0 in (alpha, self.sigma(t)):
            raise UserError(
                f"the wrapper of EDM has no sigma at t={t}", hint="write first_time or last_time a little off it"
            )
        told = [own.network_time(t, self.path)]
        if end is not None:
            told.append(own.time_scale * (t - end if own.second_time == "interval" else end))
        given = sample
        if own.prediction == "preconditioned":
            given = sample * (wrapper(own, self.sigma(t) / alpha)[2] / alpha)
        return Answer(own, self.path, sample, t, self._trace.evaluate(given, *told))

    def slope(self, state: Combination, t: float) -> Combination:
        """d state / d clock, for a state x / scale: what ODE methods step with."""
        return self.evaluate(state * self.path.scale(t), t).velocity

    def state(self, sample: Combination, t: float) -> Combination:
        """x / scale."""
        return sample / self.path.scale(t)

    def sample(self, state: Combination, t: float) -> Combination:
        """x of a state."""
        return state * self.path.scale(t)

    def draw(self) -> Combination:
        """Fresh noise."""
        return self._trace.draw()

    def note(self, text: str) -> None:
        """Something that a reader of the report should know, said once."""
        if text not in self._notes:
            self._notes.append(text)

    def note_euler_step(self, step: Step) -> None:
        """The step would ask the network where it has no answer."""
        self.note(
            f"the step from t={step.start:g} to {step.end:g} is an Euler step: the network cannot be asked further on"
        )

    def finished(self, name: str, sample: Combination) -> SamplerSpec:
        """The table of all that was asked."""
        return self._trace.finished(name, sample, notes=self._notes)
