"""The row of linear attention: its forms, causality, padding, conservation, the window, and half precision."""

from collections.abc import Iterator

import torch

from flowopt.ops.attention import LINEARIZATIONS
from flowopt.ops.attention.conserved_flows import conserved_flows
from tests.goals.row import Measured, Row
from tests.ops.attention.agreement import (
    ODD_LENGTHS,
    causal_leak,
    form_difference,
    forms_of,
    half_difference,
    largest_difference,
    padding_difference,
)
from tests.ops.attention.random_attention import attention_shape, random_attention, random_tokens

_LARGEST = 1e-10  # sums of at most 130 products in float64
_LARGEST_HALF = 1e-3  # the result is rounded to 11 bits
_LONG = 16384
# Their chunks are counted from the first token, padding or not: a whole one in front moves none.
_PADDING = {"chunk-hybrid": 64, "combiner": 64}
_HALF_OPTIONS = {"cosformer": {"length": _LONG}, "favor": {"directions": 64}}


def conservation_difference() -> float:
    """How far conserved flows are from summing up to the number of sources and of sinks."""
    query, key, _ = random_tokens(1, 20, 33)
    flows = conserved_flows(query.sigmoid(), key.sigmoid(), eps=0.0)
    into, out = flows.conserved_incoming.sum(2), flows.conserved_outgoing.sum(2)
    return max((into - 33).abs().max().item(), (out - 20).abs().max().item())


@torch.no_grad()
def window_differences() -> Iterator[tuple[str, float]]:
    """How far a hybrid with a window over the whole sequence is from softmax attention, form by form."""
    tokens = random_tokens(2, 70)
    for is_causal in (True, False):
        shape = attention_shape(is_causal)
        exact = torch.nn.functional.scaled_dot_product_attention(*tokens, is_causal=is_causal, scale=shape.scale)
        for form in forms_of("hybrid") if is_causal else ("parallel", "chunked"):
            module = random_attention("hybrid", shape, form, window=70)
            yield f"{form}{', causal' if is_causal else ''}", largest_difference(module(*tokens), exact)


def _forms() -> Measured:
    names = list(LINEARIZATIONS)
    forms = {f"{name}, {length} tokens": form_difference(name, length) for name in names for length in ODD_LENGTHS}
    leaks = {f"{name}, {form}": causal_leak(name, form) for name in names for form in forms_of(name)}
    padded = {
        f"{name}, {form}, {side}": padding_difference(name, attention_shape(True), form, side, _PADDING.get(name, 33))
        for name in names
        for form in forms_of(name)
        for side in ("left", "right")
    }
    half = {name: half_difference(name, _LONG, True, _HALF_OPTIONS.get(name, {})) for name in names}
    windows = dict(window_differences()) if "hybrid" in LINEARIZATIONS else {"no hybrid": float("inf")}
    conserved = {"flow": conservation_difference()}
    exact = {"forms": forms, "padding": padded, "conservation": conserved, "window": windows}
    short = [f"{what}: {name}: {x:.0e}" for what, found in exact.items() for name, x in found.items() if x >= _LARGEST]
    short += [f"leak: {name}: {x:.0e}" for name, x in leaks.items() if x > 0]
    short += [f"float16: {name}: {x:.0e}" for name, x in half.items() if x >= _LARGEST_HALF]
    largest = "; ".join(f"{what} {max(found.values()):.0e}" for what, found in exact.items())
    kinds = f"{len(names)} kinds, {sum('recurrent' in forms_of(name) for name in names)} of them recurrent"
    value = f"{kinds}: {largest}; leak {max(leaks.values()):.0f}; float16 {max(half.values()):.0e}"
    return Measured(value, not short, tuple(short))


ROWS = (
    Row(
        "attention.forms",
        "parallel = chunked = recurrent (1e-10, odd lengths); causal leak 0; padded = truncated; conservation; "
        "window >= L equals softmax; fp16 finite at L = 16,384",
        _forms,
    ),
)
