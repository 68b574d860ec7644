"""Decide which attentions become linear, out of what was measured of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flowopt.analysis.attention_sites import AttentionSite
from flowopt.recovery.attention_fit import AttentionFit
from flowopt.report.adaptation import KEPT, LEFT, REFUSED, SWAPPED
from flowopt.report.attention_record import AttentionRecord
from flowopt.workflows.adapting.attention_speed import AttentionSpeed
from flowopt.workflows.adapting.linear_choice import BY_EFFECT, LinearChoice

BELOW_CROSSOVER: Final = "below-crossover"


@dataclass(frozen=True, slots=True)
class Measurements:
    """By the name of the site, for those that were asked for and can become linear.

    Attributes:
        fits: errors and entropy.
        effects: on the model's outputs; empty where they were not measured.
        speeds: beside softmax.
    """

    fits: Mapping[str, AttentionFit]
    effects: Mapping[str, float]
    speeds: Mapping[str, AttentionSpeed]


def decided_attention(
    sites: Sequence[AttentionSite],
    wanted: Sequence[AttentionSite],
    choice: LinearChoice,
    measured: Measurements,
    target: str,
) -> tuple[AttentionRecord, ...]:
    """One record for each site.

    Refused is what cannot become linear, and, but for ``force``, what would be slower at the length that it is judged
    at; where speed was not measured it refuses nothing. Of what is left ``keep_softmax`` keeps softmax, rounded up:
    where attention is least even, or where the stand-in alone does most to the outputs.

    Args:
        sites: every one of the model.
        wanted: those that were asked for.
        choice: what the user asks for.
        measured: of what is wanted and not refused by a code of its own.
        target: that speed was measured on.
    """
    reasons = {site.name: f"{site.refusal.code}: {site.refusal.message}" for site in wanted if site.refusal}
    for site in wanted:
        slower = "" if site.name in reasons or choice.force else _slower(site, choice, measured, target)
        reasons |= {site.name: slower} if slower else {}
    left = [site for site in wanted if site.name not in reasons]
    kept = _kept(left, choice, measured)
    decisions = dict.fromkeys((site.name for site in left), SWAPPED)
    decisions |= dict.fromkeys(reasons, REFUSED) | dict.fromkeys(kept, KEPT)
    reasons |= kept
    return tuple(
        _record(site, choice, measured, decisions.get(site.name, LEFT), reasons.get(site.name, "")) for site in sites
    )


def judged_length(site: AttentionSite, choice: LinearChoice) -> int:
    """Tokens to judge at: of other numbers of queries and keys the harmonic mean, where costs have the same ratio."""
    if choice.length is not None:
        return choice.length
    queries, keys = site.query_length, site.key_length
    return round(2 * queries * keys / (queries + keys))


def _slower(site: AttentionSite, choice: LinearChoice, measured: Measurements, target: str) -> str:
    """Why a layer is refused for its speed; empty where it is not."""
    speed, length = measured.speeds[site.name], judged_length(site, choice)
    if speed.crossover is None:
        return ""
    times = speed.crossover.milliseconds(length)
    if times.linear < times.softmax:
        return ""
    crossover = speed.crossover.length
    longest = speed.crossover.lengths[-1]
    since = f"at no length up to {longest}" if crossover is None else f"from about {crossover:.0f} on"
    how = ", extrapolated" if times.is_extrapolated else ""
    return (
        f"{BELOW_CROSSOVER}: at length {length} on {target} the stand-in takes {times.linear:.3g} ms, softmax "
        f"{times.softmax:.3g} ms{how}; it is faster {since}"
    )


def _kept(sites: Sequence[AttentionSite], choice: LinearChoice, measured: Measurements) -> dict[str, str]:
    """The layers that keep softmax, and why."""
    count = math.ceil(choice.keep_softmax * len(sites))
    by_effect = choice.keep_by == BY_EFFECT
    entropies = {name: fit.entropy for name, fit in measured.fits.items()}
    values = measured.effects if by_effect else entropies

    def rank(site: AttentionSite) -> tuple[float, int]:
        value = -values[site.name] if by_effect else values[site.name]
        # What is not known is not risked.
        return (-math.inf if math.isnan(value) else value), site.position

    what = "effect-on-outputs: {:.3g} where it alone is replaced" if by_effect else "low-entropy: {:.3f} of 1"
    return {
        site.name: f"{what.format(values[site.name])}, among the {count} of {len(sites)} to keep softmax"
        for site in sorted(sites, key=rank)[:count]
    }


def _record(
    site: AttentionSite, choice: LinearChoice, measured: Measurements, decision: str, reason: str
) -> AttentionRecord:
    length, fit, speed = judged_length(site, choice), measured.fits.get(site.name), measured.speeds.get(site.name)
    crossover = None if speed is None else speed.crossover
    times = None if crossover is None else crossover.milliseconds(length)
    return AttentionRecord(
        position=site.position,
        site=site.name,
        module=site.module,
        heads=site.shape.heads,
        key_heads=site.key_heads,
        head_dim=site.shape.head_dim,
        is_causal=site.shape.is_causal,
        length=length,
        decision=decision,
        reason=reason,
        zero_shot_error=None if fit is None else fit.zero_shot_error,
        mean_error=None if fit is None else fit.mean_error,
        entropy=None if fit is None else fit.entropy,
        effect=measured.effects.get(site.name),
        crossover=None if crossover is None else crossover.length,
        softmax_ms=None if times is None else times.softmax,
        linear_ms=None if times is None else times.linear,
        is_extrapolated=times is not None and times.is_extrapolated,
    )
