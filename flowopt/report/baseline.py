"""What got worse between two reports of one model. What got better is not told."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flowopt.report.stored import StoredFigure, StoredPass, StoredReport, StoredVerdict

RATIO_FACTOR: Final = 2.0
"""An output's error ratio may grow by this factor: another machine rounds otherwise."""

RATIO_FLOOR: Final = 0.25
"""Below it, of the 1 that is allowed, an error ratio may grow as it likes."""

BYTES_FACTOR: Final = 1.01
BYTES_SLACK: Final = 1024
"""Stored tensors may grow by one percent and a kibibyte: a fold leaves a bias where none was."""

_OUTCOMES: Final = ("verified", "approximate", "verified-on-cpu", "not-verified", "inconclusive", "different")
_LEVELS: Final = ("all", "extended", "basic", "disabled")
# The site needs no rewrite any more, which is no loss.
_DONE_ELSEWHERE: Final = ("already-canonical", "already-rewritten")
_NUMBER: Final = re.compile(r"\d[\d.,]*(e[+-]?\d+)?")
_SHOWN: Final = 5


def regressions(before: StoredReport, now: StoredReport, *, respelling: Collection[str] = ()) -> tuple[str, ...]:
    """One sentence for each thing that is worse ``now``.

    A site that is applied no more, a pass that is reverted, a worse outcome or optimisation level, more operators,
    more bytes, larger errors, a new warning. Operators are named when there are more of them in all: one that stands
    for several others is no loss.

    Args:
        before: the baseline.
        now: of the same model, for the same target.
        respelling: passes whose sites do not count, because they only prepare others.
    """
    return (
        *_outcome(before, now),
        *_passes(before, now, respelling),
        *_operators("captured operators after the last pass", before.census_after, now.census_after),
        *_operators("lowered operators", before.census_lowered, now.census_lowered),
        *_bytes(before.parameter_bytes[1], now.parameter_bytes[1]),
        *_lowered(before.lowered, now.lowered),
        *_warnings(before, now),
    )


def grown_errors(before: Sequence[StoredFigure], now: Sequence[StoredFigure], where: str = "") -> tuple[str, ...]:
    """Outputs whose worst error ratio over the cases of both runs grew beyond ``RATIO_FACTOR`` and ``RATIO_FLOOR``."""
    known = {(figure.output, figure.case): figure.ratio for figure in before}
    worst: dict[str, tuple[float, float, str]] = {}
    for figure in now:
        old = known.get((figure.output, figure.case))
        if old is None:
            continue
        most_now, most_before, case = worst.get(figure.output, (-1.0, 0.0, ""))
        case = figure.case if figure.ratio > most_now else case
        worst[figure.output] = (max(most_now, figure.ratio), max(most_before, old), case)
    return tuple(
        f"output {output}: error ratio {ratio:.2f}, {old:.2f} before ({where}case {case})"
        for output, (ratio, old, case) in worst.items()
        if ratio > RATIO_FLOOR and ratio > RATIO_FACTOR * old
    )


def _outcome(before: StoredReport, now: StoredReport) -> Iterator[str]:
    for what, order, old, new in (
        ("outcome", _OUTCOMES, before.outcome, now.outcome),
        ("optimisation level of the runtime", _LEVELS, before.runtime_level, now.runtime_level),
    ):
        if old in order and new in order and order.index(new) > order.index(old):
            yield f"{what}: {new}, {old} before"


@dataclass(frozen=True, slots=True)
class _Sites:
    """All records of one pass."""

    kept: tuple[str, ...]
    refused: Mapping[str, str]
    reverted: str | None


def _sites(passes: Iterable[StoredPass]) -> dict[str, _Sites]:
    found: dict[str, _Sites] = {}
    for one in passes:
        old = found.get(one.bare_name, _Sites((), {}, None))
        reverted = one.reason if one.outcome == "reverted" else old.reverted
        found[one.bare_name] = _Sites((*old.kept, *one.kept), {**old.refused, **one.refused}, reverted)
    return found


def _passes(before: StoredReport, now: StoredReport, respelling: Collection[str]) -> Iterator[str]:
    found = _sites(now.passes)
    for name, old in _sites(before.passes).items():
        new = found.get(name)
        if new is None:
            if old.kept and name not in respelling:
                yield f"{name}: not in the pipeline; applied before at {_named(old.kept)}"
        elif new.reverted is not None and old.reverted is None:
            yield f"{name}: reverted now: {new.reverted}"
        elif name not in respelling:
            yield from _lost_sites(name, old, new)


def _lost_sites(name: str, old: _Sites, new: _Sites) -> Iterator[str]:
    lost = [site for site in old.kept if site not in new.kept]
    refused = [s for s in lost if s in new.refused and new.refused[s] not in _DONE_ELSEWHERE]
    gone = [s for s in lost if s not in new.refused]
    parts = []
    if len(new.kept) < len(old.kept):
        parts.append(f"applied at {len(new.kept)} of {len(old.kept)} sites")
        parts += [f"no site any more: {_named(gone)}"] if gone else []
    if refused:
        parts.append(f"refused now: {_named([f'{site} ({new.refused[site]})' for site in refused])}")
    # Where all that is missing is done elsewhere, there are fewer rewrites and nothing is lost.
    if refused or (parts and gone):
        yield f"{name}: {'; '.join(parts)}"


def _operators(what: str, before: Mapping[str, int], now: Mapping[str, int]) -> Iterator[str]:
    old, new = sum(before.values()), sum(now.values())
    if not before or new <= old:
        return
    grown = [f"{name} {n} ({before.get(name, 0)} before)" for name, n in now.items() if n > before.get(name, 0)]
    yield f"{what}: {new}, {old} before: {_named(grown)}"


def _bytes(before: int, now: int) -> Iterator[str]:
    if now > before * BYTES_FACTOR + BYTES_SLACK:
        share = f" ({now / before - 1:+.1%})" if before else ""
        yield f"stored tensors: {now:,} bytes, {before:,} before{share}"


def _lowered(before: Sequence[StoredVerdict], now: Sequence[StoredVerdict]) -> Iterator[str]:
    found = {one.level: one for one in now}
    for old in before:
        if old.level in found:
            yield from grown_errors(old.figures, found[old.level].figures, f"level {old.level}, ")


def _warnings(before: StoredReport, now: StoredReport) -> Iterator[str]:
    known = {_NUMBER.sub("#", warning) for warning in before.warnings}
    # A pass of the baseline that is reverted now is told as that.
    passes = {one.bare_name for one in before.passes}
    told = tuple(f"{one.name} was reverted" for one in now.passes if one.bare_name in passes)
    for warning in now.warnings:
        if _NUMBER.sub("#", warning) not in known and not warning.startswith(told):
            yield f"new warning: {warning}"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
