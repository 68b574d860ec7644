"""The arguments of a call of scaled_dot_product_attention."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten
ATTENTION = _aten.scaled_dot_product_attention.default


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one call was given.

    Attributes:
        node: the call.
        query, key, value: (B, H, L, D), (B, G, S, D), (B, G, S, M).
        mask: what hides keys or is added to the scores; None without one.
        dropout: probability.
        is_causal: by flag.
        scale: as given; None stands for 1 / sqrt(D), and for one that is computed.
        has_number_scale: the scale is not computed at run time.
        enable_gqa: whether keys and values of fewer heads are repeated.
    """

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    dropout: float
    is_causal: bool
    scale: float | None
    has_number_scale: bool
    enable_gqa: bool


def attention_call(node: fx.Node) -> AttentionCall | None:
    """The arguments of a call by their names; None where the node calls something else."""
    if node.op != "call_function" or node.target is not ATTENTION:
        return None
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    scale = given.get("scale")
    return AttentionCall(
        node=node,
        query=given["query"],
        key=given["key"],
        value=given["value"],
        mask=given.get("attn_mask"),
        dropout=float(given.get("dropout_p", 0.0)),
        is_causal=bool(given.get("is_causal", False)),
        scale=float(scale) if isinstance(scale, (int, float)) else None,
        has_number_scale=not isinstance(scale, fx.Node),
        enable_gqa=bool(given.get("enable_gqa", False)),
    )
