"""How much flows into each sink and out of each source of a flow network of queries and keys."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowopt.ops.attention.token_sum import token_sum


@dataclass(frozen=True, slots=True)
class ConservedFlows:
    """The flows of attention to all tokens.

    Attributes:
        incoming: (B, H, L, 1), I_i; 1 where a query is none.
        conserved_incoming: (B, H, L, 1), of sources that give 1 each; they sum up to the number of sources for eps = 0.
        conserved_outgoing: (B, H, S, 1), to sinks that take 1 each; they sum up to the number of sinks for eps = 0.
    """

    incoming: Tensor
    conserved_incoming: Tensor
    conserved_outgoing: Tensor


def conserved_flows(
    sinks: Tensor, sources: Tensor, eps: float, sinks_seen: Tensor | None = None, sources_seen: Tensor | None = None
) -> ConservedFlows:
    """The flows between all sinks and all sources.

    I_i = (Q_i + eps) . (sum_j K_j + eps), O_j = (K_j + eps) . (sum_i Q_i + eps),
    conserved incoming = (Q_i + eps) . (sum_j K_j / O_j + eps), outgoing likewise of Q_i / I_i.

    Args:
        sinks, sources: features of the queries (B, H, L, D) and of the keys (B, H, S, D), 0 where one is none.
        eps: added to both factors of every product.
        sinks_seen, sources_seen: bool, broadcastable to (B, H, L, 1) and (B, H, S, 1); False where one is none.

    Source: Wu et al., "Flowformer", arXiv:2202.06258, section 3.2.
    """
    incoming = _flow(sinks, token_sum(sources), eps, sinks_seen)
    outgoing = _flow(sources, token_sum(sinks), eps, sources_seen)
    return ConservedFlows(
        incoming,
        _flow(sinks, token_sum(sources / outgoing), eps, None),
        _flow(sources, token_sum(sinks / incoming), eps, None),
    )


def _flow(one: Tensor, others: Tensor, eps: float, seen: Tensor | None) -> Tensor:
    flow = (one + eps) @ (others + eps).transpose(-1, -2)
    # Of what is none, no flow is asked but by divisions, which must stay 0 / 1.
    return flow if seen is None else torch.where(seen, flow, 1.0)
