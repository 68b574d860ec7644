"""What a code base means by time, by the network's output and by a step."""

import math
from dataclasses import dataclass, fields
from typing import Literal, final, get_args

from flowopt.errors import UserError
from flowopt.nearest import nearest
from flowopt.sampling.paths import Betas, Interpolation, Path, PathName, VarianceExploding, VariancePreserving

Prediction = Literal["velocity", "average-velocity", "noise", "sample", "v-prediction", "preconditioned"]
TimeRule = Literal["time", "reversed", "squeezed", "quarter-log-ratio"]
_WORDS = {
    "path": get_args(PathName),
    "prediction": get_args(Prediction),
    "arguments": ("sample-first", "time-first"),
    "time_rule": get_args(TimeRule),
    "second_time": ("none", "interval", "end"),
    "ends": ("squeezed", "replaced"),
    "start": ("noise", "scaled-noise"),
    "betas": get_args(Betas),
}
_FITTING: dict[str, tuple[str, ...]] = {
    "velocity": ("linear", "gvp"),
    "average-velocity": ("linear",),
    "v-prediction": ("variance-preserving",),
}


@final
@dataclass(frozen=True, kw_only=True)
class Convention:
    """Everything in which code bases differ that call a network of the same kind.

    Attributes:
        name: of the preset.
        path: x = alpha data + sigma noise: ``linear`` (flow matching), ``gvp``, ``variance-exploding`` (sigma is the
            time), ``variance-preserving`` (the time is a training step).
        noise_time, data_time: t of noise and of data on the path.
        first_time, last_time: where sampling starts and ends, in t.
        prediction: what the network returns. ``velocity`` is dx/dt in this convention's t; ``noise`` is epsilon;
            ``sample`` is the data; ``v-prediction`` is alpha noise - sigma data; ``average-velocity`` is that of
            MeanFlow; ``preconditioned`` is the bare network inside EDM's wrapper.
        arguments: whether the network takes the sample or the time first.
        time_scale, time_rule: the network is told time_scale times: t (``time``), 1 - t (``reversed``),
            t (1 - epsilon) + epsilon (``squeezed``), ln(sigma / alpha) / 4 (``quarter-log-ratio``).
        epsilon: of the rule ``squeezed``.
        second_time: of an average velocity: the ``interval`` t - r, or its ``end`` r.
        schedule: where none is given.
        ends: how generated times that do not start at noise_time get there: the grid is ``squeezed`` between
            first_time and last_time, or its first and last number are ``replaced``.
        steps_cover_path: steps are as long as if the squeezed grid reached from noise_time to data_time.
        counts_points: a number of steps counts points of the grid, so that one step fewer is made.
        asks_at_end: whether the network can be asked at data_time. Where not, a method that would ask there takes
            an Euler step instead.
        start: sampling starts from the ``noise`` that is given, or from it times the first sigma.
        least_sigma: noise that a linear path leaves in the data.
        least_ratio: the last sigma before 0 of a Karras schedule on a variance exploding path.
        betas, first_beta, last_beta, train_steps, ends_in_data: of a variance preserving path; ends_in_data is what
            diffusers calls set_alpha_to_one.
        sigma_data: of EDM's wrapper.

    Raises:
        UserError: a word that is not known, numbers that make no path, or a prediction that does not fit the path.
    """

    name: str
    path: PathName = "linear"
    noise_time: float = 1.0
    data_time: float = 0.0
    first_time: float = 1.0
    last_time: float = 0.0
    prediction: Prediction = "velocity"
    arguments: Literal["sample-first", "time-first"] = "sample-first"
    time_scale: float = 1.0
    time_rule: TimeRule = "time"
    epsilon: float = 0.0
    second_time: Literal["none", "interval", "end"] = "none"
    schedule: str = "uniform"
    ends: Literal["squeezed", "replaced"] = "squeezed"
    steps_cover_path: bool = False
    counts_points: bool = False
    asks_at_end: bool = True
    start: Literal["noise", "scaled-noise"] = "noise"
    least_sigma: float = 0.0
    least_ratio: float = 0.002
    betas: Betas = "linear"
    first_beta: float = 1e-4
    last_beta: float = 0.02
    train_steps: int = 1000
    ends_in_data: bool = True
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            self._require_kind(field.name, field.type)
        for key, words in _WORDS.items():
            if getattr(self, key) not in words:
                hint = nearest(str(getattr(self, key)), words, otherwise=f"{key} is one of")
                raise UserError(f"{key}={getattr(self, key)!r} is no convention", hint=hint)
        fitting = _FITTING.get(self.prediction, get_args(PathName))
        if self.path not in fitting:
            raise UserError(
                f"a network on the path {self.path!r} does not predict {self.prediction!r}",
                hint=f"{self.prediction} goes with path={' or '.join(fitting)}; here write prediction=noise or sample",
            )
        if (self.prediction == "average-velocity") != (self.second_time != "none"):
            raise UserError(
                f"prediction={self.prediction!r} with second_time={self.second_time!r}",
                hint="an average velocity takes two times: second_time=interval for (t, t - r), end for (t, r)",
            )
        low, high = sorted((self.noise_time, self.data_time))
        if low == high or not (low <= self.first_time <= high and low <= self.last_time <= high):
            raise UserError(
                f"sampling from t={self.first_time} to t={self.last_time} is not on the path, which has noise at "
                f"t={self.noise_time} and data at t={self.data_time}",
                hint=f"write first_time and last_time between {low} and {high}",
            )
        if (self.last_time - self.first_time) * (self.data_time - self.noise_time) <= 0:
            raise UserError(
                f"sampling from t={self.first_time} to t={self.last_time} leads away from the data at "
                f"t={self.data_time}",
                hint=f"write first_time nearer to {self.noise_time} than last_time",
            )

    def _require_kind(self, key: str, kind: object) -> None:
        """Types as annotated; text for a number would fail far from here."""
        value = getattr(self, key)
        if kind is bool:
            fits = isinstance(value, bool)
        elif kind is int:
            fits = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        elif kind is float:
            fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        else:
            fits = isinstance(value, str)
        if not fits:
            wanted = {bool: "True or False", int: "a whole number of at least 1", float: "a number"}
            raise UserError(f"{key}={value!r} is not {wanted.get(kind, 'a word')}")  # type: ignore[call-overload]  # a dict of types

    def make_path(self) -> Path:
        """alpha and sigma over this convention's t."""
        if self.path == "variance-exploding":
            return VarianceExploding()
        if self.path == "variance-preserving":
            return VariancePreserving(
                self.betas, self.first_beta, self.last_beta, self.train_steps, ends_in_data=self.ends_in_data
            )
        return Interpolation(
            self.noise_time, self.data_time, is_trigonometric=self.path == "gvp", least_sigma=self.least_sigma
        )

    def network_time(self, t: float, path: Path) -> float:
        """What the network is told at time t."""
        if self.time_rule == "reversed":
            return self.time_scale * (1.0 - t)
        if self.time_rule == "squeezed":
            return self.time_scale * (t * (1.0 - self.epsilon) + self.epsilon)
        if self.time_rule == "quarter-log-ratio":
            return self.time_scale * math.log(path.sigma(t) / path.alpha(t)) / 4.0
        return self.time_scale * t
