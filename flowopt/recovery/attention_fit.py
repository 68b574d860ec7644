"""Measure softmax attentions on calibration data: how far the linear stand-in for each one is from it, untrained.

error        sqrt(sum |stand-in - softmax|^2 / sum |softmax|^2), over heads, features and queries that are real
mean error   the same for the mean of the values that a query sees: below it, a stand-in has learnt something
entropy      of the attention's rows over log(keys that the query sees): 1 is uniform, which is what a stand-in
             comes near to; 0 is a choice of one key, which it cannot make
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, fx, nn

from flowopt.analysis.attention_sites import AttentionSite
from flowopt.errors import UserError
from flowopt.ir.evaluate import evaluate
from flowopt.ir.metadata import sizes_as_text
from flowopt.ops.attention.attention_mask import key_mask_of
from flowopt.ops.attention.in_place_of_softmax import InPlaceOfSoftmax
from flowopt.ops.attention.mean_attention import MeanAttention
from flowopt.program.program import Program
from flowopt.recovery.attention_entropy import entropy_of_rows, visible_keys
from flowopt.recovery.padding import input_of, real_tokens

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class AttentionFit:
    """One attention beside its stand-in on calibration data.

    Attributes:
        zero_shot_error: of the stand-in as it is; infinite where softmax gave zeros alone.
        mean_error: of the mean of the values.
        entropy: mean over heads and counted queries; NaN where no query sees two keys.
        queries: that were counted, of one head.
    """

    zero_shot_error: float
    mean_error: float
    entropy: float
    queries: int


def measure_attention(
    program: Program,
    sites: Sequence[AttentionSite],
    leaves: Mapping[str, InPlaceOfSoftmax],
    batches: Iterable[Batch],
    *,
    padding: str | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, AttentionFit]:
    """Walk through batches once and measure every attention that has a stand-in.

    The model runs as it is, in its own dtype and without autograd; what is compared is summed in float64. Scores are
    computed in slices, so that no matrix of all of them is held beside what the model itself holds.

    Args:
        program: never changed.
        sites: of this program; those without a stand-in are passed over.
        leaves: by the name of the site.
        batches: inputs by name.
        padding: name of an input of shape (batch, tokens) that is 1 or True where a token is real, or with ``not:``
            before it where it is padding. Queries of self-attention whose mask hides padding are known by that mask.
        on_progress: gets one line per batch.

    Returns:
        One fit for each site with a stand-in, by name and in order.

    Raises:
        UserError: no batch, or none with a real query; inputs that the program does not take.
    """
    gauges = [_Gauge(program, site, leaves[site.name], padding) for site in sites if site.name in leaves]
    walked = 0
    for batch in batches:
        walked += 1
        on_progress(f"calibration batch {walked}")
        _walk(program, gauges, program.bind((), batch), padding)
    if not walked:
        raise UserError("there is no calibration batch", hint="give data: at least one batch of the model's inputs")
    return {gauge.site.name: gauge.fit() for gauge in gauges}


@final
class _Gauge:
    """What is summed up of one attention."""

    def __init__(self, program: Program, site: AttentionSite, leaf: InPlaceOfSoftmax, padding: str | None) -> None:
        self.site = site
        # The whole mask, even where a stand-in needs none of it: entropy is that of the model's own rows.
        self.arguments = (site.query, site.key, site.value, *([] if site.mask is None else [site.mask]))
        self._leaf = leaf
        self._mean = InPlaceOfSoftmax(MeanAttention(site.shape))
        query = sizes_as_text(program.node(site.query))[-2:-1]
        self._is_masked_self = site.has_padding and not site.shape.is_cross
        self._is_of_tokens = padding is not None and query == sizes_as_text(program.node(input_of(padding)))[1:2]
        self._errors = {"leaf": 0.0, "mean": 0.0}
        self._squares = 0.0
        self._entropy = 0.0
        self._rows = 0
        self._queries = 0

    def add(self, values: Sequence[Tensor], wanted: Tensor, tokens: Tensor | None) -> None:
        """One batch: the arguments' values, the attention's own, and which tokens are real."""
        query, key, value, *rest = values
        mask = rest[0] if rest else None
        real = self._real(query, mask, tokens)
        total, rows = entropy_of_rows(query, key, mask, self.site.shape, real)
        self._entropy += total
        self._rows += rows
        self._queries += query.shape[0] * query.shape[2] if real is None else int(real.sum())
        self._squares += _squares(wanted, real)
        padding = mask if self.site.has_padding else None
        modules: dict[str, nn.Module] = {"leaf": self._leaf, "mean": self._mean}
        for name, module in modules.items():
            self._errors[name] += _squares(module(query, key, value, padding), real, wanted)

    def fit(self) -> AttentionFit:
        """All batches together.

        Raises:
            UserError: no query was counted.
        """
        if not self._queries:
            where = self.site.module or self.site.name
            raise UserError(f"no calibration batch has a real query for {where}", why="all are marked as padding")
        found = {name: _root(error, self._squares) for name, error in self._errors.items()}
        entropy = self._entropy / self._rows if self._rows else math.nan
        return AttentionFit(found["leaf"], found["mean"], entropy, self._queries)

    def _real(self, query: Tensor, mask: Tensor | None, tokens: Tensor | None) -> Tensor | None:
        """(B, L), False at queries that are padding or see nothing; None where there are none."""
        size = (query.shape[0], query.shape[2])
        real = tokens if self._is_of_tokens and tokens is not None and tuple(tokens.shape) == size else None
        if mask is None:
            return real
        whole = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
        sees = visible_keys(whole).any(-1).any(1).expand(size)
        if self._is_masked_self:
            real = key_mask_of(whole).any(1)[:, 0].expand(size)
        return sees if real is None else real & sees


def _walk(program: Program, gauges: Sequence[_Gauge], inputs: Batch, padding: str | None) -> None:
    tokens = None if padding is None else real_tokens(inputs, padding)
    at_site = {gauge.site.name: gauge for gauge in gauges}
    readers = Counter(name for gauge in gauges for name in set(gauge.arguments))
    held: dict[str, Tensor] = {}

    def observe(node: fx.Node, value: Any) -> None:
        if node.name in readers:
            held[node.name] = value
        gauge = at_site.get(node.name)
        if gauge is None:
            return
        gauge.add([_value(program, name, held) for name in gauge.arguments], value, tokens)
        for name in set(gauge.arguments):
            readers[name] -= 1
            if not readers[name]:
                # Nothing reads it any more: longer than the walk itself it is not kept.
                held.pop(name, None)

    evaluate(program.graph, program.read, inputs, raised=program.raised, observe=observe)


def _value(program: Program, name: str, held: Mapping[str, Tensor]) -> Tensor:
    """What is computed was seen on the walk; what is stored is read."""
    return held[name] if name in held else program.read(str(program.node(name).target))


def _squares(value: Tensor, real: Tensor | None, other: Tensor | None = None) -> float:
    """Sum of squares, or of squared differences, over (B, H, L, M) at real queries."""
    wide = value.double() if other is None else value.double() - other.double()
    found = wide.square().sum((1, 3))
    return float(found.sum() if real is None else found[real].sum())


def _root(error: float, squares: float) -> float:
    if error == 0:
        return 0.0
    return math.sqrt(error / squares) if squares else math.inf
