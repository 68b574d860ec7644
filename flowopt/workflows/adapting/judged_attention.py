"""Judge a trained model's softmax attentions before anything is changed: what a linear one costs there, and saves."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from flowopt.analysis.attention_sites import AttentionSite, attention_sites
from flowopt.analysis.chosen_sites import chosen_sites
from flowopt.errors import UserError
from flowopt.ir.metadata import recorded_tensor, sizes_as_text
from flowopt.ops.attention.in_place_of_softmax import InPlaceOfSoftmax
from flowopt.program.program import Program
from flowopt.recovery.attention_effect import attention_effects
from flowopt.recovery.attention_fit import measure_attention
from flowopt.recovery.data.data import Data
from flowopt.report.adaptation import LEFT, SWAPPED
from flowopt.report.attention_record import AttentionRecord
from flowopt.report.sites import Refusal
from flowopt.workflows.adapting.attention_speed import LENGTHS, AttentionSpeed, attention_speed
from flowopt.workflows.adapting.decided_attention import Measurements, decided_attention, judged_length
from flowopt.workflows.adapting.judged import padding_input
from flowopt.workflows.adapting.linear_choice import BY_EFFECT, LinearChoice
from flowopt.workflows.pipelines import Pipeline

# Exact, and nothing that only softmax allows: a bias of the keys is nothing to softmax, and something to a stand-in.
PREPARATION: Final = (
    "canonicalize-aten",
    "eliminate-no-ops",
    "eliminate-common-subexpressions",
    "simplify-masks",
    "simplify-shapes",
    "fold-constants",
    "fold-parametrizations",
)
# Above, a judgement would take longer than the work that it is to save.
_LONGEST: Final = 16_384


@dataclass(frozen=True, slots=True)
class JudgedAttention:
    """A prepared model, its attentions, and which of them will be replaced.

    Attributes:
        program: the model after exact clean-up passes; it computes the same function.
        sites: every attention.
        leaves: a stand-in, untrained, for each site that can be replaced and was asked for, by its name.
        chosen: attentions to replace, in graph order.
        records: one for each site.
        padding: name of the input that marks padding; None: nothing is padding.
        notes: what a reader should know.
    """

    program: Program
    sites: tuple[AttentionSite, ...]
    leaves: Mapping[str, InPlaceOfSoftmax]
    chosen: tuple[AttentionSite, ...]
    records: tuple[AttentionRecord, ...]
    padding: str | None
    notes: tuple[str, ...] = ()


def judged_attention(
    program: Program,
    data: Data,
    choice: LinearChoice,
    *,
    padding: str,
    target: str,
    arch: str | None,
    outputs: Collection[str],
    seed: int,
    on_progress: Callable[[str], None],
) -> JudgedAttention:
    """Prepare, measure, time, choose.

    Args:
        program: never changed.
        data: its first training batches calibrate.
        choice: what the user asks for.
        padding: ``auto``, ``none`` or the name of an input.
        target, arch: that speed is judged on, as for ``optimize``.
        outputs: floating outputs that the effect of a layer is measured at.
        seed: of the verification of the exact passes, and of what stand-ins draw.
        on_progress: gets one line per step.

    Raises:
        UserError: no attention, a choice that fits none, data that does not fit; or, but for a dry run, none that can
            be replaced.
    """
    choice.require_known()
    on_progress("preparing the model")
    prepared = Pipeline(PREPARATION).run(program, verify="each", seed=seed).program
    sites = tuple(_fitting(prepared, site, choice) for site in attention_sites(prepared))
    if not sites:
        raise UserError(
            "the model has no softmax attention that could become linear",
            why="scaled_dot_product_attention is one, and a softmax followed by a product with values",
            hint="flowopt inspect MODEL lists its operators",
        )
    wanted = sites if choice.layers == "all" else chosen_sites(sites, choice.layers.split(","), what="attention")
    open_sites = tuple(site for site in wanted if site.refusal is None)
    mask = padding_input(prepared, padding)
    leaves = {site.name: _leaf(prepared, site, choice, seed) for site in open_sites}
    batches: list[Mapping[str, Tensor]] = [batch.inputs for batch in data.calibration(choice.calibration)]
    fits = measure_attention(prepared, open_sites, leaves, batches, padding=mask, on_progress=on_progress)
    effects: Mapping[str, float] = {}
    if choice.keep_by == BY_EFFECT:
        effects = attention_effects(
            prepared, open_sites, leaves, batches, outputs, padding=mask, on_progress=on_progress
        )
    speeds = _speeds(prepared, open_sites, choice, target, arch, on_progress)
    measured = Measurements(fits, effects, speeds)
    records = decided_attention(sites, wanted, choice, measured, target)
    swapped = {record.site for record in records if record.decision == SWAPPED}
    if not swapped and not choice.dry_run:
        _refuse_all(records)
    return JudgedAttention(
        prepared,
        sites,
        leaves,
        tuple(site for site in sites if site.name in swapped),
        records,
        mask,
        tuple(_notes(speeds, target)),
    )


def _fitting(program: Program, site: AttentionSite, choice: LinearChoice) -> AttentionSite:
    """The site; refused where queries and keys may differ in number and the stand-in takes only as many."""
    shape, heads = site.shape, site.shape.heads
    if site.refusal is not None or not shape.is_cross:
        return site
    widths = ((2, shape.head_dim), (3, shape.head_dim), (3, shape.value_dim))
    try:
        with torch.no_grad():
            choice.made(shape, seed=0)(*(torch.zeros(1, heads, *width) for width in widths))
    except UserError:
        query, key = (sizes_as_text(program.node(name))[-2] for name in (site.query, site.key))
        message = f"{choice.to} is for self-attention, and here {query} queries see {key} keys of other tokens"
        where = site.module or ""
        return replace(site, refusal=Refusal(site.name, where, "", "axis-mismatch", message, site.name))
    return site


def _leaf(program: Program, site: AttentionSite, choice: LinearChoice, seed: int) -> InPlaceOfSoftmax:
    """A stand-in in the dtype that it computes in; what it draws follows from the seed and the place."""
    query = recorded_tensor(program.node(site.query))
    assert query is not None, "a site without recorded shapes is refused"
    leaf = InPlaceOfSoftmax(choice.made(site.shape, seed=seed + site.position))
    return leaf.to(torch.promote_types(query.dtype, torch.float32)).eval()


def _speeds(
    program: Program,
    sites: Iterable[AttentionSite],
    choice: LinearChoice,
    target: str,
    arch: str | None,
    on_progress: Callable[[str], None],
) -> dict[str, AttentionSpeed]:
    """By site; attentions of one shape are timed once, at the lengths that are asked of any of them too."""
    alike: dict[tuple[object, ...], list[AttentionSite]] = {}
    for site in sites:
        query = recorded_tensor(program.node(site.query))
        assert query is not None, "a site without recorded shapes is refused"
        alike.setdefault((site.shape, site.key_heads, query.dtype), []).append(site)
    found: dict[str, AttentionSpeed] = {}
    for (_, _, dtype), group in alike.items():
        assert isinstance(dtype, torch.dtype)
        lengths = {min(judged_length(site, choice), _LONGEST) for site in group}
        speed = attention_speed(
            partial(choice.made, seed=0),
            group[0].shape,
            key_heads=group[0].key_heads,
            dtype=dtype,
            target=target,
            arch=arch,
            lengths=sorted({*LENGTHS, *lengths}),
            on_progress=on_progress,
        )
        found |= {site.name: speed for site in group}
    return found


def _notes(speeds: Mapping[str, AttentionSpeed], target: str) -> Iterable[str]:
    """Why speed was not measured, once each."""
    reasons = dict.fromkeys(speed.reason for speed in speeds.values() if speed.reason)
    return (f"speed was not measured on {target}, and refuses nothing: {reason}" for reason in reasons)


def _refuse_all(records: Sequence[AttentionRecord]) -> None:
    """Raises UserError that names what comes nearest."""
    asked = [record for record in records if record.decision != LEFT]
    # A layer that is merely slower, or kept, is nearer than one that cannot be linear.
    best = min(asked, key=lambda r: (r.linear_ms is None, (r.linear_ms or 0.0) / (r.softmax_ms or 1.0), r.position))
    raise UserError(
        f"none of {len(asked)} attentions can become linear",
        why=f"{best.module or best.site} comes nearest: {best.reason}",
        hint="other layers with --layers, a longer --length, a smaller --keep-softmax, or --force; --dry-run shows all",
    )
