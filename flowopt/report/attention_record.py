"""What ``adapt --linearize`` saw of one attention, and what became of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AttentionRecord:
    """One softmax attention of the model beside the linear stand-in for it.

    Errors are of the attention's output, before the layer that follows: root of the sum of squared differences over
    that of squares, on calibration data, queries at padding left out. A layer that is refused by a code of its own has
    no figures.

    Attributes:
        position: among the model's attentions, from 0.
        site: node whose value is the attention's output.
        module: module path; None where it is not known.
        heads: of the queries.
        key_heads: of the keys and values.
        head_dim: features of a query.
        is_causal: a query sees the keys up to its own position.
        length: number of keys that speed was judged at.
        decision: ``swapped``, ``refused``, ``left`` (not asked for) or ``kept`` (softmax on purpose).
        reason: why it was refused or kept, with the code first; empty otherwise.
        zero_shot_error: of the stand-in before any training.
        mean_error: of the mean of the values that a query sees, which has learnt nothing.
        entropy: of the attention's rows, over the logarithm of the number of keys that the query sees, mean over
            heads and queries that see two or more; 1 is uniform.
        effect: at the model's outputs, where this layer alone is replaced, untrained; None where it was not measured.
        crossover: length from which the stand-in is faster on the target, all that is longer that was measured
            included; None: at none, or not measured, which ``softmax_ms`` tells apart.
        softmax_ms: milliseconds of the attention alone at ``length``, for one sample; None where speed was not
            measured.
        linear_ms: of the stand-in.
        is_extrapolated: ``length`` lies beyond the lengths that were timed.
        errors: by stage, the relative error of the attention's output on held-out data.
    """

    position: int
    site: str
    module: str | None
    heads: int
    key_heads: int
    head_dim: int
    is_causal: bool
    length: int
    decision: str
    reason: str = ""
    zero_shot_error: float | None = None
    mean_error: float | None = None
    entropy: float | None = None
    effect: float | None = None
    crossover: float | None = None
    softmax_ms: float | None = None
    linear_ms: float | None = None
    is_extrapolated: bool = False
    errors: Mapping[str, float] = field(default_factory=dict)
