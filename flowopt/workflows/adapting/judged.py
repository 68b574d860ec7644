"""Judge a trained model's norms before anything is changed: how steady they are, and what replacing them would save."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, prod
from typing import Final

import torch
from torch import Tensor

from flowopt.analysis.concrete_shapes import ConcreteShapes
from flowopt.analysis.input_roles import Kind, input_role
from flowopt.analysis.norm_fit import NormFit
from flowopt.analysis.norm_parts import norm_parts
from flowopt.analysis.norm_sites import NormKind, NormSite, norm_sites
from flowopt.errors import UserError
from flowopt.passes.swap.swap_norm import SwapNorm, error_of_rms
from flowopt.program.program import Program
from flowopt.recovery.calibrate import calibrate
from flowopt.recovery.data.data import Data
from flowopt.recovery.padding import INVERTED, input_of
from flowopt.report.adaptation import LEFT, REFUSED, SWAPPED, NormRecord
from flowopt.rewrite.driver import apply
from flowopt.workflows.adapting.leaves import with_live_channels
from flowopt.workflows.adapting.wanted_norms import wanted_norms
from flowopt.workflows.pipelines import Pipeline

# One spelling of every norm, batch norms that fold anyway gone, and layer norms of pre-norm streams without their mean:
# a fixed scale is nearest to a norm that subtracts nothing.
PREPARATION: Final = (
    "canonicalize-aten",
    "eliminate-no-ops",
    "eliminate-common-subexpressions",
    "fold-constants",
    "fold-parametrizations",
    "recognize-batch-channel-norm",
    "recognize-rms-norm",
    "recognize-layer-norm",
    "fold-batch-norm",
    "fold-norm-mean",
)
# What tokenizers call the input that is 1 where a token is real.
_ONES_ARE_REAL: Final = re.compile(r"(\w+[._])?(attention_mask|input_mask)|mask")
AUTOMATIC: Final = "auto"
NONE: Final = "none"
RMS: Final = "rms"


@dataclass(frozen=True, slots=True)
class Judged:
    """A prepared model, its norms, and which of them will be replaced.

    Attributes:
        program: the model after exact passes that make its norms replaceable; it computes the same function.
        sites: every norm.
        fits: what calibration found, by the name of the site.
        chosen: norms to replace, in graph order.
        records: one for each site.
        padding: name of the input that marks padding; None: nothing is padding.
    """

    program: Program
    sites: tuple[NormSite, ...]
    fits: Mapping[str, NormFit]
    chosen: tuple[NormSite, ...]
    records: tuple[NormRecord, ...]
    padding: str | None


def judged(
    program: Program,
    data: Data,
    *,
    to: str,
    norms: str,
    threshold: float,
    force: bool,
    padding: str,
    calibration: int,
    seed: int,
    on_progress: Callable[[str], None],
) -> Judged:
    """Prepare, calibrate, choose.

    Args:
        program: never changed.
        data: its first training batches calibrate.
        to: the new norm.
        norms: as ``wanted_norms`` takes them.
        threshold: of the score, above which a norm is refused unless ``force``.
        force: replace norms above the threshold too.
        padding: ``auto``, ``none`` or the name of an input.
        calibration: number of batches.
        seed: of the verification of the exact passes.
        on_progress: gets one line per step.

    Raises:
        UserError: no norms, a choice that fits none, or data that does not fit.
    """
    on_progress("preparing the model")
    prepared = Pipeline(PREPARATION).run(program, verify="each", seed=seed).program
    sites = norm_sites(prepared)
    if not sites:
        raise UserError(
            "the model has no norm that could be replaced",
            why="batch norms that fold away are none, nor are norms over several axes or with a computed gain",
            hint="flowopt inspect MODEL lists its operators",
        )
    mask = padding_input(prepared, padding)
    batches: list[Mapping[str, Tensor]] = [batch.inputs for batch in data.calibration(calibration)]
    if to == RMS and all(site.kind is not NormKind.LAYER for site in sites):
        raise UserError(
            "there is no layer norm left to swap for an RMS norm",
            why="layer norms of a pre-norm residual stream become RMS norms exactly, without data",
            hint="flowopt optimize MODEL does that",
        )
    measured = calibrate(prepared, sites, batches, padding=mask, on_progress=on_progress)
    fits = {name: with_live_channels(fit) for name, fit in measured.items()}
    scores = _scores(to, sites, fits)
    wanted = wanted_norms(norms, sites, fits, scores)
    refusals = _refusals(prepared, to, fits, wanted, threshold, force)
    chosen = tuple(site for site in wanted if site.name not in refusals)
    saved = dict.fromkeys(fits, 0) if to == RMS else _moved_bytes(prepared, sites)
    names = {site.name for site in wanted}
    records = tuple(
        _record(site, fits[site.name], scores, saved, is_wanted=site.name in names, reason=refusals.get(site.name, ""))
        for site in sites
    )
    return Judged(prepared, sites, fits, chosen, records, mask)


def padding_input(program: Program, wanted: str) -> str | None:
    """The input that marks padding: by name, or the one attention mask of shape (batch, tokens) in integers.

    Raises:
        UserError: no such input, or a mask that may mean either: a bool one, one of another name, or several.
    """
    if wanted == NONE:
        return None
    names = [i.name for i in program.inputs if i.state is None]
    if wanted != AUTOMATIC:
        name = input_of(wanted)
        if name not in names or len(program.shape(name)) != 2:
            raise UserError(
                f"{name!r} is no input of shape (batch, tokens)",
                hint=f"inputs: {', '.join(names)}; or none, where nothing is padding",
            )
        return wanted
    masks = [name for name in names if len(program.shape(name)) == 2 and _is_mask(program, name)]
    if len(masks) == 1 and _ONES_ARE_REAL.fullmatch(masks[0]) and not _is_bool(program, masks[0]):
        return masks[0]
    if masks:
        raise UserError(
            f"where is padding? {', '.join(masks)} may tell, but not whether by ones or by zeros",
            hint=f"--padding {masks[0]} if it is 1 or True where a token is real, --padding {INVERTED}{masks[0]} if it "
            "is where a token is padding, --padding none if nothing is",
        )
    return None


def _is_mask(program: Program, name: str) -> bool:
    """By what reads it; archives come without examples, and there a mask of numbers is an integer like any other."""
    recorded = program.node(name).meta["val"]
    if recorded.is_floating_point():
        return False
    return input_role(program.node(name), program.example.get(name)).kind is Kind.MASK or "mask" in name


def _is_bool(program: Program, name: str) -> bool:
    return bool(program.node(name).meta["val"].dtype is torch.bool)


def _scores(to: str, sites: tuple[NormSite, ...], fits: Mapping[str, NormFit]) -> dict[str, float]:
    """The relative error that what takes a norm's place leaves by itself; infinite where nothing of the kind can."""
    if to != RMS:
        return {site.name: fits[site.name].score for site in sites}
    return {site.name: error_of_rms(fits[site.name]) if site.kind is NormKind.LAYER else inf for site in sites}


def _refusals(
    program: Program,
    to: str,
    fits: Mapping[str, NormFit],
    wanted: tuple[NormSite, ...],
    threshold: float,
    force: bool,
) -> dict[str, str]:
    """What the pass itself would refuse, by site, with the code first."""
    only = "+".join(site.name for site in wanted)
    trial = apply(SwapNorm(to=to, fits=fits, threshold=threshold, force=force, only=only), program.copy())
    found: dict[str, str] = {}
    for refusal in trial.refused:
        parts = norm_parts(program.node(refusal.site))
        if parts is not None:
            found[parts.output.name] = f"{refusal.code}: {refusal.message}"
    return {site.name: found[site.name] for site in wanted if site.name in found}


def _moved_bytes(program: Program, sites: tuple[NormSite, ...]) -> dict[str, int]:
    """What a norm reads and writes in one run at the captured sizes."""
    shapes = ConcreteShapes(program, {dim.name: dim.traced for dim in program.dims})
    found = {}
    for site in sites:
        value = program.node(site.name)
        recorded = value.meta["val"]
        found[site.name] = 2 * prod(shapes.shape(recorded) or (0,)) * recorded.dtype.itemsize
    return found


def _record(
    site: NormSite,
    fit: NormFit,
    scores: Mapping[str, float],
    saved: Mapping[str, int],
    *,
    is_wanted: bool,
    reason: str,
) -> NormRecord:
    return NormRecord(
        position=site.position,
        site=site.name,
        module=site.module,
        kind=str(NormKind(site.kind).value),
        placement="none" if site.placement is None else site.placement.value,
        channels=site.channels,
        score=scores[site.name],
        massive_ratio=fit.massive_ratio,
        massive=fit.massive,
        tokens=fit.tokens,
        saved_bytes=saved[site.name],
        decision=LEFT if not is_wanted else REFUSED if reason else SWAPPED,
        reason=reason,
    )
