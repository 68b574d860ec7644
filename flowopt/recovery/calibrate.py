"""Measure norms on calibration data: how steady each one is, and which fixed scale and shift are nearest to it.

    s            standard deviation of one vector (root mean square where the norm subtracts no mean)
    sigma*       E[s^2] / E[s], which minimises E |x / s - x / sigma|^2
    score        CV / sqrt(1 + CV^2), CV = std(s) / E[s]: the relative error that sigma* leaves

Vectors of padding do not count, nor do massive activations: one token whose deviation is many times the others' (a
sink, often the first) moves pooled statistics more than all others together.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, fx

from flowopt.analysis.norm_fit import NormFit
from flowopt.analysis.norm_parts import NormKind, norm_parts
from flowopt.analysis.norm_sites import NormSite
from flowopt.analysis.token_axes import token_axes
from flowopt.errors import InternalError, UserError
from flowopt.ir.evaluate import evaluate
from flowopt.program.program import Program
from flowopt.recovery.norm_gauge import Init, NormGauge
from flowopt.recovery.padding import input_of, real_tokens

Batch = Mapping[str, Tensor]


def calibrate(
    program: Program,
    sites: Iterable[NormSite],
    batches: Iterable[Batch],
    *,
    padding: str | None = None,
    init: Init | None = None,
    massive: float = 10.0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, NormFit]:
    """Walk through batches once, or twice where massive activations are found, and fit every norm.

    The model runs as it is, in its own dtype and without autograd; statistics are gathered in float64.

    Args:
        program: never changed.
        sites: norms of this program, from ``norm_sites``.
        batches: inputs by name. An iterator is kept in memory as it is read, for the second walk.
        padding: name of an input of shape (batch, tokens), 1 or True where a token is real, or with ``not:`` before it
            where it is padding. Values without an axis of tokens, such as pooled ones, count whole. A norm's axes of
            samples and tokens are found by their sizes, free ones by name: where a captured batch has as many samples
            as tokens, the first axis that fits is taken for the samples and the next one for the tokens, which is wrong
            of values that are tokens first.
        init: ``frozen-sigma`` is the norm's gain over sigma* and its shift; ``least-squares`` fits the norm's output to
            its input, channel by channel, with an intercept. By default the former for norms that subtract no mean,
            the latter for those that do. Batch norms have a scale and a shift already.
        massive: vectors whose deviation exceeds the median so many times are left out.
        on_progress: gets one line per batch.

    Returns:
        One fit for each site, by name and in order.

    Raises:
        UserError: no batch, or none with a real token; a NaN or an infinity in what a norm reads, with the norm and
            the batch; inputs that the program does not take, or no such input ``padding``.

    Source: the minimiser and its error follow from ``E[s^2] / E[s]``; scales of this kind take the place of layer norms
    in Heimersheim, "You can remove GPT2's LayerNorm by fine-tuning", section 2.
    """
    mask = _mask(program, padding)
    gauges = [_gauge(program, site, mask) for site in sites]
    kept = _Batches(batches)
    for at, batch in enumerate(kept):
        on_progress(f"calibration batch {at + 1}")
        _walk(program, gauges, batch, padding, at)
    if not kept.count:
        raise UserError("there is no calibration batch", hint="give data: at least one batch of the model's inputs")
    unsteady = [gauge for gauge in gauges if _limit(gauge, massive, padding)]
    for at, batch in enumerate(kept if unsteady else ()):
        on_progress(f"calibration batch {at + 1}, without massive activations")
        _walk(program, unsteady, batch, padding, at)
    return {gauge.parts.output.name: gauge.fit(init, program.constant) for gauge in gauges}


class _Batches:
    """Batches that can be read twice: an iterator's are kept."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self._is_iterator = iter(batches) is batches
        self._read: list[Batch] = []
        self.count = 0

    def __iter__(self) -> Any:
        if self._is_iterator and self._read:
            yield from self._read
            return
        self.count = 0
        for batch in self._batches:
            self.count += 1
            if self._is_iterator:
                self._read.append(batch)
            yield batch


def _mask(program: Program, padding: str | None) -> fx.Node | None:
    if padding is None:
        return None
    names = [i.name for i in program.inputs]
    if input_of(padding) not in names or len(program.shape(input_of(padding))) != 2:
        raise UserError(f"padding={padding!r} is no input of shape (batch, tokens)", hint=f"inputs: {', '.join(names)}")
    return program.node(input_of(padding))


def _gauge(program: Program, site: NormSite, mask: fx.Node | None) -> NormGauge:
    source = program.node(site.source)
    found = [p for user in source.users if (p := norm_parts(user)) is not None and p.output.name == site.name]
    if not found:
        raise InternalError(f"{site.name} is no norm of {site.source} in this program")
    axes = None if mask is None else token_axes(source, mask, site.axis)
    return NormGauge(found[0], axes)


def _walk(program: Program, gauges: Iterable[NormGauge], batch: Batch, padding: str | None, at: int) -> None:
    inputs = program.bind((), batch)
    real = None if padding is None else real_tokens(inputs, padding)
    reading: dict[str, list[NormGauge]] = {}
    writing: dict[str, NormGauge] = {}
    for gauge in gauges:
        reading.setdefault(gauge.parts.source.name, []).append(gauge)
        writing[gauge.parts.output.name] = gauge

    def observe(node: fx.Node, value: Any) -> None:
        if node.name in writing:
            writing[node.name].written(value)
        for gauge in reading.get(node.name, ()):
            gauge.read(value, real, at)

    evaluate(program.graph, program.read, inputs, raised=program.raised, observe=observe)


def _limit(gauge: NormGauge, massive: float, padding: str | None) -> bool:
    """Whether the gauge has to gather again, without massive vectors."""
    deviations = gauge.deviations()
    if not deviations.numel():
        why = f"{padding} marks all of them as padding" if padding else "every batch is empty"
        raise UserError("no calibration batch has a token", why=why)
    if gauge.parts.kind is NormKind.BATCH:
        return False
    limits = massive * deviations.median(0).values
    if not bool((deviations > limits).any()):
        return False
    gauge.restart(limits)
    return True
