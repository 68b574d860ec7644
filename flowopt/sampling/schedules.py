"""Grids of times, in float64, from text or from Python.

    uniform           even steps of the noise's share; of training steps the rounded linspace(999, 0, steps)
    shift:3           s x / (1 + (s - 1) x) of the uniform shares x
    shift-mu:1.15     exp(mu) / (exp(mu) + 1/x - 1): the same with s = exp(mu)
    karras[:7]        sigmas whose 7th roots are evenly spaced
    trailing          training steps counted from the noise's end
    leading[:1]       training steps counted from the data's end, with an offset
    1,0.8,0.3,0       the convention's own times, from noise to data; of training steps without the data's end

Source: the diffusers schedulers (FlowMatchEulerDiscreteScheduler, DDIMScheduler) for shifts and spacings; Karras et
al., arXiv:2206.00364, equation 5.
"""

import math
from collections.abc import Callable, Sequence

from flowopt.errors import UserError
from flowopt.nearest import nearest
from flowopt.sampling.convention import Convention

Times = tuple[float, ...]
_EXAMPLES = "uniform, shift:3, shift-mu:1.15, karras:7, trailing, leading or a list such as 1,0.8,0.3,0"


def make_times(schedule: str | Sequence[float], steps: int | None, convention: Convention) -> Times:
    """The grid of ``steps`` steps, from the convention's first to its last time.

    Args:
        schedule: text as above, or the times themselves.
        steps: None where the times are listed.

    Raises:
        UserError: a schedule that is not understood or not possible, or another number of steps than it has.
    """
    if not isinstance(schedule, str):
        return _listed(schedule, steps, convention)
    name, _, argument = schedule.strip().partition(":")
    if name not in _GRIDS:
        numbers = _numbers(schedule)
        if numbers is None:
            known = nearest(name, _GRIDS, otherwise="schedules:")
            raise UserError(f"there is no schedule {schedule!r}", hint=f"{known}\nwrite {_EXAMPLES}")
        return _listed(numbers, steps, convention)
    return _GRIDS[name](_argument(name, argument), _counted(steps, convention), convention)


def _counted(steps: int | None, convention: Convention) -> int:
    """How many steps are made."""
    if steps is None:
        raise UserError("how many steps?", hint="write steps=20, or list the times: schedule=1,0.8,0.3,0")
    least = 2 if convention.counts_points else 1
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < least:
        why = f"{convention.name} counts the points of the grid: N points make N - 1 steps" if least == 2 else ""
        raise UserError(f"steps={steps!r} makes no sample", why=why, hint=f"write steps={least} or more")
    limit = convention.train_steps
    if convention.path == "variance-preserving" and steps > limit:
        raise UserError(f"steps={steps} of only {limit} training steps", hint=f"write steps={limit} or fewer")
    return steps - 1 if convention.counts_points else steps


def _argument(name: str, text: str) -> float:
    """The number behind the colon, or the default where the schedule has one."""
    default, wanted = _ARGUMENTS[name]
    if not text:
        if default is None:
            raise UserError(f"the schedule {name!r} needs a number", hint=f"write {name}:{wanted}")
        return default
    if wanted == "":
        raise UserError(f"the schedule {name!r} takes no number", hint=f"write {name}")
    numbers = _numbers(text)
    if numbers is None or len(numbers) != 1 or not math.isfinite(numbers[0]):
        raise UserError(f"{text!r} is no number", hint=f"write {name}:{wanted}")
    if name in ("shift", "karras") and numbers[0] <= 0:
        raise UserError(f"{name}:{text} is not possible", hint=f"write a number above 0, such as {name}:{wanted}")
    return numbers[0]


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


def _listed(times: Sequence[float], steps: int | None, convention: Convention) -> Times:
    """Times of the caller's own, checked."""
    found = [float(t) for t in times]
    if not all(math.isfinite(t) for t in found):
        raise UserError(f"the schedule has times that are not numbers: {_short(found)}", hint="write finite times")
    trains = convention.path == "variance-preserving"
    first, last = convention.first_time, convention.last_time
    if trains and found and found[-1] != last:
        found.append(last)
    if convention.ends == "replaced" and found and found[0] == convention.noise_time:
        found[0] = first
    if len(found) < 2:
        raise UserError(f"the schedule {_short(found)} makes no step", hint=f"write at least {first:.6g},{last:.6g}")
    low, high = sorted((first, last))
    if trains:
        low = 0.0  # between step 0 and the data's end there is nothing
    outside = [t for t in found if not low <= t <= high and t != last]
    if outside:
        raise UserError(
            f"the schedule leaves [{low:.6g}, {high:.6g}], where {convention.name} samples, with t={outside[0]:.6g}",
            hint=f"write times from {first:.6g} to {last:.6g}; first_time and last_time change that range",
        )
    direction = math.copysign(1.0, last - first)
    for before, after in zip(found, found[1:], strict=False):
        if (after - before) * direction <= 0:
            raise UserError(
                f"the schedule goes from t={before:.6g} to t={after:.6g}",
                hint=f"{convention.name} goes from t={first:.6g} (noise) to t={last:.6g} (data): "
                f"write {'rising' if direction > 0 else 'falling'} times, each once",
            )
    if found[-1] != last or (found[0] != first and not trains):
        raise UserError(
            f"the schedule goes from t={found[0]:.6g} to t={found[-1]:.6g}",
            hint=f"{convention.name} samples from t={first:.6g} to t={last:.6g}: begin and end there, "
            "or write first_time and last_time",
        )
    made = len(found) - 1 + (1 if convention.counts_points else 0)
    if steps is not None and steps != made:
        raise UserError(f"steps={steps}, and the schedule lists {made}", hint=f"write steps={made}, or leave it out")
    return tuple(found)


def _short(times: Sequence[float]) -> str:
    return ",".join(f"{t:.6g}" for t in times[:6]) + (",..." if len(times) > 6 else "")


def _uniform(_: float, count: int, convention: Convention) -> Times:
    if convention.path == "variance-preserving":
        top = convention.first_time
        return _trained([round(top - top * i / max(count - 1, 1)) for i in range(count)], convention)
    return _spread([1.0 - i / count for i in range(count + 1)], convention)


def _shift(shift: float, count: int, convention: Convention) -> Times:
    if convention.path not in ("linear", "gvp"):
        raise UserError(
            f"a shift of times is for flow matching, and the convention {convention.name} is not",
            hint=f"write schedule={convention.schedule}",
        )
    shares = [1.0 - i / count for i in range(count + 1)]
    return _spread([shift * x / (1.0 + (shift - 1.0) * x) for x in shares], convention)


def _shift_mu(mu: float, count: int, convention: Convention) -> Times:
    if abs(mu) > 500:
        raise UserError(f"shift-mu:{mu:g} is not possible", hint="write a mu as of FLUX: 0.5 to 1.15")
    return _shift(math.exp(mu), count, convention)


def _karras(rho: float, count: int, convention: Convention) -> Times:
    path = convention.make_path()
    if convention.path == "variance-exploding":
        high, low = convention.first_time, convention.least_ratio
        if low >= high:
            raise UserError(f"least_ratio={low:g} is not below first_time={high:g}", hint="write a smaller least_ratio")
    elif convention.path == "variance-preserving":
        high, low = path.clock(convention.first_time), path.clock(0.0)
    else:
        high, low = 1.0, 1.0 / count
    # One step goes from the first sigma straight to the data.
    places = [i / max(count - 1, 1) for i in range(count)]
    roots = [high ** (1 / rho) + place * (low ** (1 / rho) - high ** (1 / rho)) for place in places]
    sigmas = [high, *(root**rho for root in roots[1:])]
    if convention.path == "variance-exploding":
        return (*sigmas, convention.last_time)
    if convention.path == "variance-preserving":
        times = [path.time_of(sigma) for sigma in sigmas]
        return (*(t for t in times if t is not None), convention.last_time)
    return _spread([*sigmas, 0.0], convention)


def _trailing(_: float, count: int, convention: Convention) -> Times:
    _require_trained("trailing", convention)
    total = convention.train_steps
    return _trained([round(total - i * total / count) - 1 for i in range(count)], convention)


def _leading(offset: float, count: int, convention: Convention) -> Times:
    _require_trained("leading", convention)
    stride = convention.train_steps // count
    steps = [i * stride + int(offset) for i in reversed(range(count))]
    if offset != int(offset) or offset < 0 or steps[0] >= convention.train_steps:
        raise UserError(
            f"leading:{offset:g} leaves the {convention.train_steps} training steps", hint="write leading:1"
        )
    return _trained(steps, convention)


def _require_trained(name: str, convention: Convention) -> None:
    if convention.path != "variance-preserving":
        raise UserError(
            f"the schedule {name!r} counts training steps, which the convention {convention.name} does not have",
            hint="write schedule=uniform",
        )


def _trained(steps: Sequence[int], convention: Convention) -> Times:
    return (*(float(step) for step in steps), convention.last_time)


def _spread(shares: Sequence[float], convention: Convention) -> Times:
    """Times at which these shares of noise are left; the ends are exactly the convention's."""
    first, last = convention.first_time, convention.last_time
    if convention.ends == "replaced":
        inner = [convention.data_time + x * (convention.noise_time - convention.data_time) for x in shares[1:-1]]
    else:
        inner = [last + x * (first - last) for x in shares[1:-1]]
    times = (first, *inner, last)
    sign = math.copysign(1.0, last - first)
    if any((after - before) * sign <= 0 for before, after in zip(times, times[1:], strict=False)):
        raise UserError(
            f"the schedule repeats times: {_short(times)}", hint="write a shift nearer to 1, or fewer steps"
        )
    return times


_GRIDS: dict[str, Callable[[float, int, Convention], Times]] = {
    "uniform": _uniform,
    "shift": _shift,
    "shift-mu": _shift_mu,
    "karras": _karras,
    "trailing": _trailing,
    "leading": _leading,
}
# The number that a schedule takes where none is written (None: one must be), and what a number looks like.
_ARGUMENTS: dict[str, tuple[float | None, str]] = {
    "uniform": (0.0, ""),
    "shift": (None, "3"),
    "shift-mu": (None, "1.15"),
    "karras": (7.0, "7"),
    "trailing": (0.0, ""),
    "leading": (1.0, "1"),
}
